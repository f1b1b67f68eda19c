"""``flask sequence worker``: Celery's worker for this application."""

from __future__ import annotations

import contextvars
import re

import click

from ..runtime import runtime_of
from ..worker.signals import run_worker
from .group import load_application, sequence_cli

_GREEN = re.compile(r"(^| )(-P|--pool)[= ]?(gevent|eventlet)( |$)")


@sequence_cli.command(
    with_appcontext=False,
    add_help_option=False,
    options_metavar="",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("options", metavar="[OPTION]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def worker(ctx: click.Context, options: tuple[str, ...]) -> None:
    """Run Celery's worker for this application, with all of its options.

    Where Celery's own examples say `celery -A proj worker`, write `flask sequence worker`.

    \b
    Examples:
      flask sequence worker
      flask sequence worker -c 4 --loglevel info
      flask sequence worker -P threads -Q mail
      flask sequence worker --help
    """
    if "--help" in options:
        click.echo(f"{ctx.get_help()}\n\nCelery's own help:\n")
    if {"-D", "--detach"} & set(options):
        raise click.UsageError(
            "The worker stays in the foreground here: leave out --detach, and let a service"
            " manager keep it running."
        )
    if _GREEN.search(" ".join(options)):
        raise click.UsageError(
            "gevent and eventlet have to replace Python's blocking calls before anything else is"
            " imported: start the worker by 'celery -A MODULE worker', where MODULE holds"
            " celery = celery_app(app)."
        )
    runtime = runtime_of(load_application(ctx))
    runtime.is_chosen = True
    # Flask keeps an app context active around commands, and the worker's children would
    # inherit it.
    ctx.exit(contextvars.Context().run(run_worker, runtime.celery, options))
