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
    "email": "Please tell us the address that we can reply to.",
    "subject": "Please say in a few words what it is about.",
    "text": "Please write your message.",
}
LOCAL_PART = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(\.[\w!#$%&'*+/=?^`{|}~-]+)*", re.ASCII)
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN = re.compile(rf"({LABEL}\.)+(?=[a-z]){LABEL}", re.ASCII | re.IGNORECASE)
CONTROLS = ("Cc", "Zl", "Zp")
# They join letters of Persian and Hindi, and make one emoji of several.
JOINERS = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
# Letters and a symbol by their category, and yet there is nothing to see.
BLANK = "\u115f\u1160\u2800\u3164\uffa0"


def read_contact_form(form: t.Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what was typed, tidied, and what is wrong with it, by field.

    :param form: The posted fields.
    """
    values = {field: tidy_line(form.get(field, "")) for field in ("name", "email", "subject")}
    values["text"] = _tidy_text(form.get("text", ""))
    errors = {
        field: problem for field, value in values.items() if (problem := find_problem(field, value))
    }
    if "email" not in errors:
        values["email"] = _ascii_address(values["email"])
    return values, errors


def tidy_line(text: str) -> str:
    """Compose what is composed of several characters, and leave out what cannot be seen.

    Marks of direction are among it: they would turn the letters round of what is shown beside.
    Line breaks and other controls stay: :func:`find_problem` refuses them.

    :param text: What was typed into a field of one line.
    """
    text = unicodedata.normalize("NFC", text)
    joined = {found.start() for found in JOINERS.finditer(text)}
    seen = (c for at, c in enumerate(text) if at in joined or unicodedata.category(c) != "Cf")
    return "".join(seen).strip()


def _tidy_text(text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = (c for c in lines if c in "\n\t" or unicodedata.category(c) != "Cc")
    return "".join(kept).lstrip("\n").rstrip()


def find_problem(field: str, value: str) -> str | None:
    """Return what is wrong with the value of a field, or None.

    :param field: A key of ``LIMITS``.
    :param value: The value, tidied.
    """
    if not any(_can_be_seen(c) for c in value):
        return MISSING[field]
    if len(value) > LIMITS[field]:
        return f"This is {len(value):,} characters long; at most {LIMITS[field]:,} are possible."
    if field != "text" and any(unicodedata.category(c) in CONTROLS for c in value):
        return "Please write this in one line."
    if field == "email" and not _is_address(_ascii_address(value)):
        return "This is not an e-mail address we can reply to, such as ada@example.com."
    return None


def _can_be_seen(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CMZ" and character not in BLANK


def _ascii_address(address: str) -> str:
    local, at, domain = address.rpartition("@")
    try:
        encoded = domain.encode("idna")
        # Else it is another domain than it looks: this codec makes "ss" of "ß".
        same = encoded.decode("idna") == domain.lower()
    except UnicodeError:
        return address
    return local + at + encoded.decode("ascii") if same else address


def _is_address(address: str) -> bool:
    local, _, domain = address.rpartition("@")
    fits = len(local) <= 64 and len(address) <= EMAIL_LENGTH
    return fits and bool(LOCAL_PART.fullmatch(local) and DOMAIN.fullmatch(domain))


def new_nonce() -> str:
    """Return a string that no other form has."""
    return secrets.token_hex(16)


def token_for(purpose: str) -> str:
    """Return the proof that a form was made by us, for this visitor; other sites have none.

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
