"""The team's page. It is closed unless ``INBOX_PASSWORD`` is set."""

from __future__ import annotations

import functools
import hmac
import typing as t

from flask import (
    Blueprint,
    abort,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_sqlalchemy.pagination import Pagination
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from .extensions import db
from .forms import is_token, token_for
from .models import Message, now
from .sequences import ContactForm

PAGE_SIZE = 100
LAST_PAGE = 1_000_000
FILTERS = {
    "open": Message.done_at.is_(None),
    "done": Message.done_at.is_not(None),
    "all": Message.id.is_not(None),
}

inbox = Blueprint("inbox", __name__, url_prefix="/inbox")
ViewT = t.TypeVar("ViewT", bound=t.Callable[..., ResponseReturnValue])


def team_only(view: ViewT) -> ViewT:
    """Let only those in who gave the password.

    :param view: The view.
    """

    @functools.wraps(view)
    def guarded(*args: t.Any, **kwargs: t.Any) -> ResponseReturnValue:
        if not _password() or not session.get("team"):
            return redirect(url_for("inbox.login"))
        return view(*args, **kwargs)

    return t.cast(ViewT, guarded)


def check_token(purpose: str) -> None:
    """Refuse a form that is not ours.

    :param purpose: What it is for.
    """
    if not is_token(request.form.get("token", ""), purpose):
        abort(400, "This page was open for too long. Go back, reload it, and try again.")


@inbox.get("/login")
def login() -> ResponseReturnValue:
    """Ask for the password."""
    closed = not _password()
    return render_template("login.html", closed=closed, token=token_for("login")), (
        403 if closed else 200
    )


@inbox.post("/login")
def check_password() -> ResponseReturnValue:
    """Open the inbox for this browser, if the password is right."""
    check_token("login")
    given = request.form.get("password", "").encode()
    if not _password() or not hmac.compare_digest(given, _password().encode()):
        return render_template("login.html", wrong=True, token=token_for("login")), 403
    session["team"] = True
    return redirect(url_for("inbox.messages"), 303)


@inbox.post("/logout")
@team_only
def logout() -> ResponseReturnValue:
    """Close the inbox for this browser."""
    check_token("inbox")
    del session["team"]
    return redirect(url_for("inbox.login"), 303)


@inbox.get("")
@team_only
def messages() -> ResponseReturnValue:
    """List messages, newest first."""
    shown = _filter()
    return render_template(
        "inbox.html",
        page=_messages(shown),
        shown=shown,
        filters=list(FILTERS),
        steps=len(ContactForm.step_names),
        steps_done=steps_done,
        token=token_for("inbox"),
    )


@inbox.get("/messages.json")
@team_only
def messages_json() -> ResponseReturnValue:
    """Give the same as JSON."""
    page = _messages(_filter())
    listed = [_as_dict(message) for message in page.items]
    return jsonify(messages=listed, page=page.page, pages=page.pages, total=page.total)


@inbox.post("/<int(max=2147483647):message_id>/done")
@team_only
def mark_as_done(message_id: int) -> ResponseReturnValue:
    """Mark a message as done; its member has one less."""
    check_token("inbox")
    message = db.get_or_404(Message, message_id)
    message.done_at = message.done_at or now()
    db.session.commit()
    return redirect(url_for("inbox.messages", show=_filter()), 303)


def steps_done(message: Message) -> int:
    """Tell how many steps of a message's run are finished.

    :param message: The message.
    """
    names = ContactForm.step_names
    if message.run is None or message.run.status == "finished":
        return len(names)
    return names.index(message.run.step) if message.run.step in names else 0


def _password() -> str:
    return current_app.config["INBOX_PASSWORD"] or ""


def _filter() -> str:
    shown = request.values.get("show", "open")
    return shown if shown in FILTERS else "open"


def _messages(shown: str) -> Pagination:
    query = (
        select(Message)
        .options(joinedload(Message.member), joinedload(Message.run))
        .where(FILTERS[shown])
        .order_by(Message.id.desc())
    )
    number = min(max(request.args.get("page", 1, type=int), 1), LAST_PAGE)
    return db.paginate(query, page=number, per_page=PAGE_SIZE, error_out=False)


def _as_dict(message: Message) -> dict[str, t.Any]:
    return {
        "id": message.id,
        "nonce": message.nonce,
        "name": message.name,
        "email": message.email,
        "subject": message.subject,
        "text": message.text,
        "member": message.member.name if message.member else None,
        "done": message.done_at is not None,
        "status": message.run.status if message.run else "finished",
        "steps_done": steps_done(message),
    }
