"""The group of commands, and what they share."""

from __future__ import annotations

import typing as t

import click
from flask import Flask, current_app
from flask.cli import AppGroup, ScriptInfo

from ..errors import SequenceError
from ..rows.driver_errors import NO_ANSWER
from ..runtime import runtime_of
from ..worker.signals import import_sequences
from .text import escape

ORDER = ("init", "worker", "start", "list", "show", "retry", "cancel")


class SequenceGroup(AppGroup):
    """Imports the application's sequences before a command, and tells errors in one line."""

    def invoke(self, ctx: click.Context) -> t.Any:
        """Run a command."""
        try:
            import_sequences(runtime_of(load_application(ctx)))
            return super().invoke(ctx)
        except SequenceError as error:
            raise click.ClickException(escape(str(error))) from error
        except NO_ANSWER as error:
            told = " ".join(str(error.orig).split())
            raise click.ClickException(
                f"The database does not answer ({escape(told)}): start its server, or correct"
                " SQLALCHEMY_DATABASE_URI."
            ) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the commands in the order in which one needs them."""
        known = [name for name in ORDER if name in self.commands]
        return known + sorted(set(self.commands) - set(known))


def load_application(ctx: click.Context) -> Flask:
    """Load the application that the command is for."""
    return ctx.ensure_object(ScriptInfo).load_app()


def current_application() -> Flask:
    """Give the application of the command that is running."""
    return t.cast("Flask", current_app._get_current_object())  # type: ignore[attr-defined]


@click.group("sequence", cls=SequenceGroup)
def sequence_cli() -> None:
    """Manage sequences: their tables, their worker and their runs.

    \b
    Examples:
      flask sequence init && flask db upgrade
      flask sequence worker -c 4
      flask sequence start ContactForm name=Joel age:=41
      flask sequence list --status failed
    """
