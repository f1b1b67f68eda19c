"""The mails: by SMTP or, with no ``MAIL_SERVER`` configured, as files in the instance folder."""

from __future__ import annotations

import datetime
import smtplib
import ssl
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
Hello,

Your message to us has arrived. {member} will answer it. Its reference number is {reference}.

You get this mail because someone entered your address in our contact form. If it was not you,
you can ignore it.
"""

NOTIFICATION = """\
Hello {member},

Here is a message for you to answer. Its reference number is {reference}.

{name} <{email}> wrote:

{text}
"""


def receipt(message: Message) -> EmailMessage:
    """Make the mail to the sender. It holds nothing that they typed: nobody can send through us.

    :param message: The message that arrived.
    """
    mail = _mail(message.email, f"We have your message ({message.reference})")
    member = message.member.name if message.member else "Our team"
    mail.set_content(RECEIPT.format(member=member, reference=message.reference), cte="base64")
    return mail


def notification(message: Message, member: Member) -> EmailMessage:
    """Make the mail to the member.

    :param message: The message that arrived.
    :param member: Who has to answer it.
    """
    mail = _mail(member.email, f"For you: {message.subject}")
    mail["Reply-To"] = Address(addr_spec=message.email)
    text = NOTIFICATION.format(
        member=member.name,
        reference=message.reference,
        name=message.name,
        email=message.email,
        text=message.text,
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


def _mail(email: str, subject: str) -> EmailMessage:
    mail = EmailMessage(SMTP)  # Such a policy refuses a header with a line break in it.
    mail["From"] = current_app.config["MAIL_FROM"]
    # Without a name: folded into several lines, a long one may be read as more addresses.
    mail["To"] = Address(addr_spec=email)
    # The email package would decode =?utf-8?q?x=0ABcc:...?= and so let a line break in.
    mail["Subject"] = subject.replace("=?", "= ?")
    mail["Auto-Submitted"] = "auto-generated"
    return mail


def _send(mail: EmailMessage, server: str) -> None:
    config = current_app.config
    with smtplib.SMTP(server, config["MAIL_PORT"], timeout=20) as smtp:
        if config["MAIL_USE_TLS"]:
            smtp.starttls(context=ssl.create_default_context())  # Without one it trusts anybody.
        if config["MAIL_USERNAME"]:
            smtp.login(config["MAIL_USERNAME"], config["MAIL_PASSWORD"])
        smtp.send_message(mail)


def _write(mail: EmailMessage, folder: Path, name: str) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = folder / f".{uuid.uuid4()}"
    hidden.touch(mode=0o600)
    hidden.write_bytes(mail.as_bytes())
    hidden.replace(folder / name)  # Nobody reads it half-written; an earlier one is replaced.
