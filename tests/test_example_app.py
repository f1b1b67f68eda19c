"""The example application, page by page and step by step: the acceptance test."""

from __future__ import annotations

import contextlib
import email
import email.policy
import html
import os
import re
import smtplib
import ssl
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update

from example_app import brake, create_app, forms, mail, pages
from example_app.extensions import db
from example_app.models import Login, Member, Message, Tries, now
from example_app.sequences import AssignMember, ContactForm, CreateMessage
from example_app.team import LOGIN_TIME
from flask_sequence import BusyError, SequenceRun, Status, StepRun, StepStatus
from flask_sequence.testing import drain
from tests.support import services
from tests.support.application import close_app
from tests.support.workers import ROOT

if t.TYPE_CHECKING:
    from email.message import EmailMessage

    from flask import Flask
    from flask.testing import FlaskClient
    from sqlalchemy import Table
    from werkzeug.test import TestResponse

ADA = "Ada Lovelace <ada@example.com>"
GRACE = "Grace Hopper <grace@example.com>"
VALUES = {
    "name": "Zoë Ångström",
    "email": "zoe@example.org",
    "subject": "Umlaute & 🦉",
    "text": "Grüße aus Kyōto\r\n\r\n  “quoted” {braces} 100 %\r\n",
}
MARKUP = '<script>alert(1)</script>"><img src=x onerror=alert(2)>{{7*7}}'
PASSWORD = "open sesame"


@pytest.fixture
def app(tmp_path: Path, request: pytest.FixtureRequest) -> t.Iterator[Flask]:
    """The application, on SQLite or what the test gives as parameter, with a team of two."""
    url = f"sqlite:///{tmp_path / 'contact.sqlite'}"
    if getattr(request, "param", None):
        url = str(request.getfixturevalue(request.param))
    app = create_app(
        {
            "TESTING": True,
            "SQLALCHEMY_DATABASE_URI": url,
            "INSTANCE_PATH": str(tmp_path / "instance"),
            "INBOX_PASSWORD": PASSWORD,
            "SEQUENCE_BURST_SECONDS": 0,  # so that each step can be seen
        }
    )
    with app.app_context():
        db.create_all()
    app.test_cli_runner().invoke(args=["add-members", ADA, GRACE], catch_exceptions=False)
    yield app
    close_app(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A visitor's browser."""
    return app.test_client()


@pytest.fixture
def team(app: Flask) -> FlaskClient:
    """The browser of a member who has opened the inbox."""
    client = app.test_client()
    token = fields(client.get("/inbox/login"))["token"]
    client.post("/inbox/login", data={"token": token, "password": PASSWORD})
    return client


def fields(page: TestResponse) -> dict[str, str]:
    """Read the fields of a page's forms, as a browser does."""
    found = re.findall(r'<input[^>]* name="(\w+)"[^>]*? value="([^"]*)"', page.text)
    area = re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>\n?([^<]*)</textarea>', page.text)
    return {name: html.unescape(value) for name, value in found + area}


def send(client: FlaskClient, **changes: str) -> TestResponse:
    """Open the form, fill it in and send it."""
    hidden = fields(client.get("/"))
    return client.post("/", data={**hidden, **VALUES, **changes})


def mails(app: Flask) -> dict[str, EmailMessage]:
    """Read the mail files, by the name of the file."""
    folder = Path(app.instance_path, "mails")
    return {
        path.stem: email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        for path in sorted(folder.iterdir())
    }


def count(model: type[object]) -> int:
    """Count the rows of a table."""
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def states(page: TestResponse) -> list[str]:
    """Read the states of the steps from a thanks page."""
    return re.findall(r'data-state="(\w+)"', page.text)


def visible(page: TestResponse) -> str:
    """Read what a page shows, without its markup and what its attributes hold."""
    body = page.text.partition("<main")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def set_run(app: Flask, **values: t.Any) -> None:
    """Put the only run into a state that is hard to reach."""
    with app.app_context():
        runs = t.cast("Table", SequenceRun.__table__)
        db.session.connection().execute(update(runs).values(**values))
        db.session.commit()


def press(client: FlaskClient, page: TestResponse, button: str) -> TestResponse:
    """Press the first button of that name, and go where it leads."""
    form = next(form for form in page.text.split("<form")[1:] if f">{button}" in form)
    action = re.findall(r'action="([^"]+)"', form)[0]
    names = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    return client.post(action, data=dict(names), follow_redirects=True)


def advance(app: Flask) -> None:
    """Perform one step."""
    with contextlib.suppress(AssertionError):  # raised if there are more
        drain(app, max_steps=1)


# The way of a message


def test_a_message_goes_from_the_form_to_the_receipt(app: Flask, client: FlaskClient) -> None:
    answer = send(client)
    assert answer.status_code == 303
    assert states(client.get(answer.location)) == ["queued", "next", "next", "next"]

    assert drain(app) == 4

    assert states(client.get(answer.location)) == ["finished"] * 4
    with app.app_context():
        message = db.session.scalars(select(Message)).one()
        assert message.text == "Grüße aus Kyōto\n\n  “quoted” {braces} 100 %"
        assert (message.name, message.email) == (VALUES["name"], VALUES["email"])
        assert message.member is not None
        assert message.run is not None
        assert message.run.status is Status.FINISHED
        assert message.run.key == message.nonce
        assert message.run.data["text"] == ""
        reference = message.reference
    receipt, notification = sorted(mails(app).values(), key=lambda found: "Reply-To" in found)
    assert receipt["To"].addresses[0].addr_spec == VALUES["email"]
    assert reference in receipt["Subject"]
    assert "Your message to us has arrived. Ada Lovelace will answer it" in receipt.get_content()
    assert notification["To"].addresses[0].addr_spec == "ada@example.com"
    assert notification["Reply-To"].addresses[0].addr_spec == VALUES["email"]
    assert "“quoted” {braces} 100 %" in notification.get_content()


def test_each_step_shows_as_it_finishes(app: Flask, client: FlaskClient) -> None:
    page = send(client).location
    seen: list[t.Any] = [client.get(f"{page}.json").json]
    for _ in ContactForm.step_names:
        advance(app)
        seen.append(client.get(f"{page}.json").json)
    done = [[step["state"] for step in look["steps"]].count("finished") for look in seen]
    assert done == [0, 1, 2, 3, 4]
    assert [look["over"] for look in seen] == [False, False, False, False, True]
    assert [step["text"] for step in seen[2]["steps"]] == [
        "Done",
        "Done",
        "Queued",
        "Waiting",
    ]


def test_the_thanks_page_works_without_its_script(app: Flask, client: FlaskClient) -> None:
    page = send(client).location
    refresh = '<noscript><meta http-equiv="refresh"'
    assert refresh in client.get(page).text
    drain(app)
    assert refresh not in client.get(page).text


def test_a_foreign_visitor_sees_nothing(app: Flask, client: FlaskClient) -> None:
    page = send(client).location
    stranger = app.test_client()
    for address in (page, f"{page}.json"):
        assert client.get(address).status_code == 200
        assert stranger.get(address).status_code == 404
    send(stranger)
    assert stranger.get(page).status_code == 404


@pytest.mark.parametrize("end", ["finished", "cancelled"])
def test_nothing_is_made_up_when_a_run_was_deleted(
    app: Flask, client: FlaskClient, team: FlaskClient, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    location = send(client).location
    arrive_at(end, app, monkeypatch)
    with app.app_context():
        db.session.execute(update(Message).values(run_id=None))
        runs = t.cast("Table", SequenceRun.__table__)
        db.session.connection().execute(delete(runs))
        db.session.commit()
    page = client.get(location)
    assert "was dealt with some time ago" in visible(page)
    assert states(page) == []
    told = client.get(f"{location}.json").json
    assert told is not None
    assert (told["over"], told["steps"]) == (True, [])
    badge = "Receipt sent" if end == "finished" else "No receipt sent"
    assert badge in visible(team.get("/inbox"))
    listed = team.get("/inbox/messages.json").json
    assert listed is not None
    assert listed["messages"][0]["receipt"] == (end == "finished")


# Each state


def full_disk(*_: object) -> t.NoReturn:
    """Stand in for what writes a mail."""
    raise OSError(28, "No space left on device")


def arrive_at(state: str, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring the only run, which stands at its beginning, into a state at its third step."""
    advance(app)
    advance(app)
    if state in ("retrying", "failed"):
        with monkeypatch.context() as patch:
            patch.setattr(mail, "_write", full_disk)
            drain(app, ignore_due=state == "failed")
    elif state == "paused":
        set_run(app, status=Status.PAUSED)
    elif state == "blocked":
        set_run(app, status=Status.BLOCKED, due_at=None, error="No worker knows this step.")
    elif state == "cancelled":
        with app.app_context():
            db.session.scalars(select(SequenceRun)).one().cancel()
            db.session.commit()
    elif state == "finished":
        drain(app)


@pytest.mark.parametrize(
    ("state", "steps", "word", "lead", "listed"),
    [
        ("queued", "queued next", "Queued", "it is in the queue", "Step 3 of 4: queued"),
        (
            "retrying",
            "retrying next",
            "Trying again soon",
            "need not write again",
            r"Retrying “Notify the member”, next try \d\d:\d\d UTC : OSError: .* No space left",
        ),
        (
            "failed",
            "failed next",
            "We need to look into this",
            "stuck on our side",
            "Failed at “Notify the member” : OSError: .* No space left on device Try again",
        ),
        (
            "blocked",
            "blocked next",
            "We need to look into this",
            "stuck on our side",
            "Blocked at “Notify the member” : No worker knows this step.",
        ),
        ("paused", "paused next", "On hold", "on hold", "On hold at “Notify the member”"),
        (
            "cancelled",
            "cancelled next",
            "Stopped Send you a receipt Not done",
            "Our team has stopped this",
            "Cancelled at “Notify the member”",
        ),
        (
            "finished",
            "finished finished",
            "Done Send you a receipt Done",
            f"All done. A receipt is on its way to {VALUES['email']}.",
            "Receipt sent",
        ),
    ],
)
def test_both_pages_tell_the_state(
    app: Flask,
    client: FlaskClient,
    team: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    steps: str,
    word: str,
    lead: str,
    listed: str,
) -> None:
    location = send(client).location
    arrive_at(state, app, monkeypatch)

    page = client.get(location)
    assert states(page) == ["finished", "finished", *steps.split()]
    assert f"Notify them {word}" in visible(page)
    assert lead in visible(page)
    assert ("All done" in visible(page)) == (state == "finished")
    assert ("You can close this page" in visible(page)) == (state in ("queued", "retrying"))
    assert ("Send you a receipt Done" in visible(page)) == (state == "finished")
    told = client.get(f"{location}.json").json
    assert told is not None
    assert told["lead"] in visible(page)
    assert [step["state"] for step in told["steps"]] == states(page)
    assert told["over"] == (state in ("finished", "cancelled"))

    inbox = team.get("/inbox")
    assert re.search(listed, visible(inbox))
    assert ("Try again" in visible(inbox)) == (state == "failed")
    assert "Open 1 Answered 0 All 1" in visible(inbox)


def test_a_step_is_in_progress_while_it_runs(
    app: Flask, client: FlaskClient, team: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = send(client).location
    seen: list[tuple[list[str], str, str]] = []

    def look(*_: object) -> None:
        page = client.get(location)
        seen.append((states(page), visible(page), visible(team.get("/inbox"))))

    monkeypatch.setattr(mail, "_write", look)
    drain(app)
    assert [each[0] for each in seen] == [
        ["finished", "finished", "running", "next"],
        ["finished", "finished", "finished", "running"],
    ]
    assert "Notify them In progress" in seen[0][1]
    assert "are working on it" in seen[0][1]
    assert "Step 3 of 4: in progress" in seen[0][2]


def test_nothing_is_said_to_be_in_progress_before_a_worker_comes(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    page = client.get(send(client).location)
    assert "Save your message Queued" in visible(page)
    assert "In progress" not in visible(page)
    assert VALUES["subject"] in visible(page)

    inbox = visible(team.get("/inbox"))
    assert VALUES["subject"] in inbox
    assert "Not saved yet Step 1 of 4: queued" in inbox
    assert "Open 1 Answered 0 All 1" in inbox
    assert "cup of tea" not in inbox
    assert "cup of tea" in visible(team.get("/inbox?show=answered"))
    drain(app)
    inbox = visible(team.get("/inbox"))
    assert "Not saved yet" not in inbox
    assert "Open 1 Answered 0 All 1" in inbox


def test_a_step_that_a_deploy_renamed_hides_no_progress(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    location = send(client).location
    advance(app)
    set_run(app, step="FindMember", status=Status.BLOCKED, due_at=None)
    assert states(client.get(location)) == ["finished", "blocked", "next", "next"]
    assert "Blocked at “FindMember”" in visible(team.get("/inbox"))
    assert "Step 2 of 4" in visible(team.get("/inbox"))


def test_a_late_retry_is_not_promised_for_the_past(
    app: Flask, client: FlaskClient, team: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(client)
    arrive_at("retrying", app, monkeypatch)
    set_run(app, due_at=now() - LOGIN_TIME)
    assert "next try now" in visible(team.get("/inbox"))


def test_all_call_a_message_by_the_same_reference(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    location = send(client).location
    found = re.search(r"Reference ([0-9A-F]{8}) ", visible(client.get(location)))
    assert found is not None
    assert found[0] in visible(team.get("/inbox"))
    drain(app)
    assert found[0] in visible(team.get("/inbox"))
    contents = [message.get_content() for message in mails(app).values()]
    assert [found[1] in content for content in contents] == [True, True]


# Sent twice


def test_a_double_click_makes_one_run(app: Flask, client: FlaskClient) -> None:
    form = {**fields(client.get("/")), **VALUES}
    first, second = client.post("/", data=form), client.post("/", data=form)
    assert first.location == second.location
    drain(app)
    with app.app_context():
        assert (count(SequenceRun), count(Message)) == (1, 1)


def test_a_form_sent_again_after_its_run_makes_no_other(app: Flask, client: FlaskClient) -> None:
    form = {**fields(client.get("/")), **VALUES}
    first = client.post("/", data=form)
    drain(app)
    assert client.post("/", data=form).location == first.location
    assert drain(app) == 0
    with app.app_context():
        assert (count(SequenceRun), count(Message)) == (1, 1)


def test_a_second_run_of_the_same_form_ends_at_once(app: Flask) -> None:
    with app.app_context():
        for _ in range(2):
            ContactForm.set(key="the same form").start(**VALUES)
            db.session.commit()
            drain(app)
        runs = db.session.scalars(select(SequenceRun).order_by(SequenceRun.id)).all()
        assert [len(run.step_runs) for run in runs] == [4, 1]
        assert {run.status for run in runs} == {Status.FINISHED}
        assert count(Message) == 1
    assert len(mails(app)) == 2


def test_a_reloaded_page_is_another_form(app: Flask, client: FlaskClient) -> None:
    assert send(client).location != send(client).location
    drain(app)
    with app.app_context():
        assert count(Message) == 2


# What is typed


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("name", "", "tell us your name"),
        ("name", " \t ", "tell us your name"),
        ("name", "x" * 81, "81 characters long; at most 80"),
        ("name", "Eve\r\nBcc: all@example.com", "in one line"),
        ("name", "Eve\u2028Bcc: all@example.com", "in one line"),
        ("name", "nul\x00", "in one line"),
        ("email", "", "tell us the address"),
        ("email", "nobody", "not an e-mail address"),
        ("email", "a@b@example.com", "not an e-mail address"),
        ("email", "eve@example.com, all@example.com", "not an e-mail address"),
        ("email", "eve@example.com\nBcc: all@example.com", "in one line"),
        ("email", "josé@example.com", "not an e-mail address"),
        ("email", "a@" + "x" * 64 + ".com", "not an e-mail address"),
        ("name", "\u3164", "tell us your name"),
        ("name", "\u200b\u202e\u2060", "tell us your name"),
        ("email", "eve@faß.example", "not an e-mail address"),
        ("email", "eve@example." + "\u212a" * 64, "not an e-mail address"),
        ("email", "eve@example\u3002com", "not an e-mail address"),
        ("email", "ſ@example.com", "not an e-mail address"),
        ("email", "eve@ſite.com", "not an e-mail address"),
        ("subject", "", "what it is about"),
        ("subject", "Hello\nBcc: all@example.com", "in one line"),
        ("subject", "🦉" * 151, "at most 150"),
        ("text", " \r\n ", "write your message"),
        ("text", "x" * 20_001, "20,001 characters long; at most 20,000"),
    ],
)
def test_what_is_wrong_is_said_and_what_was_typed_is_kept(
    app: Flask, client: FlaskClient, field: str, value: str, problem: str
) -> None:
    answer = send(client, **{field: value})
    assert answer.status_code == 422
    assert problem in html.unescape(answer.text)
    assert f'id="{field}-error"' in answer.text
    assert re.search(rf'name="{field}"[^>]* aria-describedby="{field}-error"', answer.text)
    kept = fields(answer)
    for other in VALUES.keys() - {field, "text"}:
        assert kept[other] == VALUES[other]
    assert kept["text"].strip() == (value if field == "text" else VALUES["text"]).strip().replace(
        "\r\n", "\n"
    )
    with app.app_context():
        assert count(SequenceRun) == 0


def test_what_is_wrong_is_summed_up(client: FlaskClient) -> None:
    page = send(client, name="", subject="")
    assert "Please fix 2 fields. Nothing you typed is lost." in visible(page)
    assert '<a href="#name">Name: Please tell us your name.</a>' in page.text
    assert "Please fix 1 field. Nothing" in visible(send(client, name=""))


def test_limits_can_be_reached(app: Flask, client: FlaskClient) -> None:
    values = {
        "name": "ö" * 80,
        "email": "a" * 64 + "@" + ".".join(["b" * 63] * 2 + ["c" * 53, "example"]),
        "subject": "🦉" * 150,
        "text": "漢" * 20_000,
    }
    assert send(client, **values).status_code == 303
    drain(app)
    with app.app_context():
        message = db.session.scalars(select(Message)).one()
        assert {field: getattr(message, field) for field in values} == values
    assert any(found["Subject"].endswith("🦉" * 150) for found in mails(app).values())


def test_an_international_domain_is_kept_as_mail_servers_know_it(
    app: Flask, client: FlaskClient
) -> None:
    send(client, email="zoe@bücher.example")
    drain(app)
    with app.app_context():
        assert db.session.scalars(select(Message.email)).one() == "zoe@xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("field", "typed", "kept"),
    [
        ("name", "Eve \u202e\u2067moc.elpmaxe\u2069", "Eve moc.elpmaxe"),
        ("name", "\ufeffA\u200bd\u00ada\u200f", "Ada"),
        ("name", "A\u200dda", "Ada"),
        ("name", "\u212aate A\u030a", "Kate Å"),
        ("name", "\u200fمی\u200cخواهم", "می\u200cخواهم"),
        ("subject", "👩\u200d🚀 \U000e0041", "👩\u200d🚀"),
        ("email", "\u200e\u212aate@\u212aelvin.example\u202c", "Kate@Kelvin.example"),
    ],
)
def test_what_cannot_be_seen_in_a_line_is_left_out(
    app: Flask, client: FlaskClient, field: str, typed: str, kept: str
) -> None:
    assert send(client, **{field: typed}).status_code == 303
    drain(app)
    with app.app_context():
        assert db.session.scalars(select(getattr(Message, field))).one() == kept


def test_control_characters_in_the_text_are_left_out(app: Flask, client: FlaskClient) -> None:
    send(client, text="a\x00b\x1b[31mc\td\r\ne")
    drain(app)
    with app.app_context():
        assert db.session.scalars(select(Message.text)).one() == "ab[31mc\td\ne"


def test_a_form_of_another_site_or_visitor_is_refused(app: Flask, client: FlaskClient) -> None:
    form = {**fields(client.get("/")), **VALUES}
    stranger = app.test_client()
    refused = [
        stranger.post("/", data=form),
        client.post("/", data={**form, "nonce": "another"}),
        client.post("/", data={**form, "token": "forged"}),
        client.post("/", data=VALUES),
    ]
    for answer in refused:
        assert answer.status_code == 400
        assert "Please send again" in answer.text
        assert fields(answer)["subject"] == VALUES["subject"]
    with app.app_context():
        assert count(SequenceRun) == 0
    assert stranger.post("/", data={**form, **fields(refused[0])}).status_code == 303


def test_too_large_a_request_is_refused(client: FlaskClient) -> None:
    answer = send(client, text="x" * 300_000)
    assert answer.status_code == 413
    assert "Request Entity Too Large" in answer.text


def test_markup_is_shown_as_it_was_typed(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    answer = send(client, name=MARKUP[:80], subject=MARKUP, text=MARKUP, email="no address")
    assert fields(answer)["subject"] == MARKUP
    pages = [answer]
    send(client, name=MARKUP[:80], subject=MARKUP, text=MARKUP)
    drain(app)
    pages.append(team.get("/inbox"))
    for page in pages:
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert MARKUP in html.unescape(page.text)
    assert any(MARKUP in found["Subject"] for found in mails(app).values())


def test_pages_are_closed_to_other_origins(client: FlaskClient) -> None:
    page = client.get("/")
    others = [client.get(address) for address in ("/inbox/login", "/nowhere")]
    for headers in (page.headers, *(other.headers for other in others)):
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe-inline" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "no-store" in headers["Cache-Control"]
    assert not re.search(r"(src|href)=\"(https?:)?//|style=|<style| on\w+=", page.text)
    cookie = page.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


# The brakes


def sender(app: Flask, address: str) -> FlaskClient:
    """Return the browser of a visitor from another address."""
    client = app.test_client()
    client.environ_base["REMOTE_ADDR"] = address
    return client


def test_a_visitor_sends_so_many_messages_an_hour(app: Flask) -> None:
    app.config["MESSAGES_PER_HOUR"] = 2
    visitors = ["192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"]
    answers = [
        send(sender(app, address), email=f"{number}@example.com")
        for number, address in enumerate(visitors)
    ]
    assert [answer.status_code for answer in answers] == [303, 303, 303, 429, 303]
    refused = answers[3]
    assert "try again in an hour" in refused.text
    assert fields(refused)["subject"] == VALUES["subject"]
    with app.app_context():
        assert count(SequenceRun) == 4


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_visitor_is_known_by_the_network(app: Flask, address: str, network: str) -> None:
    with app.test_request_context(environ_base={"REMOTE_ADDR": address}):
        assert brake.visitor_network() == network


def test_an_address_gets_so_many_receipts_an_hour(app: Flask) -> None:
    app.config["MESSAGES_PER_HOUR"] = 2
    written = ["me@example.com", "ME@example.com", "me@EXAMPLE.com", "you@example.com"]
    codes = [
        send(sender(app, f"192.0.2.{number}"), email=address).status_code
        for number, address in enumerate(written)
    ]
    assert codes == [303, 303, 429, 303]


def test_a_form_that_was_sent_already_is_not_counted(app: Flask, client: FlaskClient) -> None:
    app.config["MESSAGES_PER_HOUR"] = 1
    form = {**fields(client.get("/")), **VALUES}
    client.post("/", data=form)
    drain(app)
    assert [client.post("/", data=form).status_code for _ in range(3)] == [303] * 3


def test_a_brake_is_let_go_after_the_hour(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    with app.app_context():
        monkeypatch.setattr(time, "time", lambda: 7 * 3600.0)
        assert [brake.is_too_often("it", "me", 2) for _ in range(3)] == [False, False, True]
        monkeypatch.setattr(time, "time", lambda: 8 * 3600.0)
        assert not brake.is_too_often("it", "me", 2)
        assert count(Tries) == 1


@pytest.mark.parametrize("app", [None, "postgresql_url"], indirect=True, ids=["sqlite", "postgres"])
def test_a_brake_counts_those_who_come_at_once(app: Flask) -> None:
    together = threading.Barrier(4)
    answers: list[bool] = []

    def hurry() -> None:
        together.wait(10)
        for _ in range(5):
            with app.app_context():
                answers.append(brake.is_too_often("it", "me", 12))

    threads = [threading.Thread(target=hurry) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 12 + [True] * 8


def test_a_proxy_tells_the_address_only_if_it_is_trusted(tmp_path: Path) -> None:
    for proxies, expected in ((0, "127.0.0.1"), (1, "192.0.2.7")):
        app = create_app({"INSTANCE_PATH": str(tmp_path), "PROXIES": proxies})
        app.add_url_rule("/network", view_func=brake.visitor_network)
        answer = app.test_client().get("/network", headers={"X-Forwarded-For": "192.0.2.7"})
        assert answer.text == expected


# The team


@pytest.mark.parametrize("app", [None, "postgresql_url"], indirect=True, ids=["sqlite", "postgres"])
def test_the_member_with_the_fewest_open_messages_gets_the_next(app: Flask) -> None:
    with app.app_context():
        ada, grace = db.session.scalars(select(Member).order_by(Member.id)).all()
        ContactForm.start_many([VALUES] * 4)
        db.session.commit()
        drain(app)
        members = db.session.scalars(select(Message.member_id).order_by(Message.id)).all()
        assert sorted(filter(None, members)) == [ada.id, ada.id, grace.id, grace.id]
        for message in db.session.scalars(select(Message).where(Message.member_id == grace.id)):
            message.answered_at = now()
        ContactForm.start_many([VALUES] * 2)
        db.session.commit()
        drain(app)
        late = db.session.scalars(select(Message.member_id).order_by(Message.id).offset(4)).all()
        assert late == [grace.id, grace.id]


@pytest.mark.parametrize("app", [None, "postgresql_url"], indirect=True, ids=["sqlite", "postgres"])
def test_several_workers_assign_fairly_at_once(app: Flask) -> None:
    with app.app_context():
        numbers = [CreateMessage.call(VALUES)["message_id"] for _ in range(12)]
        db.session.commit()
    together = threading.Barrier(4)

    def assign(mine: list[int]) -> None:
        together.wait(10)
        for number in mine:
            with app.app_context():
                AssignMember.call({**VALUES, "message_id": number})
                db.session.commit()

    threads = [threading.Thread(target=assign, args=(numbers[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with app.app_context():
        query = select(func.count()).select_from(Message).group_by(Message.member_id)
        assert db.session.scalars(query).all() == [6, 6]


def test_without_a_team_the_run_waits_for_a_person(tmp_path: Path) -> None:
    app = create_app(
        {
            "TESTING": True,
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'empty.sqlite'}",
            "INSTANCE_PATH": str(tmp_path),
        }
    )
    with app.app_context():
        db.create_all()
    client = app.test_client()
    page = send(client).location
    drain(app)
    assert states(client.get(page)) == ["finished", "failed", "next", "next"]
    assert app.test_cli_runner().invoke(args=["add-members", ADA]).exit_code == 0
    with app.app_context():
        run = db.session.scalars(select(SequenceRun)).one()
        assert "flask add-members" in str(run.error)
        run.retry()
        db.session.commit()
    drain(app)
    assert states(client.get(page)) == ["finished"] * 4
    close_app(app)


def test_members_are_added_once(app: Flask) -> None:
    runner = app.test_cli_runner()
    assert runner.invoke(args=["add-members", ADA, ADA]).exit_code == 0
    refused = runner.invoke(args=["add-members", "Ada"])
    assert refused.exit_code == 2
    assert "Write 'Ada' as" in refused.output
    with app.app_context():
        assert count(Member) == 2


# The mails


def test_a_mail_that_failed_is_tried_again_and_is_the_same_one(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = mail._write

    def write(message: EmailMessage, folder: Path, name: str) -> None:
        written.append(name)
        real(message, folder, name)
        if len(written) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(mail, "_write", write)
    page = send(client).location
    drain(app)
    assert states(client.get(page)) == ["finished", "finished", "retrying", "next"]
    drain(app, ignore_due=True)
    assert states(client.get(page)) == ["finished"] * 4
    assert written[0] == written[1] != written[2]
    found = mails(app)
    assert len(found) == 2
    assert {f"<{key}@example.com>" for key in found} == {
        mail["Message-ID"] for mail in found.values()
    }
    with app.app_context():
        query = select(StepRun.status).where(StepRun.step == "NotifyMember").order_by(StepRun.id)
        assert db.session.scalars(query).all() == [StepStatus.RETRY, StepStatus.FINISHED]


def test_a_mail_is_never_seen_half_written(app: Flask, client: FlaskClient) -> None:
    send(client)
    drain(app)
    assert all(not name.startswith(".") for name in os.listdir(Path(app.instance_path, "mails")))


def test_mails_go_to_a_server_if_one_is_configured(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[t.Any] = []

    class Server:
        def __init__(self, host: str, port: int, timeout: float) -> None:
            calls.append((host, port))

        def __enter__(self) -> Server:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def starttls(self, context: ssl.SSLContext) -> None:
            assert context.verify_mode is ssl.CERT_REQUIRED
            assert context.check_hostname
            calls.append("tls")

        def login(self, *account: str) -> None:
            calls.append(account)

        def send_message(self, message: EmailMessage) -> None:
            calls.append(message["To"].addresses[0].addr_spec)

    monkeypatch.setattr(smtplib, "SMTP", Server)
    app.config.update(MAIL_SERVER="smtp.test", MAIL_USERNAME="us", MAIL_PASSWORD="secret")
    send(client)
    drain(app)
    before = [("smtp.test", 25), "tls", ("us", "secret")]
    assert calls == [*before, "ada@example.com", *before, VALUES["email"]]
    app.config.update(MAIL_USE_TLS=False, MAIL_USERNAME=None)
    calls.clear()
    send(client)
    drain(app)
    assert calls == [("smtp.test", 25), "grace@example.com", ("smtp.test", 25), VALUES["email"]]
    assert not Path(app.instance_path, "mails").exists()


def test_a_line_break_never_reaches_a_header(app: Flask) -> None:
    with app.app_context():
        ContactForm.start(**{**VALUES, "subject": "Eve\r\nBcc: all@example.com"})
        db.session.commit()
        drain(app)
        run = db.session.scalars(select(SequenceRun)).one()
        assert (run.step, run.status) == ("NotifyMember", Status.FAILED)
    assert not Path(app.instance_path, "mails").exists()


def test_no_name_gets_into_a_header(app: Flask) -> None:
    name = '", eve@example.com, "' * 200 + "\r\nBcc: all@example.com"
    with app.app_context():
        ContactForm.start(**{**VALUES, "name": name})
        db.session.commit()
    drain(app)
    found = mails(app).values()
    assert len(found) == 2
    for message in found:
        headers = str(message).partition("\n\n")[0]
        assert "eve" not in headers
        assert "Bcc" not in headers


def test_the_receipt_holds_nothing_that_a_stranger_typed(app: Flask, client: FlaskClient) -> None:
    send(client, name="Buy PILLS", subject="Cheap PILLS", text="at http://PILLS.example")
    drain(app)
    (receipt,) = [found for found in mails(app).values() if "Reply-To" not in found]
    assert receipt["To"].addresses[0].addr_spec == VALUES["email"]
    assert "PILLS" not in str(receipt["Subject"]) + receipt.get_content()
    assert all("PILLS" not in str(value) for value in receipt.values())


@pytest.mark.parametrize("field", ["name", "subject"])
@pytest.mark.parametrize(
    "text", ["=?utf-8?q?Eve=0D=0ABcc:_a@b.c?= ä", "==??utf-8?b?CkJjYzphQGIuYw==?="]
)
def test_an_encoded_line_break_is_not_decoded(
    app: Flask, client: FlaskClient, field: str, text: str
) -> None:
    send(client, **{field: text})
    drain(app)
    found = mails(app).values()
    assert len(found) == 2
    assert all("Bcc" not in mail and b"\nBcc" not in mail.as_bytes() for mail in found)
    with app.app_context():
        assert db.session.scalars(select(getattr(Message, field))).one() == text


# The inbox


def test_the_inbox_is_closed(app: Flask, client: FlaskClient) -> None:
    send(client)
    drain(app)
    for address in ("/inbox", "/inbox/messages.json"):
        assert client.get(address).location == "/inbox/login"
    assert client.post("/inbox/1/answered").status_code == 302
    token = fields(client.get("/inbox/login"))["token"]
    wrong = client.post("/inbox/login", data={"token": token, "password": "sésame"})
    assert wrong.status_code == 403
    assert "Wrong password." in wrong.text
    assert client.get("/inbox").status_code == 302
    with app.app_context():
        assert db.session.scalars(select(Message.answered_at)).all() == [None]


def test_the_password_can_be_tried_so_often_an_hour(app: Flask) -> None:
    app.config["LOGINS_PER_HOUR"] = 3
    client = app.test_client()
    token = fields(client.get("/inbox/login"))["token"]
    codes = [
        client.post("/inbox/login", data={"token": token, "password": password}).status_code
        for password in ("1", "2", "3", PASSWORD)
    ]
    assert codes == [403, 403, 403, 429]
    assert client.get("/inbox").status_code == 302
    colleague = sender(app, "192.0.2.1")
    token = fields(colleague.get("/inbox/login"))["token"]
    form = {"token": token, "password": PASSWORD}
    assert colleague.post("/inbox/login", data=form).status_code == 303


def copy_of(app: Flask, client: FlaskClient) -> FlaskClient:
    """Return a browser with a copy of another one's cookies."""
    cookie = client.get_cookie("session")
    assert cookie is not None
    thief = app.test_client()
    thief.set_cookie("session", cookie.value)
    return thief


def test_a_copied_cookie_ends_with_the_logout(app: Flask, team: FlaskClient) -> None:
    thief = copy_of(app, team)
    assert thief.get("/inbox").status_code == 200
    token = fields(team.get("/inbox"))["token"]
    assert team.post("/inbox/logout", data={"token": token}).status_code == 303
    assert thief.get("/inbox").status_code == 302
    assert team.get("/inbox").status_code == 302


def test_a_logout_leaves_the_colleagues_in(app: Flask, team: FlaskClient) -> None:
    other = app.test_client()
    form = {"token": fields(other.get("/inbox/login"))["token"], "password": PASSWORD}
    other.post("/inbox/login", data=form)
    other.post("/inbox/logout", data={"token": fields(other.get("/inbox"))["token"]})
    assert team.get("/inbox").status_code == 200


def test_a_login_ends_when_the_password_is_changed(app: Flask, team: FlaskClient) -> None:
    app.config["INBOX_PASSWORD"] = "another"
    assert team.get("/inbox").status_code == 302
    app.config["INBOX_PASSWORD"] = PASSWORD
    assert team.get("/inbox").status_code == 200


def test_a_login_ends_after_some_hours(app: Flask, team: FlaskClient) -> None:
    with app.app_context():
        db.session.execute(update(Login).values(created_at=now() - LOGIN_TIME))
        db.session.commit()
    assert team.get("/inbox").status_code == 302


def test_without_a_password_nobody_gets_in(app: Flask, team: FlaskClient) -> None:
    assert team.get("/inbox").status_code == 200
    app.config["INBOX_PASSWORD"] = None
    assert team.get("/inbox").status_code == 302
    page = team.get("/inbox/login")
    assert page.status_code == 403
    assert "FLASK_INBOX_PASSWORD" in page.text
    client = app.test_client()
    with client.session_transaction() as session:
        session["visitor"] = "known"
    with app.test_request_context():
        token = forms._serializer().dumps(["known", "login"])
    refused = client.post("/inbox/login", data={"token": token, "password": ""})
    assert refused.status_code == 403


def test_the_team_marks_a_message_as_answered(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    send(client)
    send(client, subject="The second")
    drain(app)
    page = team.get("/inbox")
    assert page.text.index("The second") < page.text.index("Umlaute &amp; 🦉")
    assert "Ada Lovelace" in page.text
    assert "Grace Hopper" in page.text
    action = re.findall(r'action="(/inbox/\d+/answered)"', page.text)[0]

    assert team.get(action).status_code == 405
    assert team.post(action).status_code == 400
    assert "The second" in team.get("/inbox").text

    form = {"token": fields(page)["token"], "show": "open"}
    assert team.post(action, data=form).location == "/inbox?show=open"
    assert "The second" not in team.get("/inbox").text
    assert "The second" in team.get("/inbox?show=answered").text
    assert "The second" in team.get("/inbox?show=all").text
    assert team.post("/inbox/999/answered", data=form).status_code == 404


def test_the_inbox_tells_how_far_a_message_is(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    send(client)
    advance(app)
    assert "Step 2 of 4" in team.get("/inbox").text
    assert "Not assigned yet" in team.get("/inbox").text
    drain(app)
    answer = team.get("/inbox/messages.json").json
    assert answer is not None
    (listed,) = answer["messages"]
    assert listed["status"] == "finished"
    assert listed["steps_done"] == 4
    assert listed["member"] == "Ada Lovelace"


def test_the_team_tries_again_what_has_failed(
    app: Flask, client: FlaskClient, team: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = send(client).location
    arrive_at("failed", app, monkeypatch)
    page = team.get("/inbox")
    with app.app_context():
        run_id = db.session.scalars(select(SequenceRun.id)).one()
    action = f"/inbox/runs/{run_id}/retry"
    assert team.post(action).status_code == 400
    token = fields(team.get("/inbox"))["token"]
    assert client.post(action, data={"token": token}).location == "/inbox/login"
    assert team.post("/inbox/runs/999/retry", data={"token": token}).status_code == 404
    assert "Failed at" in visible(team.get("/inbox"))

    after = press(team, page, "Try again")
    assert "Failed at" not in visible(after)
    assert "Retrying “Notify the member”, next try now" in visible(after)
    again = press(team, page, "Try again")
    assert again.status_code == 200
    assert "next try now" in visible(again)
    drain(app)
    assert states(client.get(location)) == ["finished"] * 4
    assert len(mails(app)) == 2


def test_a_run_that_is_locked_can_be_tried_again_later(
    app: Flask, client: FlaskClient, team: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: SequenceRun) -> None:
        raise BusyError("Another transaction holds it.")

    send(client)
    arrive_at("failed", app, monkeypatch)
    monkeypatch.setattr(SequenceRun, "retry", refuse)
    answer = press(team, team.get("/inbox"), "Try again")
    assert answer.status_code == 503
    assert "try again in a minute" in visible(answer)


def test_runs_of_other_sequences_are_not_the_teams(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    send(client)
    set_run(app, sequence="Payroll", status=Status.FAILED, due_at=None)
    page = team.get("/inbox")
    assert "Nothing here" in visible(page)
    with app.app_context():
        run_id = db.session.scalars(select(SequenceRun.id)).one()
    form = {"token": fields(page)["token"]}
    assert team.post(f"/inbox/runs/{run_id}/retry", data=form).status_code == 404


def test_what_failed_before_it_was_saved_is_not_lost(
    app: Flask, client: FlaskClient, team: FlaskClient
) -> None:
    location = send(client).location
    set_run(app, status=Status.FAILED, attempt=1, due_at=None, error="OSError: disk <full>")
    page = team.get("/inbox")
    assert VALUES["name"] in visible(page)
    assert "“quoted” {braces} 100 %" in visible(page)
    assert "Failed at “Save the message” : OSError: disk <full> Try again" in visible(page)
    press(team, page, "Try again")
    drain(app)
    assert states(client.get(location)) == ["finished"] * 4


def test_what_is_stuck_comes_first(
    app: Flask, client: FlaskClient, team: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(client, subject="The first")
    arrive_at("failed", app, monkeypatch)
    send(client, subject="The second")
    drain(app)
    inbox = visible(team.get("/inbox"))
    assert inbox.index("The first") < inbox.index("The second")


def test_every_tab_has_its_count(app: Flask, client: FlaskClient, team: FlaskClient) -> None:
    for _ in range(3):
        send(client)
    drain(app)
    after = press(team, team.get("/inbox"), "Mark as answered")
    for page in (after, team.get("/inbox?show=answered"), team.get("/inbox?show=all")):
        assert "Open 2 Answered 1 All 3" in visible(page)
    answered = visible(team.get("/inbox?show=answered"))
    assert "Receipt sent Answered" in answered
    assert "Done" not in answered


def test_times_can_be_read_by_a_script(app: Flask, client: FlaskClient, team: FlaskClient) -> None:
    send(client)
    drain(app)
    page = team.get("/inbox").text
    with app.app_context():
        moment = db.session.scalars(select(Message.created_at)).one()
    assert f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%-d %b %Y, %H:%M} UTC<' in page
    assert 'src="/static/times.js"' in page


@pytest.mark.parametrize(
    "query",
    ["show=' OR 1=1--", "page=-1", "page=0", f"page={10**30}", "page=x", "show=%FF", "page=1e9"],
)
def test_odd_addresses_do_no_harm(team: FlaskClient, query: str) -> None:
    assert team.get(f"/inbox?{query}").status_code == 200


def test_odd_numbers_are_not_found(team: FlaskClient) -> None:
    token = fields(team.get("/inbox"))["token"]
    assert team.post(f"/inbox/{10**30}/answered", data={"token": token}).status_code == 404
    assert team.get(f"/thanks/{10**30}").status_code == 404


def test_a_long_inbox_has_pages(app: Flask, team: FlaskClient) -> None:
    with app.app_context():
        for number in range(101):
            values = {**VALUES, "subject": f"Number {number}."}
            db.session.add(Message(nonce=str(number), **values))
        db.session.commit()
    first, second = team.get("/inbox").text, team.get("/inbox?page=2").text
    assert "Number 100." in first
    assert "Number 0." not in first
    assert "Number 0." in second
    assert "Page 2 of 2" in second


# How it looks


def test_what_is_not_there_is_said_plainly(client: FlaskClient) -> None:
    page = client.get("/nowhere")
    assert page.status_code == 404
    assert "Not Found This page does not exist. Go to the contact form" in visible(page)


def test_an_error_of_ours_is_not_shown(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.config["PROPAGATE_EXCEPTIONS"] = False
    monkeypatch.setattr(pages, "_form", lambda *_: 1 / 0)
    page = client.get("/")
    assert page.status_code == 500
    assert "Something went wrong on our side." in visible(page)
    assert "division" not in page.text


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_stand_out(mode: int) -> None:
    style = (ROOT / "example_app/static/style.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): #(\w+);", style.split(":root {")[mode + 1]))
    least = {
        (4.5, "paper"): "ink soft accent",
        (4.5, "card"): "ink soft accent good warn bad",
        (4.5, "tint"): "ink soft",
        (4.5, "good-tint"): "good",
        (4.5, "warn-tint"): "ink warn",
        (4.5, "bad-tint"): "ink bad",
        (4.5, "accent"): "on-accent",
        (3, "card "): "field",
        (3, "paper "): "field",
    }
    for (ratio, ground), names in least.items():
        for name in names.split():
            pair = sorted(luminance(colours[each.strip()]) for each in (name, ground))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= ratio, (name, ground)


# Setting it up


def test_the_secret_key_is_made_once_and_kept(tmp_path: Path) -> None:
    config = {"INSTANCE_PATH": str(tmp_path), "SQLALCHEMY_DATABASE_URI": "sqlite://"}
    first, second = create_app(config), create_app(config)
    assert first.config["SECRET_KEY"] == second.config["SECRET_KEY"]
    assert len(first.config["SECRET_KEY"]) == 64
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret_key"]


def test_the_environment_chooses_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@db.test/contact")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://broker.test/0")
    monkeypatch.setenv("INSTANCE_PATH", str(tmp_path))
    monkeypatch.setenv("FLASK_INBOX_PASSWORD", "1234")
    app = create_app()
    assert app.config["SQLALCHEMY_DATABASE_URI"] == "postgresql+psycopg://me@db.test/contact"
    assert app.config["CELERY"]["broker_url"] == "redis://broker.test/0"
    assert app.config["INBOX_PASSWORD"] == "1234"


@pytest.mark.parametrize(
    ("text", "value"),
    [("False", False), ("false", False), ("0", False), ("True", True), ("TRUE", True), ("1", True)],
)
def test_a_setting_is_off_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, value: bool
) -> None:
    monkeypatch.setenv("FLASK_MAIL_USE_TLS", text)
    monkeypatch.setenv("FLASK_SESSION_COOKIE_SECURE", text)
    app = create_app({"INSTANCE_PATH": str(tmp_path)})
    assert bool(app.config["MAIL_USE_TLS"]) is value
    assert bool(app.config["SESSION_COOKIE_SECURE"]) is value


def test_what_is_neither_on_nor_off_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_MAIL_USE_TLS", "off")
    with pytest.raises(ValueError, match="MAIL_USE_TLS is either True or False"):
        create_app({"INSTANCE_PATH": str(tmp_path)})


def test_other_users_of_the_machine_can_read_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        new = tmp_path / "new"
        create_app({"INSTANCE_PATH": str(new)})
        assert new.stat().st_mode & 0o077 == 0

        shared = tmp_path / "shared"
        shared.mkdir()
        app = create_app({"TESTING": True, "INSTANCE_PATH": str(shared)})
        with app.app_context():
            db.create_all()
        app.test_cli_runner().invoke(args=["add-members", ADA], catch_exceptions=False)
        send(app.test_client())
        assert drain(app) == 4
        close_app(app)
    finally:
        os.umask(before)
    made = list(shared.iterdir())
    assert {"contact.sqlite", "mails", "secret_key"} <= {path.name for path in made}
    assert [path.name for path in made if path.stat().st_mode & 0o077] == []
    written = list((shared / "mails").iterdir())
    assert [path.stat().st_mode & 0o777 for path in written] == [0o600] * 2


def test_the_console_has_the_database_and_the_sequences_at_hand(tmp_path: Path) -> None:
    app = create_app({"INSTANCE_PATH": str(tmp_path)})
    with app.app_context():
        names = app.make_shell_context()
    assert names.keys() >= {"db", "ContactForm", "Message", "Member", "SequenceRun", "StepRun"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_committed_migrations_are_complete(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'empty.sqlite'}"
    if kind == "postgresql":
        url = request.getfixturevalue("empty_postgresql_url")
    env = {
        **os.environ,
        "DATABASE_URL": url,
        "INSTANCE_PATH": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    for command in ("upgrade", "check", "downgrade base"):
        line = [sys.executable, "-m", "flask", "--app", "example_app", "db", *command.split()]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture
def empty_postgresql_url() -> t.Iterator[str]:
    """The address of a PostgreSQL database without tables."""
    services.require(services.POSTGRESQL)
    url = services.create_database(services.POSTGRESQL)
    yield url
    services.drop_database(services.POSTGRESQL, url)
