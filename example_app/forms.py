"""What visitors send: is it complete, is it theirs, and was it sent once."""

from __future__ import annotations

import re
import secrets
import typing as t
import unicodedata

from flask import current_app, session
from itsdangerous import BadData, URLSafeTimedSerializer

from .models import EMAIL_LENGTH, NAME_LENGTH, SUBJECT_LENGTH, TEXT_LENGTH

TOKEN_SECONDS = 24 * 3600
LIMITS = {
    "name": NAME_LENGTH,
    "email": EMAIL_LENGTH,
    "subject": SUBJECT_LENGTH,
    "text": TEXT_LENGTH,
}
MISSING = {
    "name": "Please tell us your name.",
    "email": "Please give the address that we can answer to.",
    "subject": "Please say in a few words what it is about.",
    "text": "Please write your message.",
}
LOCAL_PART = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(\.[\w!#$%&'*+/=?^`{|}~-]+)*", re.ASCII)
DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]", re.I)


def read_contact_form(form: t.Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Give what was typed, tidied, and what is wrong with it, by field.

    :param form: The posted fields.
    """
    values = {field: form.get(field, "").strip() for field in LIMITS}
    values["text"] = _plain(form.get("text", ""))
    errors = {
        field: problem for field, value in values.items() if (problem := _problem(field, value))
    }
    if "email" not in errors:
        values["email"] = _ascii_address(values["email"])
    return values, errors


def _plain(text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = (c for c in lines if c in "\n\t" or unicodedata.category(c) != "Cc")
    return "".join(kept).lstrip("\n").rstrip()


def _problem(field: str, value: str) -> str | None:
    if not value:
        return MISSING[field]
    if len(value) > LIMITS[field]:
        return f"This is {len(value):,} characters long; at most {LIMITS[field]:,} are possible."
    if field != "text" and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value):
        return "Please write this in one line."
    if field == "email" and not _is_address(_ascii_address(value)):
        return "This is not an e-mail address we can answer to, such as ada@example.com."
    return None


def _ascii_address(address: str) -> str:
    local, at, domain = address.rpartition("@")
    try:
        return local + at + domain.encode("idna").decode("ascii")
    except UnicodeError:
        return address


def _is_address(address: str) -> bool:
    local, _, domain = address.rpartition("@")
    fits = len(local) <= 64 and len(address) <= EMAIL_LENGTH
    return fits and bool(LOCAL_PART.fullmatch(local) and DOMAIN.fullmatch(domain))


def new_nonce() -> str:
    """Give a text that no other form has."""
    return secrets.token_urlsafe(16)


def token_for(purpose: str) -> str:
    """Give the proof that a form was made by us, for this visitor; other sites have none.

    :param purpose: What the form is for; the proof holds for nothing else.
    """
    visitor = session.setdefault("visitor", secrets.token_urlsafe(16))
    return str(_serializer().dumps([visitor, purpose]))


def is_token(token: str, purpose: str) -> bool:
    """Tell whether a token came from :func:`token_for`, for this visitor, within a day.

    :param token: The text from the form.
    :param purpose: What the form is for.
    """
    try:
        signed = _serializer().loads(token, max_age=TOKEN_SECONDS)
    except BadData:
        return False
    return bool(signed == [session.get("visitor"), purpose])


def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(current_app.config["SECRET_KEY"], salt="example_app.form")
