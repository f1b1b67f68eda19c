"""The one SQLite file: its clock, what disturbs its connections, and who else uses it."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import typing as t

import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.definition.data import decode_text
from tests.model.faults import How, Point, database_error
from tests.model.processes import checked_in, checked_out, current_process

if t.TYPE_CHECKING:
    import pytest

BEGINNING = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)
JOURNAL = """
CREATE TABLE journal (id INTEGER PRIMARY KEY, run_id INT, source, target, was INT, now INT);
CREATE TRIGGER move AFTER UPDATE OF status, step, version ON sequence_runs BEGIN
    INSERT INTO journal VALUES (NULL, old.id, old.status, new.status, old.version, new.version);
END;
"""
TABLES = (
    *("sequence_step_runs", "effects", "sequence_runs", "sequence_workers", "journal"),
    "sqlite_sequence",
)


class Strangers:
    """A transaction that is none of ours, and stays for a while.

    :param path: The file.
    """

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        self._pauses = 0

    @property
    def are_there(self) -> bool:
        """Whether the transaction is open."""
        return self._connection.in_transaction

    def come(self, pauses: int, *, writes: bool) -> None:
        """Begin it, unless somebody else has the lock.

        :param pauses: How many pauses of ours it outlasts.
        :param writes: Whether it writes; else it reads, so that others may write and not commit.
        """
        if self.are_there:
            return
        self._pauses = pauses
        with contextlib.suppress(sqlite3.OperationalError):
            self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            self._connection.execute("SELECT id FROM sequence_runs").fetchall()

    def let_time_pass(self) -> None:
        """Stay through one pause, or go."""
        self._pauses -= 1
        if self._pauses <= 0:
            self.go()

    def go(self) -> None:
        """End it."""
        if self.are_there:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()


class Database:
    """The file, its clock, and the connections of the application to it.

    :param path: The file, with all tables.
    """

    def __init__(self, path: str) -> None:
        self.now = 0.0
        self.loses: How | None = None
        """What happens to the commits of who is no process."""
        self.strangers: Strangers = Strangers(path)
        self.reader = sqlite3.connect(path, isolation_level=None)
        self.reader.row_factory = sqlite3.Row
        self.reader.executescript(JOURNAL)
        self._rows: tuple[int, list[dict[str, t.Any]]] = (-1, [])

    def clear(self) -> None:
        """Be empty, and begin the time anew."""
        self.now, self.loses = 0.0, None
        self.strangers.go()
        for table in TABLES:
            self.reader.execute(f"DELETE FROM {table}")
        self._rows = (-1, [])  # what this connection changes does not change its version

    def close(self) -> None:
        """Let all connections go."""
        self.strangers.close()
        self.reader.close()

    def watch(self, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the connections of an engine go by this clock, and stop processes at its points."""
        sa.event.listen(engine, "connect", self._connected)
        sa.event.listen(engine, "checkout", checked_out)
        sa.event.listen(engine, "checkin", checked_in)
        dialect = engine.dialect
        commit, execute = dialect.do_commit, dialect.do_execute

        def do_commit(connection: t.Any) -> None:
            self._pass_by(Point.COMMIT, How.UNSENT)
            commit(connection)
            self._pass_by(Point.COMMITTED, How.UNANSWERED)

        def do_execute(cursor: t.Any, statement: str, *rest: t.Any) -> None:
            if statement.startswith("PRAGMA busy_timeout ="):
                return  # nothing waits here
            process = current_process()
            before, after = _points_of(statement)
            if process is not None:
                process.cursor = cursor
                if before is not None:
                    process.at(before)
            execute(cursor, statement, *rest)
            if process is not None and after is not None:
                process.at(after)

        monkeypatch.setattr(dialect, "do_commit", do_commit)
        monkeypatch.setattr(dialect, "do_execute", do_execute)

    def _pass_by(self, point: Point, lost: How) -> None:
        process = current_process()
        if process is not None:
            process.at(point)
        elif self.loses is lost:
            raise database_error(lost)

    @contextlib.contextmanager
    def losing(self, how: How | None) -> t.Iterator[None]:
        """Lose commits, or their answers, of who is no process."""
        self.loses = how
        try:
            yield
        finally:
            self.loses = None

    def _connected(self, connection: sqlite3.Connection, record: object) -> None:
        for arguments in (2, 3):
            connection.create_function("strftime", arguments, self._strftime)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    def _strftime(self, form: str, moment: str, shift: str = "0") -> str:
        return self.time(float(shift.split()[0]))

    def time(self, later: float = 0.0) -> str:
        """Tell the time by this clock, as it is in rows.

        :param later: How many seconds later.
        """
        at = BEGINNING + datetime.timedelta(seconds=self.now + later)
        return f"{at:%Y-%m-%d %H:%M:%S.%f}"

    # Looking

    def read(self, statement: str, *values: t.Any) -> list[t.Any]:
        """Read what is committed."""
        return self.reader.execute(statement, values).fetchall()

    @property
    def version(self) -> int:
        """A number that changes with each commit."""
        return int(self.read("PRAGMA data_version")[0][0])

    def rows(self) -> list[dict[str, t.Any]]:
        """Read what is committed of all runs; not to be changed."""
        version = self.version
        if self._rows[0] != version:
            found = map(dict, self.read("SELECT * FROM sequence_runs ORDER BY id"))
            decoded = [
                {**row, "status": Status(row["status"]), "data": decode_text(row["data"])}
                for row in found
            ]
            self._rows = (version, decoded)
        return self._rows[1]

    def row(self, run_id: int) -> dict[str, t.Any] | None:
        """Read what is committed of a run."""
        return next((row for row in self.rows() if row["id"] == run_id), None)


def _points_of(statement: str) -> tuple[Point | None, Point | None]:
    if statement.startswith("UPDATE sequence_runs"):
        return Point.UPDATE, Point.UPDATED
    if statement.startswith("SELECT") and "FROM sequence_runs" in statement:
        return Point.LOOK, None
    return None, None
