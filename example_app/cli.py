"""The application's own command."""

from __future__ import annotations

from email.utils import parseaddr

import click
from flask.cli import with_appcontext
from sqlalchemy import select

from .extensions import db
from .forms import find_problem, tidy_line
from .models import Member


@click.command("add-members")
@click.argument("addresses", nargs=-1, required=True, metavar='"NAME <EMAIL>"...')
@with_appcontext
def add_members(addresses: tuple[str, ...]) -> None:
    """Add members to the team that answers messages; who is in it already stays."""
    for address in addresses:
        name, email = (tidy_line(part) for part in parseaddr(address))
        if find_problem("name", name) or find_problem("email", email):
            raise click.UsageError(f"Write {address!r} as 'Ada Lovelace <ada@example.com>'.")
        if db.session.scalar(select(Member.id).where(Member.email == email)) is None:
            db.session.add(Member(name=name, email=email))
    db.session.commit()
