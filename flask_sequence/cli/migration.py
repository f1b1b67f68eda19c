"""``flask sequence init``: the migration."""

from __future__ import annotations

import pathlib

import click

from ..rows.migration import write_revision
from .group import current_application, sequence_cli
from .text import escape


@sequence_cli.command()
@click.option("-d", "--directory", help="The folder of migrations, as for flask db.")
@click.option("--head", help="The head to append to, where there are several.")
def init(directory: str | None, head: str | None) -> None:
    """Write the migration that creates the tables.

    It goes into the application's Flask-Migrate folder, which is made if there is none. The
    database is not touched; that is done by flask db upgrade.

    \b
    Examples:
      flask sequence init
      flask sequence init -d db/migrations
      flask sequence init --head 3f2a9c
    """
    path = write_revision(current_application(), directory, head)
    if path is None:
        click.echo("Nothing to do: the migrations create the tables already.")
    else:
        click.echo(f"Wrote {escape(str(_from_here(path)))}")
        click.echo("Now run: flask db upgrade")


def _from_here(path: pathlib.Path) -> pathlib.Path:
    here = pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
