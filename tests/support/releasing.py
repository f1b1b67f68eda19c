"""What an application does with the tables, as a program that several environments run in turn.

``python -m tests.support.releasing URL FOLDER VERB...`` answers by a line of JSON, which holds the
answer to each verb, and the release of SQLAlchemy.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import sys
import typing as t
import uuid
from decimal import Decimal
from pathlib import Path

import flask_migrate
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from flask_sequence import BaseSequence, SequenceRun, Step
from flask_sequence.definition.data import encode
from flask_sequence.engine.connections import own_transaction
from flask_sequence.rows import moves, upkeep
from flask_sequence.rows.migration import write_revision
from flask_sequence.rows.models import MODELS, Base, runs
from flask_sequence.runtime import runtime_of
from flask_sequence.testing import drain
from flask_sequence.worker.duties import FREE_ORPHANS, PURGE
from tests.support.application import create_app, db
from tests.support.keeping import Keeping
from tests.support.stepping import Stepping

DATA: dict[str, t.Any] = {
    "text": "żółw 🐢 \x1f",
    "zone": datetime.datetime(2026, 3, 4, 5, 6, 7, 8, datetime.timezone(datetime.timedelta(0, 7))),
    "day": datetime.date(2026, 3, 4),
    "price": Decimal("12.340"),
    "uuid": uuid.UUID(int=2**127 + 1),
    "bytes": b"\x00\xff",
    "number": 2**70,
    "floats": [1e16, -0.0, 0.1],
    "nested": {"": [None, True, {}]},
}
KEY = "order-1"
GONE = "gone"
"""The worker that has claimed a run and is gone."""
is_out_of_order = False
"""Whether steps that need something else fail."""


class One(Step):
    def perform(self) -> None:
        self.data["done"] = ["One"]


class Two(Step):
    autoretry_for = ()

    def perform(self) -> None:
        if is_out_of_order:
            raise RuntimeError("out of order 🎉")
        self.data["done"] = [*self.data["done"], "Two"]


class Pair(BaseSequence):
    steps = (One, Two)


class Keyed(Pair):
    pass


class User:
    """The application, and what it does.

    :param url: The address of its database.
    :param folder: Its folder.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.migrations = str(folder / "migrations")
        self.app = create_app(url, instance_path=folder / "instance", SEQUENCE_RETENTION=None)
        self.runtime = runtime_of(self.app)

    @functools.cached_property
    def stepping(self) -> Stepping:
        """What performs runs in place; there must be tables for it."""
        return Stepping(self.app)

    def create(self) -> None:
        """Create the tables at once."""
        with self.app.app_context():
            db.create_all()

    def migrate(self) -> None:
        """Create the tables by the migration that the package writes."""
        write_revision(self.app, self.migrations)
        with self.app.app_context():
            flask_migrate.upgrade(self.migrations)

    def differences(self) -> list[str]:
        """Return what autogenerate finds that is not as these tables are."""
        names = {t.cast(sa.Table, model.__table__).name for model in MODELS}

        def is_ours(item: t.Any, name: str, kind: str, *rest: t.Any) -> bool:
            return kind != "table" or name in names

        options = {"compare_type": True, "include_object": is_ours}
        with self.stepping.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            return [repr(found) for found in compare_metadata(context, Base.metadata)]

    def begin(self) -> dict[str, t.Any]:
        """Start runs, bring each as far as its name says, and return what must be found."""
        global is_out_of_order
        is_out_of_order = True
        notes: dict[str, t.Any] = {}
        with self.app.app_context():
            for name in ("waiting", "cancelled", "half", "failed", "held"):
                self.start(name, Pair, notes)
            self.start("keyed", Keyed.set(key=KEY, queue="mail", priority=3), notes)
            for run_id in Pair.start_many([{**DATA, "name": "many"}] * 2):
                self.start_noted(notes, f"many {run_id}", run_id)
            db.session.commit()
        self.half_perform(notes)
        (self.folder / "notes.json").write_text(json.dumps(notes))
        return notes

    def start(self, name: str, sequence: t.Any, notes: dict[str, t.Any]) -> None:
        """Start a run, and note what goes in."""
        run: SequenceRun = sequence.start(**DATA, name=name)
        uid = run.uid.hex  # as it goes in: the flush may read it back
        db.session.flush()
        notes[name] = {"id": run.id, "uid": uid, "data": stored({**DATA, "name": name})}

    def start_noted(self, notes: dict[str, t.Any], name: str, run_id: int) -> None:
        """Note a run that was started with others, whose UUID is known to the database only."""
        uid = db.session.scalars(sa.select(SequenceRun.uid).where(runs.c.id == run_id)).one()
        notes[name] = {"id": run_id, "uid": uid.hex, "data": stored({**DATA, "name": "many"})}

    def half_perform(self, notes: dict[str, t.Any]) -> None:
        """Perform a step of some, let one fail, and let a worker that is gone have claimed one."""
        for name in ("half", "failed", "failed"):
            self.stepping.advance(notes[name]["id"])
        for name in ("half", "failed"):
            notes[name]["data"] = stored({**DATA, "name": name, "done": ["One"]})
        with own_transaction(self.runtime) as connection:
            upkeep.renew_worker(connection, GONE, host="host", pid=4711, lease=-1)
            moves.claim(connection, notes["held"]["id"], 0, worker_id=GONE, pid=4711)

    def find(self) -> dict[str, t.Any]:
        """Look for the noted runs by their UUIDs, and return what is there."""
        notes: dict[str, t.Any] = json.loads((self.folder / "notes.json").read_text())
        with self.app.app_context():
            return {name: found(noted["uid"]) for name, noted in notes.items()}

    def finish(self) -> dict[str, t.Any]:
        """Start with the key, cancel, retry, take over, perform what is left; return the runs."""
        notes: dict[str, t.Any] = json.loads((self.folder / "notes.json").read_text())
        with self.app.app_context():
            again = Keyed.set(key=KEY).start(name="not this one")
            assert again.id == notes["keyed"]["id"], again
            for name, verb in (("cancelled", SequenceRun.cancel), ("failed", SequenceRun.retry)):
                verb(db.session.get_one(SequenceRun, notes[name]["id"]))
            db.session.commit()
        Keeping(self.runtime).do(FREE_ORPHANS)
        drain(self.app, ignore_due=True)
        return self.find()

    def purge(self) -> int:
        """Delete all that has ended, and return how many runs are left."""
        self.runtime.settings = dataclasses.replace(self.runtime.settings, retention_seconds=0.0)
        Keeping(self.runtime).do(PURGE)
        with self.stepping.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(runs)).scalar_one()


def stored(data: t.Mapping[str, t.Any]) -> str:
    """Return data as text that is the same where values and types are."""
    return json.dumps(json.loads(encode(data)), sort_keys=True)


def found(uid: str) -> dict[str, t.Any]:
    """Read a run by its UUID, and its history."""
    asked = sa.select(SequenceRun).where(SequenceRun.uid == uuid.UUID(uid))
    run = db.session.scalars(asked).one()
    return {
        "id": run.id,
        "uid": run.uid.hex,
        "data": stored(run.data),
        "status": run.status,
        "step": run.step,
        "error": run.error,
        "key": run.key,
        "options": run.options and stored(run.options),
        "is_recent": datetime.datetime.now(datetime.UTC) - run.created_at
        < datetime.timedelta(hours=1),
        "history": [[told.step, told.attempt, told.status] for told in run.step_runs],
    }


def main(url: str, folder: str, *verbs: str) -> None:
    """Do what is asked for, and answer."""
    user = User(url, Path(folder))
    answers = {verb: getattr(user, verb)() for verb in verbs}
    print(json.dumps({"release": sa.__version__, **answers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
