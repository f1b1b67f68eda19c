"""Steps, and what makes steps and classes, for the tests of definitions."""

from __future__ import annotations

import datetime
import typing as t
import uuid

from flask_sequence.definition.registry import RunInfo, Step, step

untyped_step: t.Any = step
"""For what the type checkers refuse already."""

RUN = RunInfo(
    id=7,
    uid=uuid.UUID("12345678-1234-5678-1234-567812345678"),
    sequence="ContactForm",
    key="order-17",
    created_at=datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC),
)


class CreateMessage(Step):
    def perform(self) -> None:
        self.data["message_id"] = 1


@step
def assign(data: dict[str, t.Any]) -> str:
    """Give the message to somebody."""
    data["assigned"] = True
    return "assigned"


untyped_assign: t.Any = assign


def a_class(
    name: str = "ContactForm", module: str = "shop.sequences", qualname: str | None = None
) -> type:
    return type(name, (), {"__module__": module, "__qualname__": qualname or name})


def a_step(class_name: str = "SendReceipt", /, **body: t.Any) -> type[Step[t.Any]]:
    body.setdefault("perform", lambda self: None)
    return t.cast("type[Step[t.Any]]", type(class_name, (Step,), body))


def prepared(cls: type[Step[t.Any]], data: dict[str, t.Any] | None = None) -> Step[t.Any]:
    return cls._prepare(RUN, {} if data is None else data, 3)
