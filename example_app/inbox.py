"""The team's page: what is to be answered, and what is stuck."""

from __future__ import annotations

import typing as t

from flask import Blueprint, abort, jsonify, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_sqlalchemy.pagination import Pagination
from sqlalchemy import case, func, select
from sqlalchemy.orm import joinedload

from flask_sequence import BusyError, MoveRefusedError, SequenceRun, Status

from .extensions import db
from .forms import token_for
from .models import Message, now, reference_of
from .progress import state_of, steps_done
from .sequences import ContactForm
from .team import check_token, team_only

PAGE_SIZE = 100
LAST_PAGE = 1_000_000
FILTERS = {
    "open": Message.answered_at.is_(None),
    "answered": Message.answered_at.is_not(None),
    "all": Message.id.is_not(None),
}
STUCK_FIRST = case((SequenceRun.status.in_([Status.FAILED, Status.BLOCKED]), 0), else_=1)
# A run makes its message in its first step. Until then only the run is there.
ARRIVING = (
    SequenceRun.sequence == ContactForm.name,
    SequenceRun.status.in_([status for status in Status if not status.final]),
    ~select(Message.id).where(Message.run_id == SequenceRun.id).exists(),
)
LABELS = {
    "CreateMessage": "Save the message",
    "AssignMember": "Assign it",
    "NotifyMember": "Notify the member",
    "SendReceipt": "Send the receipt",
}

inbox = Blueprint("inbox", __name__, url_prefix="/inbox")


@inbox.get("")
@team_only
def messages() -> ResponseReturnValue:
    """List messages: the stuck ones first, then the newest."""
    shown = _filter()
    page = _messages(shown)
    first = page.page == 1 and shown != "answered"
    return render_template(
        "inbox.html",
        page=page,
        arriving=_arriving() if first else [],
        shown=shown,
        counts=_counts(),
        labels=LABELS,
        steps=len(ContactForm.step_names),
        steps_done=steps_done,
        state_of=state_of,
        reference_of=reference_of,
        now=now(),
        token=token_for("inbox"),
    )


@inbox.get("/messages.json")
@team_only
def messages_json() -> ResponseReturnValue:
    """Return the messages as JSON."""
    page = _messages(_filter())
    listed = [_as_dict(message) for message in page.items]
    return jsonify(messages=listed, page=page.page, pages=page.pages, total=page.total)


@inbox.post("/<int(max=2147483647):message_id>/answered")
@team_only
def mark_as_answered(message_id: int) -> ResponseReturnValue:
    """Mark a message as answered; its member has one less."""
    check_token("inbox")
    message = db.get_or_404(Message, message_id)
    message.answered_at = message.answered_at or now()
    db.session.commit()
    return redirect(url_for("inbox.messages", show=_filter()), 303)


@inbox.post("/runs/<int(max=9223372036854775807):run_id>/retry")
@team_only
def try_again(run_id: int) -> ResponseReturnValue:
    """Resume a failed run at its failed step."""
    check_token("inbox")
    query = select(SequenceRun).filter_by(id=run_id, sequence=ContactForm.name)
    run = db.first_or_404(query)
    try:
        run.retry()
    except MoveRefusedError:  # A colleague was quicker; the inbox shows what has become of it.
        db.session.rollback()
    except BusyError:
        abort(503, "This message is being worked on right now. Please try again in a minute.")
    db.session.commit()
    return redirect(url_for("inbox.messages", show=_filter()), 303)


def _filter() -> str:
    shown = request.values.get("show", "open")
    return shown if shown in FILTERS else "open"


def _messages(shown: str) -> Pagination:
    query = (
        select(Message)
        .outerjoin(Message.run)
        .options(joinedload(Message.member), joinedload(Message.run))
        .where(FILTERS[shown])
        .order_by(STUCK_FIRST, Message.id.desc())
    )
    number = min(max(request.args.get("page", 1, type=int), 1), LAST_PAGE)
    return db.paginate(query, page=number, per_page=PAGE_SIZE, error_out=False)


def _arriving() -> t.Sequence[SequenceRun]:
    query = select(SequenceRun).where(*ARRIVING).limit(PAGE_SIZE)
    return db.session.scalars(query.order_by(STUCK_FIRST, SequenceRun.id.desc())).all()


def _counts() -> dict[str, int]:
    messages = select(func.count(), func.count(Message.answered_at)).select_from(Message)
    every, answered = db.session.execute(messages).one()
    runs = select(func.count()).select_from(SequenceRun).where(*ARRIVING)
    every += db.session.scalars(runs).one()
    return {"open": every - answered, "answered": answered, "all": every}


def _as_dict(message: Message) -> dict[str, t.Any]:
    return {
        "id": message.id,
        "nonce": message.nonce,
        "name": message.name,
        "email": message.email,
        "subject": message.subject,
        "text": message.text,
        "member": message.member.name if message.member else None,
        "answered": message.answered_at is not None,
        "receipt": message.receipt_at is not None,
        "status": message.run.status if message.run else None,
        "steps_done": steps_done(message.run) if message.run else None,
    }
