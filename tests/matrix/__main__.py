"""Run the tests with each release, driver, pool and server that flask-sequence is used with.

Each gets an environment of its own below build/matrix. What came of it is kept in
tests/matrix/results.json, and docs/reference/compatibility.md tells it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import typing as t
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.support.pythons import find_python

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs" / "reference" / "compatibility.md"
PACKAGES = ("flask", "sqlalchemy", "celery", "kombu")
BEGIN, END = "<!-- the table is written by bin/test-matrix -->", "<!-- end of the table -->"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One line of the matrix."""

    group: str
    name: str
    python: str = "3.11"
    pins: t.Sequence[str] = ()
    constraint: str = ""
    env: t.Mapping[str, str] = field(default_factory=dict)
    keyword: str = ""
    """pytest's ``-k``."""
    programs: t.Sequence[str] = ()
    """What must be installed on this machine."""

    @property
    def folder(self) -> Path:
        """Its virtual environment; those that have the same packages share it."""
        packages = "-".join([self.python, *self.pins, self.constraint])
        return ROOT / "build" / "matrix" / re.sub(r"[^\w.]+", "_", packages)


@dataclass
class Result:
    """What came of one line."""

    group: str
    name: str
    date: str
    """The day of the run."""
    is_green: bool
    passed: int
    skipped: int
    seconds: float
    versions: dict[str, str]


def read_environments() -> tuple[list[Environment], dict[str, list[str]]]:
    """Give the lines of the matrix, and pytest's arguments for each group."""
    read = tomllib.loads((HERE / "environments.toml").read_text("utf-8"))
    return [Environment(**row) for row in read["environment"]], read["tests"]


def read_results() -> dict[str, Result]:
    """Give what came of the last run of each, by its name."""
    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    return {row["name"]: Result(**row) for row in rows}


def prepare(environment: Environment, python: str) -> Path:
    """Make its virtual environment, and give the interpreter."""
    mine = environment.folder / "bin" / "python"
    if not mine.exists():
        subprocess.run([python, "-m", "venv", environment.folder], check=True)
    pip: list[str | Path] = [mine, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
    constraint = ["--constraint", environment.constraint] if environment.constraint else []
    asked = ["--editable", ".", "--group", "test", *constraint, *environment.pins]
    subprocess.run([*pip, *asked], cwd=ROOT, check=True)
    return mine


def versions(python: Path) -> dict[str, str]:
    """Give the releases of what matters in an environment."""
    program = (
        "import importlib.metadata as m, json, platform;"
        f"found = {{p: m.version(p) for p in {PACKAGES!r}}};"
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    said = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    return t.cast("dict[str, str]", json.loads(said.stdout))


def try_out(environment: Environment, tests: t.Sequence[str], jobs: int) -> Result | None:
    """Run the tests of a line; None: it cannot be tried here."""
    python = find_python(environment.python)
    lacking = [program for program in environment.programs if shutil.which(program) is None]
    if python is None or lacking:
        print(f"not tried: {environment.name}: {', '.join(lacking) or environment.python} missing")
        return None
    mine = prepare(environment, python)
    command: list[str | Path] = [mine, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-k", environment.keyword] if environment.keyword else []
    command += ["--numprocesses", str(jobs), "--dist", "worksteal"]
    paths = {"PATH": f"{mine.parent}:{os.environ['PATH']}"}
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **paths, **environment.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    last = done.stdout.strip().rpartition("\n")[2]
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", last)}
    if done.returncode != 0:
        print(done.stdout[-6000:])
    return Result(
        environment.group,
        environment.name,
        datetime.date.today().isoformat(),
        done.returncode == 0 and counts.get("passed", 0) > 0,
        counts.get("passed", 0),
        counts.get("skipped", 0),
        round(time.monotonic() - began),
        versions(mine),
    )


def table(results: t.Iterable[Result]) -> str:
    """Write the table of the page."""
    lines = [
        "| | with | tests | last green run |",
        "| --- | --- | --- | --- |",
    ]
    for result in results:
        packages = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        state = result.date if result.is_green else f"red on {result.date}"
        skipped = f", {result.skipped} skipped" if result.skipped else ""
        count = f"{result.passed} passed{skipped}"
        lines.append(f"| {result.name} | {packages} | {count} | {state} |")
    return "\n".join(lines)


def write_page(text: str, results: t.Iterable[Result]) -> str:
    """Put the table into the text of the page."""
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n\n{table(results)}\n\n{END}{tail}"


def in_order(results: t.Mapping[str, Result]) -> list[Result]:
    """Give the results in the order of the matrix, without what is in it no longer."""
    names = [environment.name for environment in read_environments()[0]]
    return [results[name] for name in names if name in results]


def main() -> int:
    """Try all of it, or what is asked for."""
    parser = argparse.ArgumentParser(
        prog="bin/test-matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="words of names or groups; by default all")
    parser.add_argument("--jobs", type=int, default=4, help="tests at a time")
    options = parser.parse_args()
    environments, tests = read_environments()
    results, is_green = read_results(), True
    for environment in environments:
        label = f"{environment.group} {environment.name}".lower()
        if options.names and not any(name.lower() in label for name in options.names):
            continue
        result = try_out(environment, tests[environment.group], options.jobs)
        if result is None:
            continue
        is_green &= result.is_green
        results[result.name] = result
        kept = [asdict(each) for each in in_order(results)]
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        PAGE.write_text(write_page(PAGE.read_text("utf-8"), in_order(results)), "utf-8")
        state = "green" if result.is_green else "RED"
        print(f"{state}: {result.name}: {result.passed} passed, {result.seconds:.0f} s", flush=True)
    return 0 if is_green else 1


if __name__ == "__main__":
    sys.exit(main())
