"""What this process knows of a step by its name: its options, its place, and what is wrong."""

from __future__ import annotations

from ..definition.registry import StepOptions, find_sequence
from ..runtime import Runtime, current_runtime

MOST_NAMED = 10
"""How many steps an error names."""


def options_of(sequence: str, step: str) -> StepOptions | None:
    """Give the options of a step, if this process knows it."""
    definition = find_sequence(sequence)
    found = definition.get(step) if definition else None
    return found.options if found else None


def unknown_step(runtime: Runtime, sequence: str, step: str) -> str:
    """Say of a step that is not known here how it can be known.

    :param runtime: The application's runtime.
    :param sequence: The name of its sequence.
    :param step: Its name.
    """
    definition = find_sequence(sequence)
    if definition is None:
        named = ", ".join(runtime.settings.imports) or "nothing"
        return (
            f"The step {step!r} of the sequence {sequence!r} is not known to the workers of its"
            " queue: name the module that defines it in SEQUENCE_IMPORTS, which names"
            f" {named}, and restart them."
        )
    names = definition.step_names[:MOST_NAMED]
    more = ", ..." * (len(definition.step_names) > MOST_NAMED)
    return (
        f"The sequence {sequence!r} has no step {step!r}; its steps are {', '.join(names)}{more}."
        f" Was it renamed, or was this worker not restarted since it was added? Give it that name"
        f" with name = {step!r} in its class, or with @step(name={step!r}); or cancel the run."
    )


def retries_of(sequence: str, step: str) -> int | None:
    """Give how many retries a step has; None: there is no limit, or it is not known here."""
    options = options_of(sequence, step)
    default = current_runtime().settings.max_retries
    return options.retry.limit(default) if options else None


def place_of(sequence: str, step: str) -> tuple[int, int] | None:
    """Give the place of a step, from 1, and how many there are; None: it is not known here."""
    definition = find_sequence(sequence)
    names = definition.step_names if definition else ()
    return (names.index(step) + 1, len(names)) if step in names else None
