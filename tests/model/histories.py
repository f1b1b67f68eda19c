"""Histories: what happens, drawn by a seed, and the shortest that shows the same fault."""

from __future__ import annotations

import contextlib
import random
import traceback
import typing as t
from dataclasses import dataclass

from tests.model.model import Model
from tests.model.rules import Action, draw, rules_of
from tests.model.simulation import Simulation

RULES = rules_of(Model)
STEPS = 25
"""How many actions a history has."""


@dataclass(frozen=True)
class Fault:
    """Something that must not be, and how it came about."""

    seed: int
    actions: t.Sequence[Action]
    error: BaseException

    @property
    def kind(self) -> str:
        """By which two faults are taken for the same."""
        frames = traceback.extract_tb(self.error.__traceback__)
        where = next(frame for frame in reversed(frames) if "/tests/model/" in frame.filename)
        return f"{type(self.error).__name__} in {where.name}, line {where.lineno}"

    def __str__(self) -> str:
        lines = [f"  {action}" for action in self.actions]
        error = "".join(traceback.format_exception_only(self.error)).strip()
        return "\n".join([f"seed {self.seed}: {self.kind}", *lines, f"  {error}"])


def tell(world: Simulation, seed: int, steps: int = STEPS) -> Fault | None:
    """Let a history happen that is drawn by a seed.

    :param world: Where.
    :param seed: The seed.
    :param steps: How many actions it has.
    :return: The fault that it shows, if it does.
    """
    by = random.Random(seed)
    actions: list[Action] = []

    def next_action(model: Model) -> Action | None:
        if len(actions) == steps:
            return None
        actions.append(draw(RULES, model, by))
        return actions[-1]

    error = _happen(world, seed, next_action)
    return None if error is None else Fault(seed, actions, error)


def tell_again(world: Simulation, seed: int, actions: t.Sequence[Action]) -> Fault | None:
    """Let some actions happen, of which those are left out that are not possible any more.

    :param world: Where.
    :param seed: The seed of the history that they are from.
    :param actions: The actions.
    """
    left = list(actions)

    def next_action(model: Model) -> Action | None:
        while left:
            action = left.pop(0)
            if RULES[action.rule].when(model):
                return action
        return None

    error = _happen(world, seed, next_action)
    return None if error is None else Fault(seed, actions, error)


def _happen(
    world: Simulation, seed: int, next_action: t.Callable[[Model], Action | None]
) -> BaseException | None:
    random.seed(seed)  # by which the product draws its delays
    model = None
    try:
        model = Model(world, burst=seed % 2 == 0)
        while (action := next_action(model)) is not None:
            getattr(model, action.rule)(**action.values)
            model.check()
        model.end()
    except Exception as error:
        return error
    finally:
        with contextlib.suppress(Exception):
            world.bury()
    return None


def shorten(world: Simulation, fault: Fault, tries: int = 300) -> Fault:
    """Leave out what the fault does not need.

    :param world: Where.
    :param fault: The fault.
    :param tries: How often at most something is left out.
    """
    size = max(len(fault.actions) // 2, 1)
    while tries > 0:
        number, was = 0, len(fault.actions)
        while number < len(fault.actions) and tries > 0:
            tries -= 1
            rest = [*fault.actions[:number], *fault.actions[number + size :]]
            found = tell_again(world, fault.seed, rest)
            if found is not None and found.kind == fault.kind:
                fault = found
            else:
                number += size
        if size == 1 and len(fault.actions) == was:
            break
        size = max(size // 2, 1)
    return fault
