"""The team's password, and who has given it. Without ``INBOX_PASSWORD`` nobody gets in.

A login is a row, and the cookie names it: so it ends at the logout, after some hours, or when the
password is changed, even for a browser that has kept a copy of the cookie.
"""

from __future__ import annotations

import datetime
import functools
import hmac
import secrets
import typing as t

from flask import (
    Blueprint,
    abort,
    current_app,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.typing import ResponseReturnValue
from itsdangerous import Signer
from sqlalchemy import delete, select

from .brake import is_too_often, visitor_network
from .extensions import db
from .forms import is_token, token_for
from .models import Login, now

LOGIN_TIME = datetime.timedelta(hours=12)

team = Blueprint("team", __name__, url_prefix="/inbox")
ViewT = t.TypeVar("ViewT", bound=t.Callable[..., ResponseReturnValue])


def team_only(view: ViewT) -> ViewT:
    """Let only those in who gave the password.

    :param view: The view.
    """

    @functools.wraps(view)
    def guarded(*args: t.Any, **kwargs: t.Any) -> ResponseReturnValue:
        if not _is_logged_in():
            return redirect(url_for("team.login"))
        return view(*args, **kwargs)

    return t.cast(ViewT, guarded)


def check_token(purpose: str) -> None:
    """Refuse a form that is not ours.

    :param purpose: What it is for.
    """
    if not is_token(request.form.get("token", ""), purpose):
        abort(400, "This page was open for too long. Go back, reload it, and try again.")


@team.get("/login")
def login() -> ResponseReturnValue:
    """Ask for the password."""
    return _login_page(200 if _password() else 403)


@team.post("/login")
def check_password() -> ResponseReturnValue:
    """Open the inbox for this browser, if the password is right."""
    check_token("login")
    if is_too_often("login", visitor_network(), current_app.config["LOGINS_PER_HOUR"]):
        return _login_page(429, "Too many attempts. Please try again in an hour.")
    given = request.form.get("password", "").encode()
    if not _password() or not hmac.compare_digest(given, _password().encode()):
        return _login_page(403, "Wrong password.")
    db.session.execute(delete(Login).where(Login.created_at < now() - LOGIN_TIME))
    session["login"] = secrets.token_urlsafe()
    db.session.add(Login(token=session["login"], signature=_signature()))
    db.session.commit()
    return redirect(url_for("inbox.messages"), 303)


@team.post("/logout")
@team_only
def logout() -> ResponseReturnValue:
    """Close the inbox for this browser, and for every copy of its cookie."""
    check_token("inbox")
    db.session.execute(delete(Login).where(Login.token == session.pop("login")))
    db.session.commit()
    return redirect(url_for("team.login"), 303)


def _login_page(code: int, problem: str = "") -> ResponseReturnValue:
    page = render_template(
        "login.html", closed=not _password(), problem=problem, token=token_for("login")
    )
    return page, code


def _is_logged_in() -> bool:
    if not _password() or "login" not in session:
        return False
    valid = select(Login.token).where(
        Login.token == session["login"],
        Login.signature == _signature(),
        Login.created_at > now() - LOGIN_TIME,
    )
    return db.session.scalar(valid) is not None


def _password() -> str:
    return current_app.config["INBOX_PASSWORD"] or ""


def _signature() -> str:
    signer = Signer(current_app.config["SECRET_KEY"], salt="example_app.password")
    return signer.get_signature(_password()).decode()
