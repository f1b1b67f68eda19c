"""What happens to a message after it was sent. Knows neither the application nor the form."""

from __future__ import annotations

import typing as t

from sqlalchemy import and_, func, select, update

from flask_sequence import BaseSequence, Step

from . import mail
from .extensions import db
from .models import Member, Message, now


class ContactData(t.TypedDict):
    """What the steps of a contact form share."""

    name: str
    email: str
    subject: str
    text: str
    message_id: t.NotRequired[int]


class CreateMessage(Step[ContactData]):
    """Make the message's row."""

    def perform(self) -> None:
        """Make it, unless the same form was sent again after its first run had finished."""
        nonce = self.run.key or str(self.run.uid)
        earlier = db.session.scalar(select(Message).where(Message.nonce == nonce))
        if earlier is not None and earlier.run_id != self.run.id:
            self.finish()
        message = Message(
            nonce=nonce,
            name=self.data["name"],
            email=self.data["email"],
            subject=self.data["subject"],
            text=self.data["text"],
            run_id=self.run.id,
        )
        db.session.add(message)
        db.session.flush()
        self.data["message_id"] = message.id
        self.data["text"] = ""  # From here on it stands in the message.


class AssignMember(Step[ContactData]):
    """Give the message to the member with the fewest open ones."""

    def perform(self) -> None:
        """Count and choose while no other worker does."""
        message_id = self.data["message_id"]
        _lock_team(message_id)
        is_open = and_(Message.member_id == Member.id, Message.answered_at.is_(None))
        member_id = db.session.scalar(
            select(Member.id)
            .outerjoin(Message, is_open)
            .group_by(Member.id)
            .order_by(func.count(Message.id), Member.id)
            .limit(1)
        )
        if member_id is None:
            self.fail("The team has no members. Run `flask add-members`, then retry the run.")
        _assign(message_id, member_id)


class MailStep(Step[ContactData]):
    """What the steps that send a mail share: a failing server is tried again for some hours."""

    autoretry_for = (OSError,)
    max_retries = 30
    time_limit = 60


class NotifyMember(MailStep):
    """Tell the member about the message."""

    def perform(self) -> None:
        """Send the mail; after a crash it is the same one again."""
        message = db.session.get_one(Message, self.data["message_id"])
        if message.member is None:
            self.fail("The message has no member to notify.")
        mail.send(mail.notification(message, message.member), self.idempotency_key)


class SendReceipt(MailStep):
    """Tell the sender that the message arrived, and who answers it."""

    def perform(self) -> None:
        """Send the mail; after a crash it is the same one again."""
        message = db.session.get_one(Message, self.data["message_id"])
        mail.send(mail.receipt(message), self.idempotency_key)
        message.receipt_at = now()


class ContactForm(BaseSequence):
    """From the sent form to the mail that says so."""

    steps = (CreateMessage, AssignMember, NotifyMember, SendReceipt)


def _lock_team(message_id: int) -> None:
    # SQLite has one lock, and takes it at the first write; the others lock the members' rows.
    _assign(message_id, None)
    db.session.execute(select(Member.id).order_by(Member.id).with_for_update()).all()


def _assign(message_id: int, member_id: int | None) -> None:
    db.session.execute(
        update(Message).where(Message.id == message_id).values(member_id=member_id),
        execution_options={"synchronize_session": False},
    )
