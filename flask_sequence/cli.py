"""``flask sequence``: the migration, the worker, and what a person does to runs."""

from __future__ import annotations

import contextvars
import datetime
import json
import pathlib
import re
import typing as t

import click
from flask import Flask, current_app
from flask.cli import AppGroup, ScriptInfo

from . import control
from .data import encode
from .database_errors import NO_ANSWER
from .definition import get_sequence
from .errors import SequenceError
from .migration import write_revision
from .models import SequenceRun
from .runtime import runtime_of
from .status import Status
from .worker import import_sequences, run_worker

SECRET = re.compile(r"passw|token|secret|authoriz", re.IGNORECASE)
"""Which keys of the data ``show`` masks."""

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ITEM = re.compile(r"(?P<key>[^=]*?[^=:])(?P<json>:)?=(?P<value>.*)", re.DOTALL)
_GREEN = re.compile(r"(^| )(-P|--pool)[= ]?(gevent|eventlet)( |$)")
_RUN_ID = click.IntRange(min=1, max=2**63 - 1)


class SequenceGroup(AppGroup):
    """Imports the application's sequences before a command, and tells errors in one line."""

    def invoke(self, ctx: click.Context) -> t.Any:
        """Run a command."""
        try:
            import_sequences(runtime_of(_load_app(ctx)))
            return super().invoke(ctx)
        except SequenceError as error:
            raise click.ClickException(escape(str(error))) from error
        except NO_ANSWER as error:
            told = " ".join(str(error.orig).split())
            raise click.ClickException(
                f"The database does not answer: {escape(told)}. Is its server running, and does"
                " SQLALCHEMY_DATABASE_URI lead to it?"
            ) from error


def _load_app(ctx: click.Context) -> Flask:
    return ctx.ensure_object(ScriptInfo).load_app()


def escape(text: str) -> str:
    """Make control characters and changes of direction visible, so that they do nothing.

    :param text: What is to be printed; it may come from anybody.
    :return: One line.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


@click.group("sequence", cls=SequenceGroup)
def sequence_cli() -> None:
    """Run sequences: their tables, their worker, their runs.

    \b
    Examples:
      flask sequence init && flask db upgrade
      flask sequence worker -c 4
      flask sequence start ContactForm name=Joel age:=41
      flask sequence list --status failed
    """


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
    path = write_revision(_app(), directory, head)
    if path is None:
        click.echo("Nothing to do: the migrations create the tables already.")
    else:
        click.echo(f"Wrote {escape(str(_from_here(path)))}")
        click.echo("Now run: flask db upgrade")


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
            ' celery_app = app.extensions["celery"].'
        )
    celery = runtime_of(_load_app(ctx)).celery
    # Flask keeps an app context active around commands, and the worker's children would
    # inherit it.
    ctx.exit(contextvars.Context().run(run_worker, celery, options))


@sequence_cli.command()
@click.argument("name")
@click.argument("items", metavar="[KEY=VALUE | KEY:=JSON]...", nargs=-1)
@click.option("--data", metavar="JSON", help="More data, as one JSON object.")
@click.option("--key", help="A name for the run; at most one is active per sequence and key.")
@click.option("--countdown", metavar="S", type=click.FloatRange(min=0), help="Seconds to wait.")
@click.option("--queue", metavar="Q", help="The queue of the steps that name none.")
def start(
    name: str,
    items: tuple[str, ...],
    data: str | None,
    key: str | None,
    countdown: float | None,
    queue: str | None,
) -> None:
    """Start a run of the sequence NAME, and print its id.

    KEY=VALUE gives a text, KEY:=JSON a number, a list or any other JSON value.

    \b
    Examples:
      flask sequence start ContactForm name=Joel age:=41 tags:='["a", "b"]'
      flask sequence start ContactForm --data '{"name": "Joel"}'
      flask sequence start Invoice number:=17 --key invoice-17 --countdown 60
    """
    given = _data(items, data)
    sequence: t.Any = get_sequence(name).cls
    run = sequence.set(key=key, countdown=countdown, queue=queue).start(**given)
    _commit()
    click.echo(control.id_of(run))


def _data(items: tuple[str, ...], data: str | None) -> dict[str, t.Any]:
    given = {} if data is None else _json("--data", data)
    if not isinstance(given, dict):
        raise click.UsageError('--data must be a JSON object, such as {"name": "Joel"}.')
    for item in items:
        found = _ITEM.fullmatch(item)
        if found is None:
            raise click.UsageError(f"{escape(item)!r}: write key=text or key:=JSON.")
        key, value = found["key"], found["value"]
        if key in given:
            raise click.UsageError(f"{escape(key)!r} is given twice.")
        given[key] = _json(item, value) if found["json"] else value
    return given


def _json(where: str, text: str) -> t.Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(
            f"{escape(where)}: this is no JSON ({error}); a text stands in double quotes."
        ) from None


@sequence_cli.command("list")
@click.option("--status", type=click.Choice([s.value for s in Status]), help="Only these.")
@click.option("--sequence", metavar="NAME", help="Only runs of this sequence.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many."
)
def list_(status: str | None, sequence: str | None, limit: int) -> None:
    """List runs, the newest first: id, sequence, step, status, updated.

    \b
    Examples:
      flask sequence list
      flask sequence list --status failed --sequence ContactForm
      flask sequence list --limit 1000
    """
    runs = control.list_runs(
        status=None if status is None else Status(status), sequence=sequence, limit=limit
    )
    rows = [(run.id, run.sequence, run.step, run.status, _time(run.updated_at)) for run in runs]
    _print_table(("ID", "SEQUENCE", "STEP", "STATUS", "UPDATED"), rows)


@sequence_cli.command()
@click.argument("run_id", metavar="ID", type=_RUN_ID)
@click.option("--traceback", is_flag=True, help="With the tracebacks of attempts that failed.")
def show(run_id: int, traceback: bool) -> None:
    """Show a run: where it stands, its data, and each attempt at its steps.

    Values whose key looks like a password, token, secret or authorization are masked.

    \b
    Examples:
      flask sequence show 17
      flask sequence show 17 --traceback
    """
    run = control.find_run(run_id)
    _print_fields(run)
    click.echo("\ndata")
    data = _masked(json.loads(encode(run.data)))
    for line in json.dumps(data, indent=2, ensure_ascii=False).splitlines():
        click.echo(f"  {escape(line)}")
    click.echo("\nstep runs")
    rows = [
        (s.step, s.attempt, s.status, _time(s.finished_at), s.worker, s.error)
        for s in run.step_runs
    ]
    _print_table(("STEP", "ATTEMPT", "STATUS", "FINISHED", "WORKER", "ERROR"), rows, indent="  ")
    for step_run in run.step_runs if traceback else ():
        if step_run.traceback:
            click.echo(f"\n{escape(step_run.step)}, attempt {step_run.attempt}")
            for line in step_run.traceback.rstrip().split("\n"):
                click.echo(f"  {escape(line)}")


def _print_fields(run: SequenceRun) -> None:
    times = ("due_at", "created_at", "started_at", "updated_at", "finished_at")
    names = ("id", "uid", "sequence", "step", "status", "key", "queue", "attempt", "error")
    for name in (*names, *times):
        value = getattr(run, name)
        if value is not None:
            shown = _time(value) if name in times else escape(str(value))
            click.echo(f"{name.removesuffix('_at'):<9} {shown}")


def _masked(tree: t.Any) -> t.Any:
    if isinstance(tree, list):
        return [_masked(item) for item in tree]
    if isinstance(tree, dict):
        return {key: "***" if SECRET.search(key) else _masked(tree[key]) for key in tree}
    return tree


@sequence_cli.command()
@click.argument("run_id", metavar="ID", type=_RUN_ID)
def retry(run_id: int) -> None:
    """Take a failed run up again, from its failed step.

    \b
    Examples:
      flask sequence retry 17
    """
    run = control.find_run(run_id)
    run.retry()
    _commit()
    click.echo(f"Run {run_id} is tried again.")


@sequence_cli.command()
@click.argument("run_id", metavar="ID", type=_RUN_ID)
def cancel(run_id: int) -> None:
    """Cancel a run that has not ended. A step that is being performed is not committed.

    \b
    Examples:
      flask sequence cancel 17
    """
    run = control.find_run(run_id)
    run.cancel()
    _commit()
    click.echo(f"Run {run_id} is cancelled.")


def _from_here(path: pathlib.Path) -> pathlib.Path:
    here = pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _app() -> Flask:
    return t.cast("Flask", current_app._get_current_object())  # type: ignore[attr-defined]


def _commit() -> None:
    runtime_of(current_app).db.session.commit()


def _time(value: datetime.datetime | None) -> str:
    return "" if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_table(
    header: tuple[str, ...], rows: t.Iterable[tuple[t.Any, ...]], indent: str = ""
) -> None:
    cells = [
        header,
        *(tuple("" if v is None else escape(str(v)) for v in row) for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(indent + line.rstrip())
