"""The team's members and the messages that they have to answer."""

from __future__ import annotations

import datetime

from sqlalchemy import DateTime, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from flask_sequence import SequenceRun

from .extensions import db

NAME_LENGTH = 80
EMAIL_LENGTH = 254
SUBJECT_LENGTH = 150
TEXT_LENGTH = 20_000


def now() -> datetime.datetime:
    """Give the time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


class Member(db.Model):  # type: ignore[name-defined, misc]
    """Someone of the team, who answers messages."""

    __tablename__ = "members"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    email: Mapped[str] = mapped_column(String(EMAIL_LENGTH), unique=True)


class Message(db.Model):  # type: ignore[name-defined, misc]
    """What a visitor wrote; open until a member marks it as done."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(primary_key=True)
    nonce: Mapped[str] = mapped_column(String(64), unique=True)
    """From the form it was sent by; the key of its run."""
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    email: Mapped[str] = mapped_column(String(EMAIL_LENGTH))
    subject: Mapped[str] = mapped_column(String(SUBJECT_LENGTH))
    text: Mapped[str] = mapped_column(Text())
    created_at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True), default=now)
    done_at: Mapped[datetime.datetime | None] = mapped_column(DateTime(timezone=True))
    member_id: Mapped[int | None] = mapped_column(ForeignKey("members.id"), index=True)
    # Finished runs are deleted after a week; the message stays.
    run_id: Mapped[int | None] = mapped_column(
        ForeignKey("sequence_runs.id", ondelete="SET NULL"), index=True
    )

    member: Mapped[Member | None] = relationship()
    run: Mapped[SequenceRun | None] = relationship()
