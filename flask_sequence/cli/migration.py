"""``flask sequence init``: the migration."""

from __future__ import annotations

import pathlib

import click

from ..rows.migration import find_migrations, write_revision
from .group import current_application, sequence_cli
from .text import escape


@sequence_cli.command()
@click.option("-d", "--directory", help="The migrations folder: flask db's, or any of Alembic.")
@click.option("--head", help="The head to append to, if there are several.")
def init(directory: str | None, head: str | None) -> None:
    """Write the migration that creates the tables.

    It goes into the application's migrations folder: that of Flask-Migrate, which is created if
    there is none, of Flask-Alembic, or of plain Alembic. The tables are created when you apply it.

    \b
    Examples:
      flask sequence init
      flask sequence init -d db/migrations
      flask sequence init -d alembic
      flask sequence init --head 3f2a9c
    """
    app = current_application()
    path = write_revision(app, directory, head)
    if path is None:
        click.echo("Nothing to do: the migrations create the tables already.")
    else:
        click.echo(f"Wrote {escape(str(_from_here(path)))}")
        click.echo(f"Now run: {escape(find_migrations(app, directory).upgrade)}")


def _from_here(path: pathlib.Path) -> pathlib.Path:
    here = pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
