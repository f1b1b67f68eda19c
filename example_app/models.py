"""The team, the messages that it has to answer, and what guards the pages."""

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
    """Return the time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def reference_of(nonce: str) -> str:
    """Return the beginning of a nonce, as people read it to each other.

    :param nonce: Of the form, and so of the message and of its run.
    """
    return nonce[:8].upper()


class Member(db.Model):  # type: ignore[name-defined, misc]
    """Someone on the team, who answers messages."""

    __tablename__ = "members"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    email: Mapped[str] = mapped_column(String(EMAIL_LENGTH), unique=True)


class Message(db.Model):  # type: ignore[name-defined, misc]
    """What a visitor wrote; open until a member marks it as answered."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(primary_key=True)
    nonce: Mapped[str] = mapped_column(String(64), unique=True)
    """From the form it was sent by; the key of its run."""
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    email: Mapped[str] = mapped_column(String(EMAIL_LENGTH))
    subject: Mapped[str] = mapped_column(String(SUBJECT_LENGTH))
    text: Mapped[str] = mapped_column(Text())
    created_at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True), default=now)
    receipt_at: Mapped[datetime.datetime | None] = mapped_column(DateTime(timezone=True))
    answered_at: Mapped[datetime.datetime | None] = mapped_column(DateTime(timezone=True))
    member_id: Mapped[int | None] = mapped_column(ForeignKey("members.id"), index=True)
    # Finished and cancelled runs are deleted after a week; the message stays.
    run_id: Mapped[int | None] = mapped_column(
        ForeignKey("sequence_runs.id", ondelete="SET NULL"), index=True
    )

    member: Mapped[Member | None] = relationship()
    run: Mapped[SequenceRun | None] = relationship()

    @property
    def reference(self) -> str:
        """What visitor and team call the message by."""
        return reference_of(self.nonce)


class Login(db.Model):  # type: ignore[name-defined, misc]
    """A browser that gave the team's password and has not logged out."""

    __tablename__ = "logins"

    token: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Kept in the browser's cookie, too."""
    signature: Mapped[str] = mapped_column(String(64))
    """Of the password that was given; another password has another."""
    created_at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True), default=now)


class Tries(db.Model):  # type: ignore[name-defined, misc]
    """How often something was tried by someone within an hour."""

    __tablename__ = "tries"

    hour: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Counted from 1970."""
    what: Mapped[str] = mapped_column(String(16), primary_key=True)
    who: Mapped[str] = mapped_column(String(EMAIL_LENGTH), primary_key=True)
    number: Mapped[int]
