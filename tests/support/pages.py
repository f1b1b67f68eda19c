"""The pages of the documentation, and how the code on them is executed.

Each page has a folder of its own, and an interpreter of its own for its blocks of Python:

- A block whose first line is ``# shop/models.py`` is written to that file, which is then imported;
  a file of tests is run by pytest.
- The other blocks are run one after the other, inside an app context of the application of the
  README, or of the page's own ``app.py``.
- The lines of a console block that begin with ``$`` are run in the folder. What stands below one is
  what it must print; ``...`` stands for anything, and a time for any time. Workers and servers are
  started in the background.

``<!-- skip: next "reason" -->`` leaves the next block out, and
``<!-- invisible-code-block: python`` to ``-->`` is a block that only a test sees.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import typing as t
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example, Sybil
from sybil.parsers.myst import CodeBlockParser, SkipParser
from sybil.typing import Parser

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

INTERPRETER = """
import inspect, json, os, pathlib, smtplib, sys, traceback
import pytest
import app as _application
from app import *
from flask_sequence import *
from flask_sequence.broker import embedded_config
from flask_sequence.testing import drain

_answers, sys.stdout = sys.stdout, sys.stderr
if "app" in vars(_application):
    app = _application.app
elif "database" in inspect.signature(create_app).parameters:
    app = create_app("sqlite://")
else:
    app = create_app()
app.app_context().push()
db.create_all()
for _line in sys.stdin:
    _block = json.loads(_line)
    try:
        exec(compile(_block["source"], _block["path"], "exec"), globals())
        _told = ""
    except BaseException:
        _told = traceback.format_exc()
    print(json.dumps(_told), file=_answers, flush=True)
"""
"""What the blocks of a page may take for granted, and how they are run."""

FILE = re.compile(r"# ((?:\w+/)*[\w.]+\.py)\n")
BACKGROUND = {
    re.compile(r"(flask sequence|celery .*) worker\b(?!.*--help)"): "[queues]",
    re.compile(r"flask (--\S+ \S+ )?run\b"): "Running on",
}
"""The commands that do not end, and what each writes as soon as it is at work."""
AGAIN = re.compile(r"flask sequence (list|show)\b")
"""The commands that are repeated until they print what a worker has to do first."""
TIME = re.compile(r"\d{4}\\?-\d\d\\?-\d\dT\d\d:\d\d:\d\dZ")
"""A time, which stands for any time."""
SECONDS = 60.0


def environment() -> dict[str, str]:
    """Give the environment of a stranger."""
    left_out = ("FLASK_", "CELERY_", "SEQUENCE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(folder: Path, *command: str) -> str:
    """Run Python in a folder, and give what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_script(folder: Path, source: str) -> str:
    """Run the source of a module in a folder, and give what it printed."""
    return run(folder, "-W", "error", "-c", textwrap.dedent(source))


class Page:
    """A page whose code is executed, in a folder.

    :param path: The page.
    :param folder: The folder, with what must be there before.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self._interpreter: subprocess.Popen[str] | None = None
        self._background: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])

    def execute(self) -> None:
        """Run all of its blocks, in order."""
        parsers: list[Parser] = [
            CodeBlockParser("python", self.python),
            CodeBlockParser("console", self.console),
            SkipParser(),
        ]
        for example in Sybil(parsers).parse(self.path).examples():
            try:
                example.evaluate()
            except SkipTest:
                continue

    def python(self, example: Example) -> str | None:
        """Run a block of Python; give what went wrong."""
        source = str(example.parsed)
        if file := FILE.match(source):
            return self._write(self.folder / file[1], source)
        if self._interpreter is None:
            with (self.folder / "interpreter.log").open("ab") as log:
                self._interpreter = subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", INTERPRETER],
                    cwd=self.folder,
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        assert self._interpreter.stdin
        assert self._interpreter.stdout
        lines = "\n" * (example.line + example.region.lexemes["source"].line_offset)
        block = {"source": lines + source, "path": example.path}
        self._interpreter.stdin.write(f"{json.dumps(block)}\n")
        self._interpreter.stdin.flush()
        answer = self._interpreter.stdout.readline()
        return json.loads(answer) if answer else (self.folder / "interpreter.log").read_text()

    def _write(self, path: Path, source: str) -> str | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        if path == self.folder / "app.py":
            self._end_interpreter()
        name = ".".join(path.relative_to(self.folder).with_suffix("").parts)
        command = ["-W", "error", "-c", f"import importlib; importlib.import_module({name!r})"]
        if "." in path.stem:
            command = ["-W", "error", str(path)]
        elif path.name.startswith("test_"):
            command = ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(path)]
        elif path.name == "conftest.py":
            return None
        try:
            run(self.folder, *command)
        except AssertionError as error:
            return str(error)
        return None

    def console(self, example: Example) -> str | None:
        """Run the commands of a console block; give what went wrong."""
        found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", example.parsed, re.MULTILINE)
        if not found:
            return "a console block without a line that begins with $"
        for command, expected in found:
            if problem := self._command(command, expected.strip()):
                return f"$ {command}\n{problem}"
        return None

    def _command(self, command: str, expected: str) -> str | None:
        command = re.sub(r"(localhost|127\.0\.0\.1):5000", rf"\1:{self._port}", command)
        for pattern, sign in BACKGROUND.items():
            if pattern.search(command):
                return self._start(command, sign)
        problem: str | None = None

        def is_right() -> bool:
            nonlocal problem
            problem = self._problem(command, expected)
            return problem is None

        if AGAIN.search(command) and expected:
            try:
                wait_until(is_right, SECONDS, interval=0.2)
            except AssertionError:
                return problem
        return None if is_right() else problem

    def _problem(self, command: str, expected: str) -> str | None:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode and "Error" not in expected:
            return f"ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        pattern = re.sub(r"\\\.\\\.\\\.|…", ".*", re.escape(expected))
        pattern = TIME.sub(lambda _: TIME.pattern, pattern)
        for printed in (done.stdout, done.stderr):
            text = re.sub(r"[ \t]+$", "", printed, flags=re.MULTILINE).strip()
            if not expected or re.fullmatch(pattern, text, re.DOTALL):
                return None
        return f"should print\n{expected}\nand printed\n{done.stdout}{done.stderr}"

    def _start(self, command: str, sign: str) -> str | None:
        log = self.folder / f"background-{len(self._background)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._background.append(process)
        wait_until(
            lambda: sign in log.read_text(errors="replace") or process.poll() is not None, SECONDS
        )
        return None if process.poll() is None else log.read_text(errors="replace")

    def _environment(self) -> dict[str, str]:
        return {**environment(), "FLASK_RUN_PORT": self._port}

    def _end_interpreter(self) -> None:
        if self._interpreter is not None:
            self._interpreter.kill()
            self._interpreter.communicate()
            self._interpreter = None

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_interpreter()
        for process in self._background:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait(10)


def blocks(page: Path, language: str) -> list[str]:
    """Give the blocks of code on a page, also those that only a test sees."""
    document: Document = Sybil([CodeBlockParser(language)]).parse(page)
    return [str(example.parsed) for example in document.examples()]


def is_set_up_by_itself(page: Path) -> bool:
    """Tell whether a page creates the tables of the application by its own commands."""
    return any("flask sequence init" in block for block in blocks(page, "console"))
