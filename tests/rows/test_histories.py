"""`flask sequence init` for every kind of migrations, and what autogenerate makes of our tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from flask_sequence.errors import SetupError
from flask_sequence.rows.migration import REVISION, write_revision
from tests.support.workers import ROOT, write_module

if t.TYPE_CHECKING:
    from flask import Flask

APPLICATION = """
    import os
    import sqlalchemy as sa
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from flask_sequence import Sequence

    db = SQLAlchemy()

    class Note(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        run_id = sa.Column(sa.ForeignKey("sequence_runs.id", name="fk_note_run_id"))

    def create_app():
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["URL"]
        db.init_app(app)
        Sequence(app)
        kind = os.environ["KIND"]
        if kind == "flask-migrate":
            from flask_migrate import Migrate
            Migrate(app, db, directory="db/history")
        if kind == "flask-alembic":
            from flask_alembic import Alembic
            Alembic(app)
        return app
"""
ENV = """
    from alembic import context
    from app import create_app, db

    with create_app().app_context(), db.engine.connect() as connection:
        context.configure(connection=connection, target_metadata=db.metadata)
        with context.begin_transaction():
            context.run_migrations()
"""
COMMANDS = """
import io, json, sys, contextlib
import alembic.config
from click.testing import CliRunner
from flask.cli import FlaskGroup
from app import create_app
results = []
for program, *command in json.loads(sys.argv[1]):
    if program == "flask":
        result = CliRunner().invoke(FlaskGroup(create_app=create_app), command)
        results.append((result.exit_code, result.output + repr(result.exception)))
        continue
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            alembic.config.main(argv=command)
            results.append((0, out.getvalue()))
        except SystemExit as error:
            results.append((error.code, out.getvalue()))
print(json.dumps(results))
"""


class Project:
    """A folder with an application of one module.

    :param folder: The folder.
    :param kind: What applies its migrations.
    :param url: The address of its database.
    """

    def __init__(self, folder: Path, kind: str, url: str) -> None:
        self.folder = folder
        self.env = {**os.environ, "URL": url, "KIND": kind}
        self.env["PYTHONPATH"] = os.pathsep.join((str(folder), str(ROOT)))
        write_module(folder, APPLICATION, "app")

    def run(self, *commands: str, code: int = 0) -> list[str]:
        """Run commands, in one process, and give what each of them printed."""
        listed = json.dumps([command.split() for command in commands])
        done = subprocess.run(
            (sys.executable, "-c", COMMANDS, listed),
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout.splitlines()[-1])
        for command, (exit_code, output) in zip(commands, results, strict=True):
            assert (exit_code or 0) == code, f"{command}: {exit_code}\n{output}\n{done.stderr}"
        return [output for _, output in results]

    def migration(self, name: str) -> str:
        """Give the text of a migration."""
        (path,) = self.folder.rglob(f"*_{name}.py")
        return path.read_text()


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, empty_database_url: str) -> Project:
    """An application of a kind, on each database."""
    folder = tmp_path / "application"
    folder.mkdir()
    return Project(folder, request.param, empty_database_url)


def is_empty(migration: str) -> bool:
    """Tell whether a migration does nothing."""
    return "op." not in migration


@pytest.mark.parametrize("project", ["alembic"], indirect=True)
def test_plain_alembic(project: Project) -> None:
    project.run("alembic init db/alembic")
    write_module(project.folder / "db" / "alembic", ENV, "env")

    written, _, _, again, *_ = project.run(
        "flask sequence init",
        "alembic upgrade head",
        "alembic revision --autogenerate -m notes",
        "flask sequence init -d db/alembic",
        "alembic upgrade head",
        "alembic check",
        "alembic revision --autogenerate -m nothing",
        "alembic downgrade base",
        "alembic upgrade head",
    )

    assert "Now run: alembic upgrade head" in written
    assert "Nothing to do" in again
    notes = project.migration("notes")
    assert "create_table('note'" in notes
    assert "flask_sequence." not in notes
    assert "create_table('sequence" not in notes
    assert is_empty(project.migration("nothing"))


@pytest.mark.parametrize("project", ["flask-alembic"], indirect=True)
def test_flask_alembic(project: Project) -> None:
    pytest.importorskip("flask_alembic")

    written, _, _, again, *_ = project.run(
        "flask sequence init",
        "flask db upgrade",
        "flask db revision notes",
        "flask sequence init",
        "flask db upgrade",
        "flask db check",
    )

    assert "Now run: flask db upgrade" in written
    assert "Nothing to do" in again
    notes = project.migration("notes")
    assert "create_table('note'" in notes
    assert "sequence_runs" in notes.partition("create_table('note'")[2]
    assert "create_table('sequence" not in notes


@pytest.mark.parametrize("project", ["flask-migrate"], indirect=True)
def test_an_env_py_of_before_the_arguments_of_flask_migrate(project: Project) -> None:
    project.run("flask db init")
    write_module(project.folder / "db" / "history", ENV, "env")

    project.run(
        "flask db migrate -m everything",
        "flask db upgrade",
        "flask db check",
        "flask db downgrade base",
        "flask db upgrade",
        "flask sequence init",
    )

    everything = project.migration("everything")
    assert "create_table('sequence_runs'" in everything
    assert "flask_sequence" not in everything


def test_a_second_history_is_refused(tmp_path: Path) -> None:
    """As where the command runs in another folder than the others."""
    project = Project(tmp_path, "flask-migrate", f"sqlite:///{tmp_path / 'new.sqlite'}")
    project.run("flask sequence init", "flask db upgrade")
    (project.folder / "db").rename(project.folder / "elsewhere")

    for option in ("", " -d db/other"):
        (told,) = project.run(f"flask sequence init{option}", code=1)
        assert f"at revision {REVISION}, which is not in" in told
        assert "flask sequence init -d" in told
    assert not (project.folder / "db").exists()

    written, *_ = project.run("flask sequence init -d elsewhere/history")
    assert "Nothing to do" in written


def test_hints_name_the_folder(tmp_path: Path) -> None:
    project = Project(tmp_path, "flask-migrate", f"sqlite:///{tmp_path / 'new.sqlite'}")
    (written,) = project.run("flask sequence init -d other/history")
    assert "Now run: flask db upgrade -d other/history" in written
    assert not (tmp_path / "new.sqlite").exists()


def test_a_folder_of_alembic_beside_flask_migrate(tmp_path: Path) -> None:
    project = Project(tmp_path, "flask-migrate", f"sqlite:///{tmp_path / 'new.sqlite'}")
    project.run("alembic init other")
    written, again = project.run("flask sequence init -d other", "flask sequence init -d other")
    assert "Wrote other/versions/" in written
    assert "Nothing to do" in again


def test_the_settings_file_may_be_in_the_folder(tmp_path: Path) -> None:
    project = Project(tmp_path, "alembic", f"sqlite:///{tmp_path / 'new.sqlite'}")
    project.run("alembic -c history/alembic.ini init history")
    write_module(tmp_path / "history", ENV, "env")
    written, _ = project.run(
        "flask sequence init -d history", "alembic -c history/alembic.ini upgrade head"
    )
    assert "Now run: alembic -c history/alembic.ini upgrade head" in written


def test_without_any_migrations_it_says_what_to_do(
    make_app: t.Callable[..., Flask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app("postgresql+psycopg://nobody@127.0.0.1:1/none")
    del app.extensions["migrate"]
    for directory in (None, "nowhere"):
        with pytest.raises(SetupError, match=r"call Migrate\(app, db\).*-d alembic;.*create_all"):
            write_revision(app, directory)
    (tmp_path / "alembic.ini").write_text("[alembic]\n")
    with pytest.raises(SetupError, match=r"alembic\.ini names no script_location"):
        write_revision(app)
