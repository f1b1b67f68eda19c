"""Tells how a storm went: as text, as JSON, and as a picture."""

from __future__ import annotations

import bisect
import collections
import json
import os
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.storm.nemesis import Fault

if t.TYPE_CHECKING:
    from tests.storm.checker import Findings
    from tests.storm.place import Options

COLOURS = {
    "child": "#c8a415",
    "worker": "#d9480f",
    "main": "#a61e4d",
    "stop": "#5f3dc4",
    "flush": "#1971c2",
    "broker": "#0b7285",
    "database": "#212529",
    "database cut": "#66a80f",
    "database host": "#2b8a3e",
    "worker cut": "#e64980",
    "broker cut": "#15aabf",
    "broker host": "#4263eb",
    "stranger": "#868e96",
    "stranger locks": "#845ef7",
    "stranger rolls back": "#ced4da",
    "stranger killed": "#f76707",
}
NAMES = {
    "child": "child killed",
    "worker": "worker killed with its children",
    "main": "worker killed without its children",
    "stop": "worker stopped beyond its lease",
    "flush": "broker flushed",
    "broker": "broker restarted",
    "database": "database restarted",
    "database cut": "host of the database cut off",
    "database host": "host of the database lost, another one at its address",
    "worker cut": "host of workers cut off beyond the lease",
    "broker cut": "host of the broker cut off",
    "broker host": "host of the broker lost, another one at its address",
    "stranger": "stranger referred to runs",
    "stranger locks": "stranger did, and locked all rows that refer to them",
    "stranger rolls back": "stranger did, and rolled back",
    "stranger killed": "stranger did, and its connection was killed",
}
WIDTH, HEIGHT, LEFT, TOP = 900, 260, 50, 20
BOTTOM = TOP + HEIGHT + 4 + 8 * len(COLOURS)
SHOWN = 5
"""How many findings of each kind the text names."""


@dataclass(frozen=True)
class Result:
    """All that a report tells."""

    options: Options
    findings: Findings
    faults: list[Fault]
    started: list[float]
    finished: list[float]
    began: float
    last_fault: float
    ended_workers: list[str]
    errors: list[str]
    standing: list[str]
    loads: tuple[float, float]
    """The load of the machine before and after."""
    unpurged: int = 0
    """How many runs that ended long ago are still there."""

    @property
    def seconds_to_finish(self) -> float:
        """From the last fault to the last finish; 0 if that came before."""
        return max(0.0, max(self.finished, default=self.began) - self.last_fault)

    @property
    def problems(self) -> list[str]:
        """Give why the storm failed, a line each."""
        found = [f"{len(rows)} {name}" for name, rows in self.findings.faults.items() if rows]
        if self.findings.recovered == 0:
            found.append("nothing was recovered: no fault hit anything")
        if self.options.has_strangers and self.findings.strangers == 0:
            found.append("no stranger has referred to a run")
        if self.unpurged:
            found.append(f"{self.unpurged} runs that ended long ago were not purged")
        if self.seconds_to_finish > self.options.goal:
            found.append(f"done {self.seconds_to_finish:.1f} s after the last fault")
        return [*found, *self.errors]

    def figures(self) -> dict[str, t.Any]:
        """Give the figures for JSON."""
        return {
            "options": asdict(self.options),
            "good": not self.problems,
            "problems": self.problems,
            "started": len(self.started),
            "finished": len(self.finished),
            **{name: len(rows) for name, rows in self.findings.faults.items()},
            "recovered": self.findings.recovered,
            "foreign_rows": self.findings.papers,
            "foreign_rows_of_strangers": self.findings.strangers,
            "unpurged": self.unpurged,
            "seconds_from_last_fault_to_last_finish": round(self.seconds_to_finish, 2),
            "workers_ended_by_themselves": self.ended_workers,
            "load": self.loads,
            "processors": os.cpu_count(),
            "findings": self.findings.faults,
            "standing": self.standing,
            "faults": [
                {
                    **asdict(fault),
                    "at": round(fault.at - self.began, 2),
                    "until": round(fault.until - self.began, 2),
                }
                for fault in self.faults
            ],
        }


def write(result: Result, folder: Path) -> None:
    """Write ``report.txt``, ``report.json`` and ``timeline.svg``.

    :param result: How it went.
    :param folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(text(result) + "\n")
    (folder / "report.json").write_text(json.dumps(result.figures(), indent=2) + "\n")
    (folder / "timeline.svg").write_text(picture(result))


def text(result: Result) -> str:
    """Tell it in words.

    :param result: How it went.
    """
    options, counts = result.options, collections.Counter(fault.kind for fault in result.faults)
    peer = f"{options.peer}{', acks_late' if options.acks_late else ''}: " if options.peer else ""
    kinds = [f"  {counts[kind]:4d} times  {NAMES[kind]}" for kind in NAMES if counts[kind]]
    past = options.past if options.has_strangers else 0
    purged, findings = past - result.unpurged, []
    for name, rows in result.findings.faults.items():
        findings.append(f"  {name.replace('_', ' '):14s} {len(rows)}")
        findings += [f"      {row}" for row in rows[:SHOWN]]
    return "\n".join(
        [
            f"{peer}{len(result.started)} runs of 5 steps on {options.database} and"
            f" {options.broker}, {options.workers} workers of {options.concurrency}"
            f" ({options.pool}), lease {options.lease:g} s, sweep {options.sweep:g} s, seed"
            f" {options.seed}{', on hosts of their own' if options.partition else ''}",
            f"In {options.seconds:g} s:",
            *kinds,
            "Found:",
            *findings,
            f"  recovered      {result.findings.recovered} attempts",
            f"  foreign rows   {result.findings.papers} of starts and steps,"
            f" {result.findings.strangers} of strangers",
            f"  purged         {purged} of {past} runs that ended long ago",
            f"  all done       {result.seconds_to_finish:.1f} s after the last fault",
            f"  by themselves  {len(result.ended_workers)} workers ended",
            *(f"      {row}" for row in result.ended_workers[:SHOWN]),
            *(f"  not finished:  {row}" for row in result.standing[:SHOWN]),
            f"Load {result.loads[0]:.1f} before, {result.loads[1]:.1f} after,"
            f" {os.cpu_count()} processors",
            f"BAD: {'; '.join(result.problems)}" if result.problems else "GOOD",
        ]
    )


def picture(result: Result) -> str:
    """Draw runs started and finished over time, and the faults, as SVG.

    :param result: How it went.
    """
    times = [*result.finished, *(fault.until for fault in result.faults)]
    span = max(1.0, max(times, default=result.began + 1) - result.began)
    most = max(1, len(result.started))

    def x(at: float) -> float:
        return LEFT + max(0.0, at - result.began) / span * WIDTH

    def y(count: int) -> float:
        return TOP + HEIGHT - count / most * HEIGHT

    marks = [_mark(fault, x(fault.at), x(fault.until)) for fault in result.faults]
    curves = [
        _curve(sorted(times), x, y, span, result.began, colour)
        for times, colour in ((result.started, "#adb5bd"), (result.finished, "#2b8a3e"))
    ]
    seconds = range(0, int(span) + 1, max(1, int(span / 10)))
    axis = [
        f'<text x="{x(result.began + at):.0f}" y="{BOTTOM + 18}">{at} s</text>' for at in seconds
    ]
    axis += [f'<text x="4" y="{y(count) + 4:.0f}">{count}</text>' for count in (0, most)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20}'
            f' {BOTTOM + 150}" font-family="sans-serif" font-size="11">',
            "<title>Runs started and finished, and faults, over time</title>",
            '<rect width="100%" height="100%" fill="white"/>',
            *curves,
            *marks,
            *axis,
            *_legend(),
            "</svg>\n",
        ]
    )


def _mark(fault: Fault, begin: float, end: float) -> str:
    row = list(COLOURS).index(fault.kind)
    top = TOP + HEIGHT + 4 + row * 8
    return (
        f'<rect x="{begin:.1f}" y="{top}" width="{max(2.0, end - begin):.1f}" height="7"'
        f' fill="{COLOURS[fault.kind]}"><title>{NAMES[fault.kind]}: {fault.target}</title></rect>'
    )


def _curve(
    times: list[float],
    x: t.Callable[[float], float],
    y: t.Callable[[int], float],
    span: float,
    began: float,
    colour: str,
) -> str:
    marks = [began + span * part / 300 for part in range(301)]
    points = " ".join(f"{x(at):.1f},{y(bisect.bisect_right(times, at)):.1f}" for at in marks)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _legend() -> list[str]:
    rows = [("started", "#adb5bd"), ("finished", "#2b8a3e")]
    rows += [(NAMES[kind], colour) for kind, colour in COLOURS.items()]
    drawn = []
    for number, (name, colour) in enumerate(rows):
        x, y = LEFT + number % 3 * 300, BOTTOM + 46 + number // 3 * 20
        drawn.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 16}" y="{y}">{name}</text>')
    return drawn
