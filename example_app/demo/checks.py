"""What has come of the demo's letters: is each there, once, and as it was typed?"""

from __future__ import annotations

import email
import email.policy
import typing as t
from collections import Counter
from pathlib import Path

from .letters import Letter

if t.TYPE_CHECKING:
    from email.message import EmailMessage

Result = tuple[bool, str]
"""Whether it is right, and what was found."""


def check_inbox(messages: t.Sequence[t.Mapping[str, t.Any]], letters: t.Sequence[Letter]) -> Result:
    """Look for each letter in the inbox.

    :param messages: What the inbox shows.
    :param letters: What was posted.
    """
    expected = Counter(_tidy(letter) for letter in letters)
    found = Counter(Letter(*(message[field] for field in Letter._fields)) for message in messages)
    problems = _differences(expected, found, lambda letter: letter.subject)
    return not problems, (
        f"{found.total()} messages in the inbox, {problems or 'each once and as it was typed'}"
    )


def check_team(messages: t.Sequence[t.Mapping[str, t.Any]], members: int) -> Result:
    """Look whether the messages are shared fairly.

    :param messages: What the inbox shows.
    :param members: How many the team has.
    """
    shares = Counter(str(message["member"]) for message in messages)
    listed = ", ".join(f"{name} {share}" for name, share in sorted(shares.items()))
    fair = len(shares) == members and max(shares.values()) - min(shares.values()) <= 1
    return fair, f"shared among the team: {listed}"


def check_runs(messages: t.Sequence[t.Mapping[str, t.Any]], steps: int) -> Result:
    """Look whether each run is finished.

    :param messages: What the inbox shows.
    :param steps: How many steps they have had together, if so.
    """
    states = Counter(message["status"] for message in messages)
    done = sum(message["steps_done"] for message in messages)
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return states.keys() == {"finished"} and done == steps, f"{done} steps done; runs: {listed}"


def check_pages(pages: t.Sequence[t.Mapping[str, t.Any]], letters: t.Sequence[Letter]) -> Result:
    """Look at the visitors' thanks pages.

    :param pages: What they say.
    :param letters: What was posted.
    """
    over = sum(1 for page in pages if page["over"])
    return over == len(letters), f"{over} visitors see on their page that all is done"


def check_mails(folder: Path, letters: t.Sequence[Letter]) -> list[Result]:
    """Look for the receipt and the notice of each letter.

    :param folder: Where the mail files are.
    :param letters: What was posted.
    """
    mails = {path.stem: _read(path) for path in sorted(folder.glob("[!.]*.eml"))}
    notices = [mail for mail in mails.values() if "Reply-To" in mail]
    receipts = [mail for mail in mails.values() if "Reply-To" not in mail]
    named = all(mail["Message-ID"] == f"<{key}@example.com>" for key, mail in mails.items())
    return [
        (named, f"{len(mails)} mails, with as many Message-IDs"),
        _check_receipts(receipts, letters),
        _check_notices(notices, letters),
    ]


def _check_receipts(mails: t.Sequence[EmailMessage], letters: t.Sequence[Letter]) -> Result:
    expected = Counter(letter.email for letter in letters)
    found = Counter(str(mail["To"].addresses[0].addr_spec) for mail in mails)
    problems = _differences(expected, found, str)
    return not problems, f"{found.total()} receipts to visitors, {problems or 'each once'}"


def _check_notices(mails: t.Sequence[EmailMessage], letters: t.Sequence[Letter]) -> Result:
    expected = Counter((letter.email, _tidy(letter).text) for letter in letters)
    found = Counter(
        (str(mail["Reply-To"].addresses[0].addr_spec), _text_of(mail)) for mail in mails
    )
    problems = _differences(expected, found, lambda pair: pair[0])
    return not problems, f"{found.total()} notices to the team, {problems or 'each once'}"


def _text_of(mail: EmailMessage) -> str:
    content = str(mail.get_content()).replace("\r\n", "\n")
    return content.partition("> wrote:\n\n")[2].rstrip()


def _read(path: Path) -> EmailMessage:
    return email.message_from_bytes(path.read_bytes(), policy=email.policy.default)


def _tidy(letter: Letter) -> Letter:
    name, address, subject, text = letter
    return Letter(name.strip(), address, subject.strip(), text.strip("\n").rstrip())


ThingT = t.TypeVar("ThingT")


def _differences(
    expected: Counter[ThingT], found: Counter[ThingT], name: t.Callable[[ThingT], str]
) -> str:
    missing = [name(thing)[:40] for thing in (expected - found).elements()]
    doubled = [name(thing)[:40] for thing in (found - expected).elements()]
    parts = [f"missing: {missing}"] * bool(missing) + [f"too many: {doubled}"] * bool(doubled)
    return "; ".join(parts)
