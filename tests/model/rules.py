"""What may happen next: rules, and how their parameters are drawn."""

from __future__ import annotations

import inspect
import random
import typing as t
from dataclasses import dataclass

from tests.model.faults import STOPS, Behaviour, Deed, Errors, How, Stop, Way

Draw = t.Callable[[random.Random], t.Any]
ActT = t.TypeVar("ActT", bound=t.Callable[..., None])


@dataclass(frozen=True)
class Rule:
    """Something that may happen.

    :param name: What.
    :param weight: How often, compared with the others.
    :param draws: How its parameters are drawn, by their names.
    :param when: Whether it may happen now, asked of the model.
    """

    name: str
    weight: int
    draws: t.Mapping[str, Draw]
    when: t.Callable[[t.Any], object]


class Action(t.NamedTuple):
    """What has happened: a rule, by its name, and the parameters."""

    rule: str
    values: t.Mapping[str, t.Any]

    def __str__(self) -> str:
        given = ", ".join(f"{name}={shown(value)}" for name, value in self.values.items())
        return f"{self.rule}({given})"


def rule(
    weight: int = 2, when: t.Callable[[t.Any], object] = lambda model: True, **draws: Draw
) -> t.Callable[[ActT], ActT]:
    """Declare a method of the model to be a rule."""

    def declare(act: ActT) -> ActT:
        act.rule = Rule(act.__name__, weight, draws, when)  # type: ignore[attr-defined]
        return act

    return declare


def rules_of(model: type) -> dict[str, Rule]:
    """Give the rules of a model by their names."""
    members = inspect.getmembers(model, lambda member: hasattr(member, "rule"))
    return {name: member.rule for name, member in members}


def draw(rules: t.Mapping[str, Rule], model: object, by: random.Random) -> Action:
    """Draw what happens next."""
    possible = [each for each in rules.values() if each.when(model)]
    (chosen,) = by.choices(possible, [each.weight for each in possible])
    return Action(chosen.name, {name: one(by) for name, one in chosen.draws.items()})


def shown(value: t.Any) -> str:
    """Show a parameter as it is written."""
    if isinstance(value, (Deed, Stop)):
        return f"{type(value).__name__}({', '.join(map(shown, value))})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    return f"{type(value).__name__}.{value.name}" if hasattr(value, "name") else repr(value)


# The parameters


def one_of(*values: t.Any) -> Draw:
    """Draw one of some values."""
    return lambda by: by.choice(values)


def some(one: Draw, *numbers: int) -> Draw:
    """Draw a list of one of these lengths."""
    return lambda by: [one(by) for _ in range(by.choice(numbers))]


def pick(by: random.Random) -> int:
    """Draw which one is meant; the newest in every other case."""
    return by.choice((0, by.randrange(1000)))


def boolean(by: random.Random) -> bool:
    """Draw yes or no; yes three times of four."""
    return by.random() < 0.75


def deed(by: random.Random) -> Deed:
    """Draw what a step does."""
    behaviour = by.choice([*Behaviour, *[Behaviour.CHECKPOINT] * 4])
    return Deed(behaviour, by.choice(list(Way)), by.choice([*Errors, Errors.PASSED_ON]))


def stop(by: random.Random) -> Stop:
    """Draw where a process is stopped."""
    point, how = by.choice(STOPS)
    number, times = by.choice((1, 1, 2, 2, 3, 4, 5, 7)), 1
    if how in (How.WRITER, How.READER, How.REFUSED, How.UNSENT, How.UNANSWERED):
        times = by.choice((1, 1, 1, 2, 6, 25))
    return Stop(point, number, how, times)


plan: Draw = some(deed, 0, 0, 1, 2, 4)
stops: Draw = some(stop, 1, 1, 1, 2, 3)
