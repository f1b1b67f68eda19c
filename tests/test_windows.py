"""What Windows lacks is not needed to start runs, to drain them, or for the commands."""

from __future__ import annotations

import subprocess
import sys
import typing as t

from tests.support.workers import ROOT

if t.TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, random, signal
import flask_migrate, flask_sqlalchemy
import celery.apps.worker, celery.concurrency.prefork, celery.concurrency.solo

for module, names in ((os, ("register_at_fork", "waitid")), (signal, ("SIGQUIT", "SIGKILL"))):
    for name in names:
        delattr(module, name)

from flask_sequence import BaseSequence, SequenceRun, Status, step
from flask_sequence.testing import drain
from tests.support.application import create_app, db

@step
def greet(data):
    data["greeting"] = "Hello"

class Hello(BaseSequence):
    steps = (greet,)

app = create_app("sqlite:///here.sqlite", instance_path=os.getcwd())
with app.app_context():
    db.create_all()
    Hello.start()
    db.session.commit()
assert drain(app) == 1
result = app.test_cli_runner().invoke(args=["sequence", "show", "1"])
assert result.exit_code == 0, result.output
assert "finished" in result.output
"""


def test_it_works_without_what_windows_lacks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("sqlite:///here", f"sqlite:///{tmp_path}/here")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
