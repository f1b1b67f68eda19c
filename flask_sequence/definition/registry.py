"""What a sequence consists of, checked when its class is defined, and the registry."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
import typing as t

from ..errors import (
    DuplicateSequenceError,
    DuplicateStepError,
    EmptySequenceError,
    InvalidStepError,
    UnknownSequenceError,
)
from .functions import FunctionStep, step
from .options import StepOptions, check_name
from .sources import note_import
from .steps import RunInfo, Step, check_step

__all__ = [
    "FunctionStep",
    "RunInfo",
    "SequenceDefinition",
    "Step",
    "StepDefinition",
    "StepOptions",
    "define_sequence",
    "find_sequence",
    "get_sequence",
    "sequence_names",
    "step",
]


@dataclasses.dataclass(frozen=True)
class StepDefinition:
    """A step at its place in a sequence.

    :param name: Its name, unique in the sequence.
    :param cls: Its class; for a function the one that was made for it.
    :param options: Its options, checked.
    """

    name: str
    cls: type[Step[t.Any]]
    options: StepOptions


@dataclasses.dataclass(frozen=True)
class SequenceDefinition:
    """A sequence as it is registered.

    :param name: Its name, unique in the process.
    :param steps: Its steps, in order, at least one.
    :param cls: The class that the user wrote.
    """

    name: str
    steps: tuple[StepDefinition, ...]
    cls: type

    @functools.cached_property
    def step_names(self) -> tuple[str, ...]:
        """The names of the steps, in order."""
        return tuple(step.name for step in self.steps)

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.step_names)}

    @property
    def first(self) -> StepDefinition:
        """The step that a run begins with."""
        return self.steps[0]

    @property
    def origin(self) -> str:
        """Where the class stands: its module and qualified name."""
        return f"{self.cls.__module__}.{self.cls.__qualname__}"

    def get(self, name: str) -> StepDefinition | None:
        """Find a step.

        :param name: Its name.
        :return: The step, or ``None`` if the sequence has no such step (any more).
        """
        place = self._places.get(name)
        return None if place is None else self.steps[place]

    def after(self, name: str) -> StepDefinition | None:
        """Find the step that follows another one.

        :param name: The name of a step of this sequence.
        :return: The next step, or ``None`` after the last.
        :raises KeyError: The sequence has no step ``name``: that is not the end of a run.
        """
        following = self._places[name] + 1
        return self.steps[following] if following < len(self.steps) else None


_registry: dict[str, SequenceDefinition] = {}


def define_sequence(cls: type, name: str, steps: object) -> SequenceDefinition:
    """Check a sequence and register it.

    The same class, defined again (a reload), replaces the earlier one; so does a class that is
    local to a function (a test) one of the same module that is local too.

    :param cls: The class that the user wrote.
    :param name: The name of the sequence.
    :param steps: What stands in ``steps``: a tuple or list of step classes and ``@step`` functions.
    :return: The definition.
    :raises DefinitionError: One of its leaves: the name, ``steps`` or one of them is wrong.
    """
    check_name(f"sequence {cls.__qualname__}", name)
    if not isinstance(steps, tuple | list):
        raise InvalidStepError(
            f"{name}.steps must be a tuple or a list, as in steps = (CreateMessage,) with its"
            f" comma; it is {reprlib.repr(steps)}."
        )
    if not steps:
        raise EmptySequenceError(
            f"{name}.steps is empty: list at least one step, or leave `steps` out for a base"
            " that other sequences inherit from."
        )
    found = tuple(_define_step(f"{name}.steps[{i}]", item) for i, item in enumerate(steps))
    _refuse_duplicates(name, found)
    definition = SequenceDefinition(name, found, cls)
    _refuse_foreign(definition, _registry.get(name))
    _registry[name] = definition
    note_import(cls.__module__, again="<locals>" not in cls.__qualname__)
    for found_step in found:
        note_import(found_step.cls.__module__, again=False)
    return definition


def find_sequence(name: str) -> SequenceDefinition | None:
    """Find a sequence that this process knows.

    :param name: The name of the sequence.
    :return: The sequence, or ``None``.
    """
    return _registry.get(name)


def get_sequence(name: str) -> SequenceDefinition:
    """Get a sequence that this process must know.

    :param name: The name of the sequence.
    :return: The sequence.
    :raises UnknownSequenceError: No module that is imported here defines it.
    """
    definition = find_sequence(name)
    if definition is None:
        raise UnknownSequenceError(name, sequence_names())
    return definition


def sequence_names() -> list[str]:
    """List the sequences that this process knows.

    :return: Their names, sorted.
    """
    return sorted(_registry)


def step_modules() -> set[str]:
    """Give the names of the modules in which known sequences and their steps are written."""
    definitions = list(_registry.values())
    classes = {step.cls for definition in definitions for step in definition.steps}
    return {cls.__module__ for cls in classes | {definition.cls for definition in definitions}}


def _define_step(where: str, item: object) -> StepDefinition:
    if isinstance(item, FunctionStep):
        cls: type[Step[t.Any]] = item.step_class
    elif isinstance(item, type) and issubclass(item, Step):
        cls = item
    else:
        raise InvalidStepError(f"{where} {_problem_of(item)}.")
    if cls.perform is Step.perform:
        raise InvalidStepError(
            f"{where} is {cls.__name__}, which has no perform(): write `def perform(self)`, or"
            " list a step that inherits from it."
        )
    return StepDefinition(cls.name, cls, check_step(cls))


def _problem_of(item: t.Any) -> str:
    shown, origin = reprlib.repr(item), t.get_origin(item)
    if isinstance(item, types.UnionType):
        return f"is {shown}, joined by `|`; list each step by itself, with a comma between them"
    if isinstance(item, Step):
        return f"is an instance; list the class itself, {type(item).__name__} without ()"
    if isinstance(origin, type) and issubclass(origin, Step):
        return f"is a type; list the class itself, {origin.__name__} without []"
    if hasattr(item, "init_app"):
        return "is an extension of Flask; a step is a class that inherits from Step"
    if isinstance(item, str):
        return f"is the string {shown}; list the step itself, without quotes"
    if isinstance(item, tuple | list):
        return "is a list of its own; put its steps straight into `steps`, by a * before it"
    if hasattr(item, "apply_async"):
        return f"is the Celery task {shown}; call what it does from a function under @step"
    if hasattr(item, "step_names"):
        return (
            f"is the sequence {item.__name__}, and a sequence cannot contain another one yet;"
            f" list its steps, or start it from a step: {item.__name__}.start(...)"
        )
    if isinstance(item, type):
        return f"is the class {item.__name__}, which is not a step; let it inherit from Step"
    if callable(item):
        name = getattr(item, "__name__", shown)
        return f"is the function {name}, which is not a step yet; put @step over it"
    return f"is {shown}; a step is a class that inherits from Step, or a function under @step"


def _refuse_duplicates(name: str, steps: tuple[StepDefinition, ...]) -> None:
    places: dict[str, int] = {}
    for place, found in enumerate(steps):
        if found.name in places:
            raise DuplicateStepError(
                f"{name}.steps[{places[found.name]}] and {name}.steps[{place}] are both named"
                f" {found.name!r}, and a run knows its step by name: rename one of them with a"
                " different `name`, in a class that inherits from it or with @step(name=...)."
            )
        places[found.name] = place


def _refuse_foreign(new: SequenceDefinition, old: SequenceDefinition | None) -> None:
    if old is None or old.origin == new.origin:
        return
    both_local = all("<locals>" in found.cls.__qualname__ for found in (old, new))
    if both_local and old.cls.__module__ == new.cls.__module__:
        return
    raise DuplicateSequenceError(
        f"{new.origin} and {old.origin} are both named {new.name!r}, and a run knows its sequence"
        " by name: rename one of them with a different `name`, and import each module under one"
        " name only."
    )
