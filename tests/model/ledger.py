"""What must hold of the runs in a database, whatever happened: the books, and their check."""

from __future__ import annotations

import collections
import typing as t
from dataclasses import dataclass, field

from flask_sequence import Status, StepStatus
from flask_sequence.status import ACTIVE, MOVES


class Moved(t.NamedTuple):
    """A committed change of a run's status, step or version."""

    run_id: int
    source: Status
    target: Status
    from_version: int
    to_version: int


@dataclass(frozen=True, kw_only=True)
class Books:
    """What is committed, and what is known of how it came about.

    A run's effects are ``(run, token, mark)`` in their order; its data hold its token, and in
    ``done`` the marks of its effects. The mark of a step is its position, or begins with it.
    """

    runs: t.Sequence[t.Any]
    """Rows of ``sequence_runs``, the data decoded."""
    effects: t.Sequence[tuple[int, str, str]]
    history: t.Sequence[t.Any]
    """Rows of ``sequence_step_runs``, in their order."""
    moves: t.Sequence[Moved]
    tokens: t.Collection[str]
    """Those of the runs whose start was committed outside of a step."""
    unsure: t.Collection[str] = ()
    """Those of which nobody knows whether it was."""
    failures: t.Mapping[int, int] = field(default_factory=collections.Counter)
    """How often steps of each run failed, or wanted a retry; committed or not."""
    finishers: t.Collection[int] = ()
    """The runs of which a step wanted to finish the run."""
    deaths: t.Collection[int] = ()
    """The rows of the history whose process had died, or was silent for longer than the lease."""
    positions: t.Mapping[str, int] = field(default_factory=dict)
    """The position of each step, by its name."""
    last: t.Mapping[str, int] = field(default_factory=dict)
    """The position of the last step of each sequence."""

    def marks(self, run_id: int) -> list[str]:
        """Give the marks of a run's effects."""
        return [mark for owner, _, mark in self.effects if owner == run_id]


def problems(books: Books) -> list[str]:
    """Tell all that must not be; each line begins with its kind."""
    found = [*_starts(books), *_moves(books)]
    for row in books.runs:
        found += [f"{text} (run {row['id']})" for text in _run(books, row)]
    return found


def unfinished(books: Books) -> list[str]:
    """Tell which runs have not come to an end, although nothing hinders them any more."""
    ended = {Status.FINISHED, Status.CANCELLED}
    left = [row for row in books.runs if row["status"] not in ended]
    return [f"lost: is {row['status']} at {row['step']} (run {row['id']})" for row in left]


def _starts(books: Books) -> t.Iterator[str]:
    started = collections.Counter(row["data"]["token"] for row in books.runs)
    children = {f"{token}/{mark[:-6]}" for _, token, mark in books.effects if "start" in mark}
    for token in {*books.tokens, *children} - set(started):
        yield f"lost: the start of {token} was committed, and there is no run"
    for token in set(started) - {*books.tokens, *children, *books.unsure}:
        yield f"unexpected: the start of {token} was rolled back, and there is a run"
    known = {row["id"]: row["data"]["token"] for row in books.runs}
    for run_id, token, mark in books.effects:
        if known.get(run_id) != token:
            yield f"unexpected: the effect {mark!r} of {token}, whose start was rolled back"
    keys = collections.Counter((row["sequence"], row["active_key"]) for row in books.runs)
    for (sequence, key), count in keys.items():
        if key is not None and count > 1:
            yield f"key: {count} active runs of {sequence} have the key {key!r}"


def _moves(books: Books) -> t.Iterator[str]:
    for move in books.moves:
        if move.to_version != move.from_version + 1:
            yield f"version: {move.from_version} -> {move.to_version} (run {move.run_id})"
        if move.target not in MOVES[move.source]:
            yield f"move: {move.source} -> {move.target} (run {move.run_id})"


def _run(books: Books, row: t.Any) -> t.Iterator[str]:
    marks = books.marks(row["id"])
    if len(set(marks)) != len(marks):
        yield f"doubled: {marks}"
    if [mark[0] for mark in marks] != sorted(mark[0] for mark in marks):
        yield f"out of order: {marks}"
    if row["data"]["done"] != marks:
        yield f"data: they tell of {row['data']['done']}, and the effects are {marks}"
    yield from _status(row)
    yield from _history(books, row, [int(mark) for mark in marks if mark.isdecimal()])


def _status(row: t.Any) -> t.Iterator[str]:
    running = row["status"] is Status.RUNNING
    if running != (row["pid"] is not None) or running != (row["worker_id"] is not None):
        yield f"holder: {row['status']}, held by {row['worker_id']}:{row['pid']}"
    if row["status"] is Status.WAITING and row["due_at"] is None:
        yield "lost: waits, and is due never"
    if row["active_key"] != (row["key"] if row["status"] in ACTIVE else None):
        yield f"key: {row['status']} with the active key {row['active_key']!r}"


def _history(books: Books, row: t.Any, done: list[int]) -> t.Iterator[str]:
    history = [told for told in books.history if told["run_id"] == row["id"]]
    ends = collections.Counter(told["status"] for told in history)
    finished = [
        books.positions[told["step"]] for told in history if told["status"] == StepStatus.FINISHED
    ]
    if finished != done:
        yield f"history: it tells of {finished}, and the effects of {done}"
    if done != list(range(len(done))):
        yield f"out of order: the steps {done} are done"
    if row["status"] is Status.FINISHED:
        complete = len(done) == books.last[row["sequence"]] + 1
        if not complete and row["id"] not in books.finishers:
            yield f"lost: finished after the steps {done}"
    if ends[StepStatus.RETRY] + ends[StepStatus.FAILED] > books.failures.get(row["id"], 0):
        yield f"failure: {dict(ends)}, and it failed {books.failures[row['id']]} times"
    for told in history:
        if told["status"] == StepStatus.CRASHED and told["id"] not in books.deaths:
            yield f"crash: {told['worker']} is counted as dead, and lives"
    if row["crashes"] > ends[StepStatus.CRASHED]:
        yield f"crash: {row['crashes']} are counted of {ends[StepStatus.CRASHED]}"
    attempts = [(told["step"], told["attempt"]) for told in history]
    if len(set(attempts)) != len(attempts):
        yield f"history: an attempt has ended twice in {attempts}"
