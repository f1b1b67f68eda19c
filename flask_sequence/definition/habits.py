"""Names that other libraries have and this one has not, each with what to write instead."""

from __future__ import annotations

import inspect
import typing as t

STARTERS = (
    "apply",
    "apply_async",
    "defer",
    "delay",
    "enqueue",
    "execute",
    "perform_async",
    "perform_in",
    "perform_later",
    "run",
    "s",
    "schedule",
    "send",
    "si",
    "signature",
    "submit",
)
"""What starts work, or describes it, in other libraries."""

STEP_CURE = (
    "A step runs in a sequence: list it in `steps` of one, and call start(...) on that;"
    " {name}.call(data) runs it in place, for a test."
)
"""What to do instead of starting a step by itself; ``{name}`` is its name."""

AT_STEP: t.Mapping[str, str] = dict.fromkeys((*STARTERS, "start"), STEP_CURE)
"""The names that are tried on a step class, or on a function under ``@step``."""

_START = (
    "Start it by {name}.start(email=...), with options by {name}.set(countdown=60)"
    ".start(email=...), and commit the session."
)
_ROWS = (
    "Its runs are rows: db.session.scalars(sa.select(SequenceRun).filter_by(sequence={name}.name))."
)

AT_SEQUENCE: t.Mapping[str, str] = {
    **dict.fromkeys((*STARTERS, "create"), _START),
    **dict.fromkeys(("get", "objects", "query"), _ROWS),
}
"""The names that are tried on a sequence."""

_AGAIN = (
    "A step does not start itself: self.retry(countdown=60) runs it again later, and another"
    " sequence is started by its start(...)."
)
_SESSION = "Write through db.session, which is committed with the step."
_NO_RESULT = "No result backend is used: put a result into self.data."

IN_STEP: t.Mapping[str, str] = {
    **dict.fromkeys(("apply", "apply_async", "delay", "s", "si", "signature", "subtask"), _AGAIN),
    "AsyncResult": _NO_RESULT,
    "MaxRetriesExceededError": (
        "Nothing is raised when the retries are used up: the run fails, and run.error says why."
        " The option max_retries sets how many there are."
    ),
    "app": "The Flask application is flask.current_app, and celery_app(app) returns its Celery.",
    "backend": _NO_RESULT,
    "db": _SESSION,
    "id": "The run's id is self.run.id; self.idempotency_key stays the same across attempts.",
    "replace": (
        "The steps of a run are fixed: self.finish() ends the run here, and another sequence is"
        " started by its start(...)."
    ),
    "request": (
        "The number of the attempt is self.attempt, and the run's id is self.run.id;"
        " self.idempotency_key stays the same across attempts."
    ),
    "retries": "The number of the attempt is self.attempt, from 1; retries are one less.",
    "session": _SESSION,
    "task_id": "The run's id is self.run.id; self.idempotency_key stays the same across attempts.",
    "update_state": (
        "Write it into self.data, and call db.session.commit() where others should see it before"
        " the step ends; run.progress tells which steps are done."
    ),
}
"""The names that are tried on ``self`` in a step."""

_IS_STARTED = "It is started already, and runs once the session is committed."
_WAIT = "Call run.wait(timeout), which returns the status; what the steps have left is in run.data."
_STATUS = "Read run.status, as in run.status is Status.FINISHED."
_CANCEL = "Call run.cancel(), and commit the session."

AT_RUN: t.Mapping[str, str] = {
    **dict.fromkeys(("apply_async", "delay", "start"), _IS_STARTED),
    **dict.fromkeys(("get", "join", "result"), _WAIT),
    **dict.fromkeys(("failed", "ready", "state", "successful"), _STATUS),
    **dict.fromkeys(("abort", "delete", "revoke", "terminate"), _CANCEL),
    "forget": "Leave it there: an ended run is deleted after SEQUENCE_RETENTION.",
    "query": "Write db.session.get(SequenceRun, run_id), or a db.select(SequenceRun).",
    "task_id": "Read run.id.",
    "traceback": "Each attempt has its own: run.step_runs[-1].traceback.",
}
"""The names that are tried on a run."""


class NotHere:
    """An attribute that there is not, which says what to write instead.

    :param where: The class that has it.
    :param name: Its name.
    :param cure: What to write; ``{name}`` is the name of the class that is asked.
    """

    def __init__(self, where: type, name: str, cure: str) -> None:
        self._where = where
        self._name = name
        self._cure = cure

    def __get__(self, instance: object, owner: type) -> t.Any:
        later = owner.__mro__[owner.__mro__.index(self._where) + 1 :]
        if any(self._name in vars(cls) for cls in later):  # a mixin that is listed after ours
            found: t.Any = super(
                self._where, t.cast(t.Any, owner if instance is None else instance)
            )
            return getattr(found, self._name)
        raise not_here(repr(owner.__name__), self._name, self._cure.format(name=owner.__name__))


def set_traps(cls: type, cures: t.Mapping[str, str]) -> None:
    """Give a class the attributes that say what to write instead.

    :param cls: The class; it has none of these names.
    :param cures: The names, each with its cure.
    """
    for name, cure in cures.items():
        setattr(cls, name, NotHere(cls, name, cure))


def without_traps(instance: object, names: t.Iterable[str]) -> list[str]:
    """Leave out of the names of an object those that it has not.

    :param instance: The object.
    :param names: What ``dir()`` lists.
    """
    own, kind = vars(instance), type(instance)
    return [
        name
        for name in names
        if name in own or not isinstance(inspect.getattr_static(kind, name, None), NotHere)
    ]


def not_here(owner: str, name: str, cure: str) -> AttributeError:
    """Make the error for an attribute that there is not.

    :param owner: What has been asked for it.
    :param name: Its name.
    :param cure: What to write instead.
    """
    # With the object, Python would append "Did you mean" and the name of another such attribute.
    return AttributeError(f"{owner} has no attribute {name!r}. {cure}", name=name, obj=None)
