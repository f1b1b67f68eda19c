"""The mails: by SMTP or, with no ``MAIL_SERVER`` configured, as files in the instance folder."""

from __future__ import annotations

import datetime
import smtplib
import typing as t
import uuid
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

from flask import current_app

if t.TYPE_CHECKING:
    from .models import Member, Message

RECEIPT = """\
Hello {name},

your message “{subject}” has arrived. {member} will answer it.

This mail was sent since somebody gave your address in our contact form. If that was not you,
there is nothing to do.
"""

NOTIFICATION = """\
Hello {member},

{name} <{email}> wrote:

{text}
"""


def receipt(message: Message) -> EmailMessage:
    """Make the mail to the sender. It does not hold the text: nobody can send theirs through us.

    :param message: The message that arrived.
    """
    mail = _mail(message.name, message.email, f"We have your message: {message.subject}")
    member = message.member.name if message.member else "Our team"
    text = RECEIPT.format(name=message.name, subject=message.subject, member=member)
    mail.set_content(text, cte="base64")
    return mail


def notification(message: Message, member: Member) -> EmailMessage:
    """Make the mail to the member.

    :param message: The message that arrived.
    :param member: Who has to answer it.
    """
    mail = _mail(member.name, member.email, f"For you: {message.subject}")
    mail["Reply-To"] = _address(message.name, message.email)
    text = NOTIFICATION.format(
        member=member.name, name=message.name, email=message.email, text=message.text
    )
    mail.set_content(text, cte="base64")
    return mail


def send(mail: EmailMessage, key: str) -> None:
    """Send a mail, or write it to a file; under the same key it is the same mail.

    :param mail: The mail, without its Message-ID and Date.
    :param key: An idempotency key; the Message-ID and the file's name are made from it.
    :raises OSError: The server or the disk did not take it.
    """
    domain = current_app.config["MAIL_FROM"].rpartition("@")[2]
    mail["Message-ID"] = f"<{key}@{domain}>"
    mail["Date"] = datetime.datetime.now(datetime.UTC)
    if server := current_app.config["MAIL_SERVER"]:
        _send(mail, server)
    else:
        _write(mail, Path(current_app.instance_path, "mails"), f"{key}.eml")


def _mail(name: str, email: str, subject: str) -> EmailMessage:
    mail = EmailMessage(SMTP)  # Such a policy refuses a header with a line break in it.
    mail["From"] = current_app.config["MAIL_FROM"]
    mail["To"] = _address(name, email)
    mail["Subject"] = _literal(subject)
    mail["Auto-Submitted"] = "auto-generated"
    return mail


def _address(name: str, email: str) -> Address:
    return Address(display_name=_literal(name), addr_spec=email)


def _literal(text: str) -> str:
    # The email package would decode =?utf-8?q?x=0ABcc:...?= and so let a line break in.
    return text.replace("=?", "= ?")


def _send(mail: EmailMessage, server: str) -> None:
    config = current_app.config
    with smtplib.SMTP(server, config["MAIL_PORT"], timeout=20) as smtp:
        if config["MAIL_USE_TLS"]:
            smtp.starttls()
        if config["MAIL_USERNAME"]:
            smtp.login(config["MAIL_USERNAME"], config["MAIL_PASSWORD"])
        smtp.send_message(mail)


def _write(mail: EmailMessage, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f".{uuid.uuid4()}"
    hidden.write_bytes(mail.as_bytes())
    hidden.replace(folder / name)  # Nobody reads it half-written; an earlier one is replaced.
