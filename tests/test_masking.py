"""What is secret by its name, and that its value is found in whatever text it stands."""

from __future__ import annotations

import datetime
import json
import types
import typing as t
from urllib.parse import quote

import pytest

from flask_sequence.masking import is_secret, masked, secrets_in, without

SECRET = [
    *("password", "Passwort", "passwd", "PWD", "userPwd", "db_pass", "passphrase", "secret"),
    *("client-secret", "token", "refreshToken", "api_key", "apikey", "apiKey", "X-API-Key"),
    *("APIKey", "authorization", "Proxy-Authorization", "auth", "oauth", "bearer", "cookie"),
    *("Set-Cookie", "session", "sessionid", "credentials", "private_key", "privateKey", "ssh_key"),
    *("iban", "IBAN", "customerIban", "card", "card_no", "cardNumber", "creditcard", "cvv", "cvv2"),
    *("cvc2", "PIN", "otp", "jwt", "csrf", "security_code", "access key"),
]
HARMLESS = [
    *("name", "email", "message", "author", "discard", "postcard", "shipping", "opinion", "key"),
    *("keys", "bypass", "compass", "id", "", "count", "description", "footprint", "numbers", "ü"),
]


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", [*HARMLESS, 7, None])
def test_what_has_a_harmless_name_is_shown(name: object) -> None:
    assert not is_secret(name)


DATA: dict[str, t.Any] = {
    "password": "hush-1",
    "nested": [{"API_Token": {"a": ["hush-2"]}, "name": "Joel"}],
    "headers": [
        {"name": "Authorization", "value": "Bearer hush-3"},
        {"name": "Accept", "value": "text/html"},
        ["Cookie", "hush-4"],
        ["Accept", "text/plain"],
    ],
    "header": {"key": "X-Api-Key", "content": "hush-5"},
    "cvv": 123,
    "auth": None,
}


def test_the_secrets_of_data_are_masked() -> None:
    assert masked(DATA) == {
        "password": "***",
        "nested": [{"API_Token": "***", "name": "Joel"}],
        "headers": [
            {"name": "Authorization", "value": "***"},
            {"name": "Accept", "value": "text/html"},
            ["Cookie", "***"],
            ["Accept", "text/plain"],
        ],
        "header": {"key": "X-Api-Key", "content": "***"},
        "cvv": "***",
        "auth": "***",
    }
    assert masked(types.MappingProxyType({"pwd": 1})) == {"pwd": "***"}
    assert masked([1, "a"]) == [1, "a"]


def test_they_are_found_in_a_text() -> None:
    text = "; ".join(f"hush-{number}" for number in range(7)) + " 123, 1234 text/html Joel"
    assert without(secrets_in(DATA), text) == (
        "hush-0; ***; ***; ***; ***; ***; hush-6 ***, 1234 text/html Joel"
    )


NASTY = 'it\'s \\ "a"\nzoë & 🎉'


@pytest.mark.parametrize(
    "told",
    [NASTY, repr(NASTY), ascii(NASTY), json.dumps(NASTY), f"?p={quote(NASTY)}&x", f" {NASTY} "],
)
def test_a_secret_is_found_in_each_form_in_which_it_may_be_told(told: str) -> None:
    clean = without(secrets_in({"password": NASTY}), told)
    assert "***" in clean
    assert not {"zo", "it"} & {clean[place : place + 2] for place in range(len(clean))}


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ("Bearer abcdefgh12345", "token abcdefgh12345 has expired"),
        ("sid=abcdefgh12345; path=/", "no session abcdefgh12345"),
        ("-----BEGIN-----\nabcdefgh12345\nxyz", "line abcdefgh12345"),
        (b"abcdefgh12345", "b'abcdefgh12345'"),
        (datetime.date(1970, 2, 3), "born 1970-02-03"),
        (41111111, "card 41111111"),
    ],
)
def test_a_part_of_a_secret_is_found(secret: object, told: str) -> None:
    clean = without(secrets_in({"card": secret}), told)
    assert "***" in clean
    assert "abcdef" not in clean
    assert not {"1970-02-03", "41111111"} & set(clean.split())


def test_a_short_secret_is_found_as_a_word_only() -> None:
    secrets = secrets_in({"pin": "ab", "otp": 7, "pass": True, "token": " ", "secret": ""})
    assert without(secrets, "ab cab 'ab' 7 True  x") == "*** cab '***' 7 True  x"


def test_a_longer_secret_goes_before_one_that_it_contains() -> None:
    secrets = secrets_in({"password": "hush", "token": "hush-hush"})
    assert without(secrets, "hush-hush hush") == "*** ***"


def test_what_could_not_be_stored_is_looked_through_as_well() -> None:
    class Hostile:
        __str__ = __repr__ = None  # type: ignore[assignment]

    shared = ["hush"]
    data: dict[t.Any, t.Any] = {"a": shared, "secret": shared, 3: Hostile(), "token": Hostile()}
    data["itself"] = data
    assert "hush" in secrets_in(data)
    assert secrets_in(5, None, [data], {}) == secrets_in(data)
