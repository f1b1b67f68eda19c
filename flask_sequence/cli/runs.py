"""``flask sequence start``, ``list``, ``show``, ``retry``, ``cancel``: what one does to runs."""

from __future__ import annotations

import json
import re
import typing as t

import click
from flask import current_app

from ..definition.data import encode
from ..definition.registry import get_sequence
from ..engine import control
from ..masking import masked, secrets_in, without
from ..rows.models import SequenceRun
from ..runtime import runtime_of
from ..status import Status
from .group import sequence_cli
from .text import escape, print_table, shown_time

_ITEM = re.compile(r"(?P<key>[^=]*?[^=:])(?P<json>:)?=(?P<value>.*)", re.DOTALL)
_RUN_ID = click.IntRange(min=1, max=2**63 - 1)


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
    rows = [
        (run.id, run.sequence, run.step, run.status, shown_time(run.updated_at)) for run in runs
    ]
    print_table(("ID", "SEQUENCE", "STEP", "STATUS", "UPDATED"), rows)


@sequence_cli.command()
@click.argument("run_id", metavar="ID", type=_RUN_ID)
@click.option("--traceback", is_flag=True, help="With the tracebacks of attempts that failed.")
def show(run_id: int, traceback: bool) -> None:
    """Show a run: where it stands, its data, and each attempt at its steps.

    Values whose key looks like a password, token, key of an API, cookie, card or another secret are
    masked, also where they stand in an error or a traceback.

    \b
    Examples:
      flask sequence show 17
      flask sequence show 17 --traceback
    """
    run = control.find_run(run_id)
    data = json.loads(encode(run.data))
    secrets = secrets_in(run.data, data)
    _print_fields(run, secrets)
    click.echo("\ndata")
    for line in json.dumps(masked(data), indent=2, ensure_ascii=False).splitlines():
        click.echo(f"  {escape(line)}")
    click.echo("\nstep runs")
    rows = [
        (s.step, s.attempt, s.status, shown_time(s.finished_at), s.worker, told)
        for s in run.step_runs
        for told in [without(secrets, s.error or "")]
    ]
    print_table(("STEP", "ATTEMPT", "STATUS", "FINISHED", "WORKER", "ERROR"), rows, indent="  ")
    for step_run in run.step_runs if traceback else ():
        if step_run.traceback:
            click.echo(f"\n{escape(step_run.step)}, attempt {step_run.attempt}")
            for line in without(secrets, step_run.traceback).rstrip().split("\n"):
                click.echo(f"  {escape(line)}")


def _print_fields(run: SequenceRun, secrets: t.Collection[str]) -> None:
    times = ("due_at", "created_at", "started_at", "updated_at", "finished_at")
    names = ("id", "uid", "sequence", "step", "status", "key", "queue", "attempt", "error")
    for name in (*names, *times):
        value = getattr(run, name)
        if value is not None:
            shown = shown_time(value) if name in times else str(value)
            shown = without(secrets, shown) if name == "error" else shown
            click.echo(f"{name.removesuffix('_at'):<9} {escape(shown)}")


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


def _commit() -> None:
    runtime_of(current_app).db.session.commit()
