"""Change the code in one place at a time, run its tests, and list the changes that none noticed.

All of it happens in copies of the tree. A run that was stopped goes on where it was, as long as
the package is the same; a change that is known to matter to nobody stands, with the reason, in
``tests/mutate/unnoticed.toml``.
"""

from __future__ import annotations

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import typing as t
from pathlib import Path

from tests.mutate import recording
from tests.mutate.changes import Change, changes_of
from tests.support.waiting import end_well_at_sigterm
from tests.support.workers import family_of

ROOT = Path(__file__).parents[2]
PACKAGE = "flask_sequence"
ROOMS = ("engine", "rows", "worker")
VALUES = "tests/test_values.py"
"""The tests that compare what modules are shipped with, on whichever line of theirs."""
UNNOTICED = Path(__file__).with_name("unnoticed.toml")
LEAST_SECONDS = 60.0
"""What a change may take at least until it counts as one that hangs."""
SLOWER = 4.0
"""How much longer than when they were recorded tests may take."""


@dataclasses.dataclass
class Result:
    """What became of a change."""

    name: str
    kind: str
    outcome: str
    """``red``, ``hangs``, ``green``, or ``unreached``: no test executes it."""
    test: str = ""
    """The test that turned red."""
    tests: int = 0
    """How many were to be run."""
    seconds: float = 0.0

    @property
    def is_noticed(self) -> bool:
        """Whether a test turned red, or would never have ended."""
        return self.outcome in {"red", "hangs"}


@dataclasses.dataclass
class Map:
    """Which tests execute which line, and how long each takes."""

    code: str
    seconds: dict[str, float]
    lines: dict[str, dict[str, list[str]]]

    def tests_of(self, change: Change, source: str, noticed: t.Container[str] = ()) -> list[str]:
        """Give the tests that execute a change: its room's, the likeliest and the shortest first.

        :param change: The change.
        :param source: The text of its module.
        :param noticed: Those that have noticed other changes of it.
        """
        room, stem = Path(change.path).parts[1], Path(change.path).stem
        around = _around(change, source)
        if lines := _lines_in_function(around):
            found = {test for line in lines for test in self._at(change.path, line)}
        else:
            found = self._users({name for node in around for name in _names_given(node)})
            found |= {test for test in self.seconds if test.startswith(VALUES)}

        def rank(test: str) -> tuple[bool, bool, bool, bool, float]:
            file, seconds = Path(test.partition("::")[0]), self.seconds.get(test, 1.0)
            is_other = room not in file.parts
            of_values = test.startswith(VALUES)
            return not of_values, is_other, test not in noticed, stem not in file.stem, seconds

        return sorted(found, key=rank)

    def _at(self, path: str, line: int) -> list[str]:
        return self.lines.get(path, {}).get(str(line), [])

    def _users(self, names: set[str]) -> set[str]:
        """Give the tests that execute a line with one of some names, which an import has made."""
        found: set[str] = set()
        for path, lines in self.lines.items():
            for number, text in enumerate((ROOT / path).read_text("utf-8").splitlines(), 1):
                if names & set(re.findall(r"\w+", text)):
                    found.update(lines.get(str(number), []))
        return found


def _around(change: Change, source: str) -> list[ast.stmt]:
    """Give the statements around a change, the innermost one last."""
    last = change.line + change.old.count("\n")
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    around = [node for node in nodes if node.lineno <= change.line]
    around = [node for node in around if (node.end_lineno or 0) >= last]
    return sorted(around, key=lambda node: (node.lineno, -(node.end_lineno or 0)))


def _lines_in_function(around: list[ast.stmt]) -> range | None:
    """Give the lines that tell whether a change is executed; None: it is with the import."""
    if not any(isinstance(node, ast.FunctionDef) for node in around):
        return None
    node = around[-1]
    if isinstance(node, ast.FunctionDef):  # a default of a parameter
        node = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
    body = getattr(node, "body", None)
    end = body[0].lineno - 1 if body else node.end_lineno or 0
    return range(node.lineno, max(end, node.lineno) + 1)


def _names_given(node: ast.stmt) -> t.Iterator[str]:
    if isinstance(node, ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


class Tree:
    """A copy of the repository, in which one change at a time is made.

    :param folder: Where to.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def run(
        self,
        tests: t.Sequence[str],
        *options: str,
        timeout: float | None = None,
        env: t.Mapping[str, str] | None = None,
    ) -> tuple[int | None, str]:
        """Run tests in it, and give pytest's exit code, None after the time, and what it said."""
        asked = self.root / "asked.txt"
        asked.write_text("\n".join(tests))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as folder:
            os.chmod(folder, 0o755)  # for servers of the tests, which run as other users
            process = subprocess.Popen(
                [*command, "--basetemp", f"{folder}/tests", f"@{asked}"],
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": str(self.root), "TMPDIR": folder, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                said, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                _kill(process)
        return process.returncode, said

    @contextlib.contextmanager
    def changed(self, change: Change) -> t.Iterator[None]:
        """Make a change, and take it back."""
        module = self.root / change.path
        before = module.read_text("utf-8")
        try:
            module.write_text(change.apply(before), "utf-8")
            shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)
            yield
        finally:
            module.write_text(before, "utf-8")
            shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        for pid in reversed(family_of(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def read_options(arguments: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bin/mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("modules", nargs="*", metavar="MODULE", help="as engine or rows/moves; by default all")
    add("--seed", type=int, default=1, help="by which the changes are drawn")
    add("--count", type=int, default=200, help="of changes; 0: all there are")
    add("--jobs", type=int, default=2, help="changes that are tried at a time")
    add("--seconds", type=float, default=120.0, help="of tests, at most, for one change")
    add(
        "--tests",
        nargs="+",
        default=[*(f"tests/{room}" for room in ROOMS), VALUES],
        help="pytest's",
    )
    add("--record", action="store_true", help="record anew which tests execute which line")
    add("--again", action="store_true", help="try those again that no test noticed")
    add("--output", type=Path, default=ROOT / "build" / "mutate", help="a folder")
    return parser.parse_args(arguments)


def code() -> str:
    """Name the state of the package's code."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def draw(options: argparse.Namespace) -> list[Change]:
    """Draw the changes to be tried."""
    modules = sorted(path for room in ROOMS for path in (ROOT / PACKAGE / room).rglob("*.py"))
    paths = [str(module.relative_to(ROOT)) for module in modules]
    found = [
        change
        for path in paths
        if not options.modules or any(f"/{asked}" in path for asked in options.modules)
        for change in changes_of(path, (ROOT / path).read_text("utf-8"))
    ]
    random.Random(options.seed).shuffle(found)
    return found[: options.count or None]


def record(options: argparse.Namespace) -> Map:
    """Give the map of this state of the code, recorded now if it has to be."""
    kept = options.output / "map.json"
    if kept.exists() and not options.record:
        found = Map(**json.loads(kept.read_text()))
        if found.code == code():
            return found
    began = time.monotonic()
    _show("recording which tests execute which line")
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        tree, folder = Tree(Path(name) / "tree"), Path(name) / "recorded"
        folder.mkdir()
        asked = [*recording.arguments(folder), "-n", str(options.jobs)]
        took = str(folder / "seconds")
        exit_code, said = tree.run(options.tests, *asked, env={recording.SECONDS: took})
        if exit_code != 0:
            _show(f"not all tests are green:\n{said[-4000:]}")
        lines = recording.read(folder, tree.root)
        seconds = json.loads(Path(took).read_text())
    told = {path: {str(n): tests for n, tests in its.items()} for path, its in lines.items()}
    found = Map(code(), seconds, told)
    kept.write_text(json.dumps(dataclasses.asdict(found)))
    _show(f"recorded {len(seconds)} tests in {time.monotonic() - began:.0f} s")
    return found


def attempt(tree: Tree, change: Change, tests: list[str], known: Map, most: float) -> Result:
    """Make one change, and run its tests until one is red."""
    chosen: list[str] = []
    sum_ = 0.0
    for test in tests:
        sum_ += known.seconds.get(test, 1.0)
        if chosen and sum_ > most:
            break
        chosen.append(test)
    result = Result(change.name, change.kind, "unreached", tests=len(chosen))
    if not chosen:
        return result
    began = time.monotonic()
    with tree.changed(change):
        exit_code, said = tree.run(chosen, "-x", timeout=LEAST_SECONDS + SLOWER * sum_)
    red = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if red and known.seconds.get(red[0], 0.0) > 1.0 and tree.run(red[:1])[0] != 0:
        raise RuntimeError(f"{red[0]} is red without any change")
    outcomes = {0: "green", None: "hangs"}
    result.outcome = outcomes.get(exit_code, "red")
    result.test = red[0] if red else said.strip().rpartition("\n")[2] if exit_code else ""
    result.seconds = round(time.monotonic() - began, 1)
    return result


def main(options: argparse.Namespace) -> int:
    """Try what was drawn, and tell by the exit code whether nine of ten were noticed."""
    options.output.mkdir(parents=True, exist_ok=True)
    known, drawn = record(options), draw(options)
    kept = options.output / f"results-{code()}.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    done = {row["name"]: Result(**row) for row in rows}
    if options.again:
        done = {name: result for name, result in done.items() if result.is_noticed}
    left = [change for change in drawn if change.name not in done]
    with contextlib.ExitStack() as stack:
        trees: queue.Queue[Tree] = queue.Queue()
        for _ in range(options.jobs):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mutate-"))
            trees.put(Tree(Path(folder)))

        def work(change: Change) -> None:
            source = (ROOT / change.path).read_text("utf-8")
            tree = trees.get()
            try:
                before = {each.test for name, each in done.items() if name.startswith(change.path)}
                tests = known.tests_of(change, source, before)
                result = attempt(tree, change, tests, known, options.seconds)
            except RuntimeError as error:
                _show(str(error))
                return
            finally:
                trees.put(tree)
            done[change.name] = result
            kept.write_text(json.dumps([dataclasses.asdict(each) for each in done.values()]))
            _show(f"{len(done)}: {result.outcome}, {result.seconds:.0f} s: {change.name[:150]}")

        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(work, left))
    return tell([done[change.name] for change in drawn if change.name in done])


def tell(results: list[Result]) -> int:
    """Print what was found, and give the exit code."""
    unnoticed = tomllib.loads(UNNOTICED.read_text("utf-8"))["known"]
    reasons = {row["change"]: row["reason"] for row in unnoticed}
    kinds = collections.Counter(result.kind for result in results)
    noticed = collections.Counter(result.kind for result in results if result.is_noticed)
    for kind, count in kinds.items():
        print(f"{kind:12}{noticed[kind]:4} of {count:4}")
    for result in results:
        if not result.is_noticed:
            reason = reasons.get(result.name, "?")
            print(f"{result.outcome}: {result.name}\n    {reason} ({result.tests} tests)")
    share = noticed.total() / max(kinds.total(), 1)
    print(f"{noticed.total()} of {kinds.total()} changes turned a test red: {share:.1%}")
    unknown = [each for each in results if not each.is_noticed and each.name not in reasons]
    return 0 if share >= 0.9 and not unknown else 1


def _show(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    end_well_at_sigterm()
    sys.exit(main(read_options()))
