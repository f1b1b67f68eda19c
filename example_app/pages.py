"""The visitor's pages: the form, and how far its message has come."""

from __future__ import annotations

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
from sqlalchemy import select

from flask_sequence import SequenceRun

from .brake import is_too_often, visitor_network
from .extensions import db
from .forms import LIMITS, is_token, new_nonce, read_contact_form, token_for
from .models import Message
from .progress import visitor_progress
from .sequences import ContactForm

REMEMBERED = 20

pages = Blueprint("pages", __name__)


@pages.get("/")
def contact() -> ResponseReturnValue:
    """Show an empty form, with a new nonce."""
    return _form(new_nonce(), {}, {})


@pages.post("/")
def send() -> ResponseReturnValue:
    """Start the run, once for each form however often it is sent."""
    nonce = request.form.get("nonce", "")
    values, errors = read_contact_form(request.form)
    if not is_token(request.form.get("token", ""), f"contact {nonce}"):
        errors["form"] = "This page was open for too long, or cookies are off. Please send again."
        return _form(new_nonce(), values, errors), 400
    if errors:
        return _form(nonce, values, errors), 422
    run_id = _earlier_run(nonce)
    if run_id is None:
        if _is_too_often(values["email"]):
            errors["form"] = "That is many messages in a short time. Please try again in an hour."
            return _form(nonce, values, errors), 429
        run_id = _start(nonce, values)
    sent = [number for number in session.get("runs", []) if number != run_id]
    session["runs"] = [*sent, run_id][-REMEMBERED:]
    return redirect(url_for("pages.thanks", run_id=run_id), 303)


def _is_too_often(email: str) -> bool:
    # Also by address, whoever sends them: nobody's mailbox is to be filled with receipts.
    limit = current_app.config["MESSAGES_PER_HOUR"]
    return is_too_often("message", visitor_network(), limit) or is_too_often(
        "receipt", email.lower(), limit
    )


def _earlier_run(nonce: str) -> int | None:
    return db.session.scalar(select(Message.run_id).where(Message.nonce == nonce))


def _start(nonce: str, values: dict[str, str]) -> int:
    run = ContactForm.set(key=nonce).start(**values)
    db.session.commit()
    return run.id


@pages.get("/thanks/<int:run_id>")
def thanks(run_id: int) -> ResponseReturnValue:
    """Show each step as it finishes, to the visitor who sent the message."""
    return render_template("thanks.html", run_id=run_id, **_progress(run_id))


@pages.get("/thanks/<int:run_id>.json")
def thanks_json(run_id: int) -> ResponseReturnValue:
    """Return the same as JSON, for the page's script."""
    return jsonify(_progress(run_id))


def _form(nonce: str, values: dict[str, str], errors: dict[str, str]) -> str:
    return render_template(
        "form.html",
        nonce=nonce,
        token=token_for(f"contact {nonce}"),
        values=values,
        errors=errors,
        limits=LIMITS,
    )


def _progress(run_id: int) -> dict[str, t.Any]:
    if run_id not in session.get("runs", []):
        abort(404)
    return visitor_progress(db.session.get(SequenceRun, run_id))
