"""Types of the public API as a user sees them; read by mypy and pyright, never run."""

from __future__ import annotations

import datetime
import typing as t
import uuid
from typing import assert_type

from celery import Celery
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select

import flask_sequence
from flask_sequence import (
    BaseSequence,
    ConfigError,
    DataError,
    DataTooLargeError,
    DefinitionError,
    FunctionStep,
    InvalidOptionError,
    KeyBusyError,
    MoveRefusedError,
    RunInfo,
    RunNotFoundError,
    Sequence,
    SequenceError,
    SequenceRun,
    Status,
    Step,
    StepInterrupted,
    StepRun,
    StepStatus,
    UnknownSequenceError,
    step,
)
from flask_sequence.broker import embedded_config
from flask_sequence.testing import drain


class Contact(t.TypedDict):
    name: str
    message_id: t.NotRequired[int]


class CreateMessage(Step[Contact]):
    queue = "mail"
    max_retries = None

    def perform(self) -> None:
        assert_type(self.data, Contact)
        assert_type(self.data["name"], str)
        assert_type(self.run, RunInfo)
        assert_type(self.run.id, int | None)
        assert_type(self.run.uid, uuid.UUID)
        assert_type(self.run.sequence, str)
        assert_type(self.run.key, str | None)
        assert_type(self.run.created_at, datetime.datetime)
        assert_type(self.attempt, int)
        assert_type(self.idempotency_key, str)
        self.data["message_id"] = "1"  # type: ignore[typeddict-item] # pyright: ignore
        self.run.key = "other"  # type: ignore[misc] # pyright: ignore


class Untyped(Step):
    async def perform(self) -> None:
        assert_type(self.data, dict[str, t.Any])


class Interrupts(Step):
    def retry_it(self) -> None:
        assert_type(self.retry(), t.NoReturn)

    def retry_later(self) -> t.NoReturn:
        self.retry(OSError(), countdown=5)

    def fail_it(self) -> t.NoReturn:
        self.fail("no such address")

    def finish_it(self) -> t.NoReturn:
        self.finish()

    def wrong(self) -> None:
        self.fail()  # type: ignore[call-arg] # pyright: ignore


@step
def assign(data: dict[str, t.Any]) -> None:
    data["member"] = 1


@step(queue="mail", max_retries=3)
def notify(data: Contact) -> int:
    return len(data["name"])


@step(bind=True, name="receipt")
def send_receipt(self: Step[Contact], data: Contact) -> None:
    assert_type(self.data, Contact)


class ContactForm(BaseSequence):
    steps = (CreateMessage, assign, notify, send_receipt)


class Listed(BaseSequence):
    name = "listed"
    steps = [CreateMessage, assign]


class Wrong(BaseSequence):
    steps = ("CreateMessage",)  # type: ignore[assignment] # pyright: ignore


assert_type(flask_sequence.__version__, str)
assert_type(assign({}), None)
assert_type(notify({"name": "Joel"}), int)
assert_type(notify.call({"name": "Joel"}), dict[str, t.Any])
assert_type(CreateMessage.call({"name": "Joel"}), Contact)
assert_type(Untyped.call({"name": "Joel"}), dict[str, t.Any])
assert_type(ContactForm.name, str)
assert_type(ContactForm.step_names, tuple[str, ...])


def takes(made: FunctionStep[[Contact], int]) -> type[Step[t.Any]]:
    return made.step_class


takes(notify)


def set_up(app: Flask, db: SQLAlchemy, celery: Celery) -> None:
    assert_type(Sequence(app, db, celery), Sequence)
    assert_type(Sequence().init_app(app), None)
    Sequence().init_app(app, db=db, celery=celery)
    assert_type(embedded_config.__name__, str)
    assert_type(drain(app), int)
    assert_type(drain(app, ignore_due=True, max_steps=10), int)
    drain(app, True)  # type: ignore[call-arg] # pyright: ignore


def start(when: datetime.datetime) -> None:
    assert_type(ContactForm.start(name="Joel"), SequenceRun)
    assert_type(ContactForm(name="Joel"), SequenceRun)
    assert_type(ContactForm(), SequenceRun)
    assert_type(ContactForm.start_many([{"name": "Joel"}, {}]), list[int])
    assert_type(ContactForm.start_many({"name": name} for name in "abc"), list[int])
    assert_type(ContactForm.set(key="a", countdown=0.5).start(name="Joel"), SequenceRun)
    assert_type(ContactForm.set(eta=when, queue="a", priority=9).start(), SequenceRun)
    assert_type(ContactForm.set(queue="bulk").start_many([{}]), list[int])
    ContactForm.start(cls=1, self=2)  # Any name can be one of the data.
    ContactForm.set(name="Joel")  # type: ignore[arg-type] # pyright: ignore
    ContactForm.set("a")  # type: ignore[call-arg] # pyright: ignore
    ContactForm.start_many(5)  # type: ignore[arg-type] # pyright: ignore


def read(run: SequenceRun, db: SQLAlchemy) -> None:
    assert_type(run.id, int)
    assert_type(run.uid, uuid.UUID)
    assert_type(run.sequence, str)
    assert_type(run.step, str)
    assert_type(run.status, Status)
    assert_type(run.status.final, bool)
    assert_type(run.data, t.Mapping[str, t.Any])
    assert_type(run.key, str | None)
    assert_type(run.error, str | None)
    assert_type(run.attempt, int)
    assert_type(run.queue, str)
    assert_type(run.due_at, datetime.datetime | None)
    assert_type(run.created_at, datetime.datetime)
    assert_type(run.started_at, datetime.datetime | None)
    assert_type(run.updated_at, datetime.datetime)
    assert_type(run.finished_at, datetime.datetime | None)
    assert_type(run.step_runs, list[StepRun])
    run.data["name"] = "Joel"  # type: ignore[index] # pyright: ignore
    failed = select(SequenceRun).where(SequenceRun.status == Status.FAILED)
    assert_type(db.session.scalars(failed).all(), t.Sequence[SequenceRun])


def move(run: SequenceRun) -> None:
    assert_type(run.retry(), None)
    assert_type(run.cancel(), None)
    assert_type(run.wait(timeout=5), Status)
    assert_type(run.wait(0.5), Status)
    run.wait()  # type: ignore[call-arg] # pyright: ignore


def look_back(attempt: StepRun) -> None:
    assert_type(attempt.run, SequenceRun)
    assert_type(attempt.run_id, int)
    assert_type(attempt.step, str)
    assert_type(attempt.attempt, int)
    assert_type(attempt.status, StepStatus)
    assert_type(attempt.worker, str | None)
    assert_type(attempt.started_at, datetime.datetime | None)
    assert_type(attempt.finished_at, datetime.datetime)
    assert_type(attempt.error, str | None)
    assert_type(attempt.traceback, str | None)


def catch() -> None:
    try:
        ContactForm.start()
    except DataTooLargeError as error:
        is_data_error: DataError = error
        assert_type(is_data_error.path, str)
    except InvalidOptionError as error:
        is_both: tuple[DefinitionError, ValueError] = (error, error)
        print(is_both)
    except ConfigError as error:
        assert_type(error.key, str)
    except UnknownSequenceError as error:
        is_lookup: LookupError = error
        assert_type(error.name, str)
        print(is_lookup)
    except KeyBusyError as error:
        is_timeout: TimeoutError = error
        assert_type(error.key, str)
        assert_type(error.sequence, str)
        print(is_timeout)
    except (RunNotFoundError, MoveRefusedError) as error:
        assert_type(error.run_id, int | None)
    except StepInterrupted as error:
        is_base: SequenceError = error
        is_no_error: BaseException = error.interrupt
        print(is_base, is_no_error)
