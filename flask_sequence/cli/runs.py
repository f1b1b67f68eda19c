"""``flask sequence start``, ``list``, ``show``, ``retry``, ``cancel``: what one does to runs."""

from __future__ import annotations

import datetime
import difflib
import json
import re
import typing as t

import click

from ..definition.data import encode
from ..definition.registry import get_sequence, sequence_names
from ..engine import consumers, control
from ..engine.known_steps import place_of, retries_of
from ..errors import DataError
from ..masking import masked, secrets_in, without
from ..rows.models import SequenceRun
from ..runtime import current_runtime
from ..status import Status, StepState
from .group import sequence_cli
from .text import escape, is_terminal, print_table, shown_seconds, shown_time

_ITEM = re.compile(r"(?P<key>[^=]*?[^=:])(?P<json>:)?=(?P<value>.*)", re.DOTALL)
_MOST_DECIMAL = 10**640
"""An integer from which on its decimal text may be refused: the least bound that Python takes."""
_NUMBER = click.IntRange(min=1, max=2**63 - 1)


@sequence_cli.command()
@click.argument("name")
@click.argument("items", metavar="[KEY=VALUE | KEY:=JSON]...", nargs=-1)
@click.option("--data", metavar="JSON", help="More data, as a JSON object.")
@click.option("--key", help="A name for the run; at most one is active per sequence and key.")
@click.option(
    "--countdown", metavar="S", type=click.FloatRange(min=0), help="Delay it by S seconds."
)
@click.option("--queue", metavar="Q", help="Queue for steps without one of their own.")
def start(
    name: str,
    items: tuple[str, ...],
    data: str | None,
    key: str | None,
    countdown: float | None,
    queue: str | None,
) -> None:
    """Start a run of the sequence NAME, and print its id.

    KEY=VALUE passes a string, KEY:=JSON a number, a list or any other JSON value.

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
            raise click.UsageError(f"{escape(item)!r}: write key=value or key:=JSON.")
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
            f"{escape(where)}: this is not valid JSON ({error}); strings need double quotes."
        ) from None


@sequence_cli.command("list")
@click.option(
    "--status", type=click.Choice([s.value for s in Status]), help="Only runs with this status."
)
@click.option("--sequence", metavar="NAME", help="Only runs of this sequence.")
@click.option(
    "--limit",
    metavar="N",
    type=_NUMBER,
    default=50,
    show_default=True,
    help="Show at most N runs.",
)
def list_(status: str | None, sequence: str | None, limit: int) -> None:
    """List runs, newest first. The exit code is 1 if there are none.

    \b
    Examples:
      flask sequence list
      flask sequence list --status failed --sequence ContactForm
      flask sequence list --limit 1000
    """
    runs = control.list_runs(
        status=None if status is None else Status(status), sequence=sequence, limit=limit
    )
    if not runs:
        raise click.ClickException(_nothing(status, sequence))
    rows = [
        (
            run.id,
            run.sequence,
            _shown_step(run),
            _shown_status(run, run.now),
            run.key,
            _shown_age(run.updated_at, run.now),
            run.error,
        )
        for run in runs
    ]
    print_table(("ID", "SEQUENCE", "STEP", "STATUS", "KEY", "UPDATED", "ERROR"), rows)
    _warn(consumers.missing_workers(runs))


def _nothing(status: str | None, sequence: str | None) -> str:
    names = sequence_names()
    if sequence is not None and sequence not in names:
        near = difflib.get_close_matches(sequence, names, n=1)
        cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(names) or 'none'}."
        return (
            f"There is no run of a sequence {escape(repr(sequence))}, and no such sequence is known"
            f" here: {cure}"
        )
    words = [status or "", "run", f"of {sequence}" if sequence else ""]
    return f"There is no {' '.join(word for word in words if word)}."


def _shown_step(run: t.Any) -> str:
    place = place_of(run.sequence, run.step)
    if run.status is Status.FINISHED:
        return f"{place[1]}/{place[1]}" if place else "-"
    return f"{run.step} {place[0]}/{place[1]}" if place else str(run.step)


def _shown_status(run: t.Any, now: datetime.datetime) -> str:
    """Show where a run is; of one that waits for another try, which that is, and when it is due."""
    if run.status is not Status.WAITING or run.due_at is None:
        return str(run.status)
    rest = (run.due_at - now).total_seconds()
    when = f"in {shown_seconds(rest)}" if rest > 0 else "now"
    if run.retries and run.error:
        most = retries_of(run.sequence, run.step)
        return f"waiting (retry {run.retries}{f' of {most}' if most else ''}, next {when})"
    return f"waiting (due {when})" if rest > 0 else "waiting"


def _shown_age(value: datetime.datetime, now: datetime.datetime) -> str:
    if not is_terminal():
        return shown_time(value)
    return f"{shown_seconds((now - value).total_seconds())} ago"


def _warn(lines: t.Iterable[str]) -> None:
    for line in lines:
        click.echo(escape(line), err=True)


@sequence_cli.command()
@click.argument("run_id", metavar="ID", type=_NUMBER)
@click.option("--traceback", is_flag=True, help="Show the tracebacks of failed attempts, too.")
def show(run_id: int, traceback: bool) -> None:
    """Show a run: where it is, its data, each attempt at its steps, and the steps to come.

    Values whose key looks like a password, token, API key, cookie, card or another secret are
    masked, in errors and tracebacks too.

    \b
    Examples:
      flask sequence show 17
      flask sequence show 17 --traceback
    """
    run = control.find_run(run_id)
    data, secrets = _read(run)
    holder, trouble = consumers.holder_of(run) if run.status is Status.RUNNING else (None, None)
    now = datetime.datetime.now(datetime.UTC)
    _print_fields(run, secrets, now)
    click.echo("\ndata")
    for line in data:
        click.echo(f"  {escape(line)}")
    click.echo("\nattempts")
    print_table(_HEADER, _attempts(run, secrets, holder, now), indent="  ")
    for step_run in run.step_runs if traceback else ():
        if step_run.traceback:
            click.echo(f"\n{escape(step_run.step)}, attempt {step_run.attempt}")
            for line in without(secrets, step_run.traceback).rstrip().split("\n"):
                click.echo(f"  {escape(line)}")
    if run.status is Status.FAILED:
        shown = "" if traceback else f"flask sequence show {run_id} --traceback, or "
        click.echo(f"\nnext: {shown}flask sequence retry {run_id}")
    _warn([trouble] if trouble else consumers.missing_workers([run]))


_HEADER = ("STEP", "ATTEMPT", "STATUS", "STARTED", "TOOK", "WORKER", "ERROR")


def _read(run: SequenceRun) -> tuple[list[str], tuple[str, ...]]:
    """Give the lines of the data, without secrets, and the secrets."""
    try:
        secrets = secrets_in(run.data, json.loads(encode(run.data)))
    except DataError as error:
        return [str(error)], ()
    shown = _with_digits(masked(run.data))
    text = json.dumps(shown, indent=2, ensure_ascii=False, default=_shown_value)
    return text.splitlines(), secrets


def _with_digits(tree: t.Any) -> t.Any:
    """Write an integer with more digits than Python writes as decimal text in hexadecimal."""
    if isinstance(tree, dict):
        return {key: _with_digits(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_digits(value) for value in tree]
    return hex(tree) if isinstance(tree, int) and abs(tree) >= _MOST_DECIMAL else tree


def _shown_value(value: t.Any) -> str:
    shown = getattr(value, "isoformat", None)  # a date or a time
    return str(value) if shown is None else str(shown())


def _attempts(
    run: SequenceRun, secrets: t.Collection[str], holder: str | None, now: datetime.datetime
) -> list[tuple[t.Any, ...]]:
    rows: list[tuple[t.Any, ...]] = [
        (
            told.step,
            told.attempt,
            told.status,
            shown_time(told.started_at),
            _took(told.started_at, told.finished_at),
            told.worker,
            without(secrets, told.error or ""),
        )
        for told in run.step_runs
    ]
    if run.status is Status.RUNNING:
        began = run.step_started_at
        in_hand = (run.step, run.attempt, "running", shown_time(began), _took(began, now))
        rows.append((*in_hand, holder, ""))
    left = (StepState.TO_COME, StepState.WAITING, StepState.BLOCKED, StepState.PAUSED)
    for step in run.progress.steps:
        if step.state in left:
            rows.append((step.name, "", step.state, "", "", "", ""))
    return rows


def _took(began: datetime.datetime | None, ended: datetime.datetime) -> str:
    return "" if began is None else shown_seconds((ended - began).total_seconds())


def _print_fields(run: SequenceRun, secrets: t.Collection[str], now: datetime.datetime) -> None:
    place = place_of(run.sequence, run.step)
    most = current_runtime().settings.max_crashes
    shown: dict[str, str | None] = {
        "id": str(run.id),
        "uid": str(run.uid),
        "sequence": run.sequence,
        "step": f"{run.step} ({place[0]} of {place[1]})" if place else run.step,
        "status": _shown_status(run, now),
        "key": run.key,
        "queue": run.queue,
        "attempt": str(run.attempt),
        "crashes": f"{run.crashes} of {most} without progress" if run.crashes else None,
        "error": run.error and without(secrets, run.error),
    }
    for name in ("due_at", "created_at", "started_at", "updated_at", "finished_at"):
        value: datetime.datetime | None = getattr(run, name)
        if value is not None:
            seconds = (now - value).total_seconds()
            ago = (
                f"{shown_seconds(seconds)} ago" if seconds >= 0 else f"in {shown_seconds(-seconds)}"
            )
            shown[name.removesuffix("_at")] = f"{shown_time(value)} ({ago})"
    for name, text in shown.items():
        if text is not None:
            click.echo(f"{name:<9} {escape(text)}")


@sequence_cli.command()
@click.argument("run_id", metavar="ID", type=_NUMBER)
def retry(run_id: int) -> None:
    """Resume a failed run at its failed step, or make a run's next retry due at once.

    \b
    Examples:
      flask sequence retry 17
    """
    control.find_run(run_id).retry()
    _commit()
    run = control.find_run(run_id)
    click.echo(f"Run {run_id} will run again from {escape(run.step)}.")
    _warn(consumers.missing_workers([run]))


@sequence_cli.command()
@click.argument("run_id", metavar="ID", type=_NUMBER)
def cancel(run_id: int) -> None:
    """Cancel a run that has not ended. A step that is running is not committed.

    \b
    Examples:
      flask sequence cancel 17
    """
    run = control.find_run(run_id)
    run.cancel()
    _commit()
    click.echo(f"Run {run_id} is cancelled.")


def _commit() -> None:
    current_runtime().db.session.commit()
