"""Types of steps as a user sees them; read by mypy and pyright, never run."""

from __future__ import annotations

import typing as t
import uuid
from typing import assert_type

from flask_sequence.definition.registry import FunctionStep, RunInfo, Step, step


class Order(t.TypedDict, total=False):
    name: str
    total: int


class CreateMessage(Step):
    queue = "mail"
    priority = 5
    time_limit = 60
    soft_time_limit = 50.5
    autoretry_for = (OSError,)
    dont_autoretry_for = (TimeoutError, ConnectionError)
    max_retries = None
    retry_backoff = True
    retry_backoff_max = 30
    retry_jitter = False
    default_retry_delay = 5

    def perform(self) -> None:
        assert_type(self.data, dict[str, t.Any])
        assert_type(self.run, RunInfo)
        assert_type(self.run.id, int | None)
        assert_type(self.run.uid, uuid.UUID)
        assert_type(self.run.key, str | None)
        assert_type(self.attempt, int)
        assert_type(self.name, str)
        assert_type(self.idempotency_key, str)


class Pay(Step[Order]):
    async def perform(self) -> None:
        assert_type(self.data, Order)
        assert_type(self.data.get("total"), int | None)
        self.data["total"] = 5
        self.data["total"] = "5"  # type: ignore[typeddict-item] # pyright: ignore
        self.data["colour"] = "red"  # type: ignore[typeddict-unknown-key] # pyright: ignore


class Refuse(Step):
    def perform(self) -> t.NoReturn:
        match self.attempt:
            case 1:
                self.retry()
            case 2:
                self.retry(OSError(), countdown=1.5)
            case 3:
                self.fail("too often")
            case _:
                self.finish()


assert_type(CreateMessage.call({"name": "Joel"}), dict[str, t.Any])
assert_type(Pay.call({"name": "Joel"}), Order)
Pay.call(Order(name="Joel"))
CreateMessage.call("Joel")  # type: ignore[arg-type] # pyright: ignore


@step
def assign(data: dict[str, t.Any]) -> int:
    return len(data)


@step(queue="mail", max_retries=3, name="receipt", autoretry_for=(OSError,))
def send(data: Order) -> None:
    assert_type(data.get("total"), int | None)


@step(bind=True)
def notify(self: Step[Order], data: Order) -> None:
    assert_type(self.data, Order)


@step
async def fetch(data: dict[str, t.Any]) -> str:
    return str(data)


assert_type(assign({}), int)
assert_type(assign.call({}), dict[str, t.Any])
assert_type(assign.name, str)
assert_type(assign.step_class, type[Step[t.Any]])
assert_type(send({"total": 1}), None)
assert_type(send.call({"total": 1}), dict[str, t.Any])
assign()  # type: ignore[call-arg] # pyright: ignore
assign("Joel")  # type: ignore[arg-type] # pyright: ignore
step(queue=5)  # type: ignore[call-overload] # pyright: ignore
step(colour="red")  # type: ignore[call-overload] # pyright: ignore


async def awaited() -> None:
    assert_type(await fetch({}), str)


def by_hand(ready: Step[Order], data: Order) -> None:
    notify(ready, data)
    notify(data)  # type: ignore[call-arg, arg-type] # pyright: ignore


def takes(made: FunctionStep[[dict[str, t.Any]], int]) -> None:
    assert_type(made({}), int)


takes(assign)
