"""What is secret by its name, and how its value is kept out of texts: one rule, everywhere."""

from __future__ import annotations

import datetime
import json
import re
import typing as t
from decimal import Decimal
from urllib.parse import quote, quote_plus
from uuid import UUID

MASK = "***"
"""What stands in the place of a secret."""

SHORT = 4
"""A secret of fewer characters is masked in a text only where it stands as a word."""

_PARTS = re.compile(
    "passw|passphrase|passcode|pwd|secret|token|jwt|csrf|xsrf|authoriz|authentication|cookie|session"
    "|credential|(api|access|private|signing|encryption|ssh)key|iban|accountnumber|cardnumber"
    "|(credit|debit)card|cvv|securitycode"
)
"""What a name may contain, its words written together."""

_WORDS = frozenset(["auth", "bearer", "card", "cards", "cvc", "oauth", "otp", "pass", "pin", "ssn"])
"""What a name may have as a word of its own: ``card_no`` has, ``discard`` has not."""

_NAMES, _VALUES = ("name", "key", "header", "field"), ("value", "values", "content")
"""Under what a pair such as ``{"name": "Authorization", "value": ...}`` has its two parts."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")
_PLAIN = (str, int, float, Decimal, UUID, datetime.datetime, datetime.date, datetime.time)


def is_secret(name: object) -> bool:
    """Tell whether what is called so should not be shown.

    :param name: A key of the data, or the name of a header.
    """
    if not isinstance(name, str):
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    return not _WORDS.isdisjoint(words) or _PARTS.search("".join(words)) is not None


def masked(tree: t.Any) -> t.Any:
    """Copy data with all that is secret masked.

    :param tree: Dicts, lists and plain values.
    """
    if isinstance(tree, list):
        return [MASK if hidden else masked(item) for _, item, hidden in _children(tree)]
    if isinstance(tree, t.Mapping):
        return {key: MASK if hidden else masked(item) for key, item, hidden in _children(tree)}
    return tree


def secrets_in(*trees: t.Any) -> tuple[str, ...]:
    """Collect the texts of all that is secret in data, those first that contain others.

    :param trees: Dicts, lists and plain values; also what could not be stored.
    """
    found: set[str] = set()
    seen: set[tuple[int, bool]] = set()
    waiting = [(tree, False) for tree in trees]
    while waiting:
        tree, hidden = waiting.pop()
        if isinstance(tree, (list, t.Mapping)):
            if (id(tree), hidden) not in seen:
                seen.add((id(tree), hidden))
                waiting += [(item, hidden or secret) for _, item, secret in _children(tree)]
        elif hidden:
            found.update(_texts(tree))
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def without(secrets: t.Iterable[str], text: str) -> str:
    """Mask secrets that occur in a text.

    :param secrets: As :func:`secrets_in` gives them.
    :param text: Any text.
    """
    for secret in secrets:
        if secret not in text:
            continue
        if len(secret) >= SHORT:
            text = text.replace(secret, MASK)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return text


def _children(tree: list[t.Any] | t.Mapping[t.Any, t.Any]) -> list[tuple[t.Any, t.Any, bool]]:
    """Give of each item its key, itself, and whether it is secret by its name."""
    if isinstance(tree, list):
        is_pair = len(tree) == 2 and is_secret(tree[0])  # a header
        return [(place, item, is_pair and place == 1) for place, item in enumerate(tree)]
    is_pair = any(is_secret(tree.get(name)) for name in _NAMES)
    return [
        (key, item, is_secret(key) or (is_pair and key in _VALUES)) for key, item in tree.items()
    ]


def _texts(secret: t.Any) -> t.Iterator[str]:
    """Give the forms in which a secret may occur in an error."""
    if type(secret) is bytes:
        yield from _forms(repr(secret)[2:-1])
        yield from _forms(secret.decode("utf-8", "replace"))
    elif type(secret) in _PLAIN:
        try:
            text = str(secret)
        except ValueError:  # of more digits than Python writes: no error has it
            return
        if type(secret) is str or len(text) >= SHORT - 1:  # other numbers are in every error
            yield from _forms(text)
        # "Bearer x", "sid=x; path=/", a key of many lines: a part may be told alone.
        for part in re.split(r"[\s;,=:&]+", text):
            if len(part) >= 2 * SHORT or (len(part) >= SHORT and re.search(r"\d", part)):
                yield from _forms(part)


def _forms(text: str) -> t.Iterator[str]:
    if text.strip():
        yield from (text, text.strip(), repr(text)[1:-1], ascii(text)[1:-1])
        yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        yield from (quoting(text, errors="replace") for quoting in (quote, quote_plus))
