"""`flask sequence init`, and a plain `flask db migrate`, on each kind of database."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import flask_migrate
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import write_hooks
from alembic.util import CommandError
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.pool import NullPool

from flask_sequence.errors import SetupError
from flask_sequence.rows.migration import REVISION, write_revision
from flask_sequence.rows.models import MODELS, Base
from tests.support import services
from tests.support.workers import ROOT, write_module

if t.TYPE_CHECKING:
    from flask import Flask

APPLICATION = """
    import os
    from flask import Flask
    from flask_migrate import Migrate
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy.orm import DeclarativeBase
    import sqlalchemy as sa
    from flask_sequence import Sequence

    class Base(DeclarativeBase):
        if "SCHEMA" in os.environ:
            metadata = sa.MetaData(schema=os.environ["SCHEMA"])
        if "CONVENTION" in os.environ:
            metadata = sa.MetaData(naming_convention={
                kind: kind + "_my_%(table_name)s_%(constraint_name)s" for kind in ("uq", "ck")
            } | {
                "pk": "pk_my_%(table_name)s",
                "fk": "fk_my_%(table_name)s_%(constraint_name)s",
                "ix": "ix_my_%(column_0_label)s",
            })

    db = SQLAlchemy(model_class=Base)

    if "BIND" not in os.environ:
        class Note(db.Model):
            id = sa.Column(sa.Integer, primary_key=True)
            run_id = sa.Column(sa.ForeignKey("sequence_runs.id", name="fk_note_run_id"))

    def create_app():
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["URL"]
        if "BIND" in os.environ:
            runs = os.environ["BIND"]
            app.config["SQLALCHEMY_BINDS"] = {"runs": runs, "other": f"{runs}-other"}
            app.config["SEQUENCE_BIND_KEY"] = "runs"
        db.init_app(app)
        extensions = [lambda: Sequence(app), lambda: Migrate(app, db)]
        for register in reversed(extensions) if "MIGRATE_FIRST" in os.environ else extensions:
            register()
        return app
"""
COMMANDS = """
import json, sys
from app import create_app
results = []
for command in json.loads(sys.argv[1]):
    result = create_app().test_cli_runner().invoke(args=command)
    results.append((command, result.exit_code, result.output, repr(result.exception)))
print(json.dumps(results))
"""


@pytest.fixture(params=["sqlite", "postgresql", "mariadb+pymysql", "mysql+pymysql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> t.Iterator[str]:
    """The address of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'migrated.sqlite'}"
        return
    server = services.POSTGRESQL if request.param == "postgresql" else services.MARIADB
    services.require(server)
    made = services.create_database(server)
    kind = sa.make_url(made).drivername if request.param == "postgresql" else request.param
    yield sa.make_url(made).set(drivername=kind).render_as_string(hide_password=False)
    services.drop_database(server, made)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """The address of an empty SQLite file."""
    return f"sqlite:///{tmp_path / 'migrated.sqlite'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application of one module, and nothing else."""
    folder = tmp_path / "application"
    folder.mkdir()
    write_module(folder, APPLICATION, "app")
    return folder


def flask(folder: Path, *commands: str, fails: bool = False, **env: str) -> list[str]:
    """Run commands of `flask`, in one process, and give what each of them printed."""
    listed = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        (sys.executable, "-c", COMMANDS, listed),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for command, code, output, error in results:
        assert (code != 0) is fails, f"{command}: {code} {error}\n{output}\n{done.stderr}"
    return [output for _, _, output, _ in results]


def shape(url: str) -> dict[str, t.Any]:
    """Give what the database says of our tables."""
    engine = sa.create_engine(url, poolclass=NullPool)
    described: dict[str, t.Any] = {}
    with engine.connect() as connection:
        look = sa.inspect(connection)
        for model in MODELS:
            name = str(model.__tablename__)
            if not look.has_table(name):
                continue
            described[name] = {
                "columns": [{**c, "type": repr(c["type"])} for c in look.get_columns(name)],
                "key": look.get_pk_constraint(name),
                "foreign": look.get_foreign_keys(name),
                "unique": look.get_unique_constraints(name),
                "indexes": sorted(look.get_indexes(name), key=lambda index: str(index["name"])),
            }
        if connection.dialect.name == "sqlite":
            statement = "SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'"
            described["autoincrement"] = sorted(connection.scalars(sa.text(statement)))
    return t.cast("dict[str, t.Any]", json.loads(json.dumps(described, default=str)))


def created(url: str) -> dict[str, t.Any]:
    """Give what the database says of our tables where `create_all()` made them."""
    engine = sa.create_engine(url, poolclass=NullPool)
    Base.metadata.create_all(engine)
    try:
        return shape(url)
    finally:
        Base.metadata.drop_all(engine)


UP_AND_DOWN = ("db upgrade", "db check", "db downgrade base", "db upgrade", "db check")


def test_init_gives_the_tables_of_the_models_and_clean_commands(folder: Path, url: str) -> None:
    expected = created(url)
    written, *_, again = flask(
        folder, "sequence init", "db upgrade", "db migrate", *UP_AND_DOWN, "sequence init", URL=url
    )

    assert f"{REVISION}_" in written
    assert "flask db upgrade" in written
    assert shape(url) == expected
    assert_partial(url)
    assert "Nothing to do" in again
    assert len(list(folder.glob("migrations/versions/*.py"))) == 2  # ours, and the one of Note


def test_in_a_schema_the_foreign_key_is_corrected_by_hand(folder: Path) -> None:
    services.require(services.POSTGRESQL)
    url = services.create_database(services.POSTGRESQL)
    engine = sa.create_engine(url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE SCHEMA shop"))
        flask(folder, "sequence init", "db upgrade", "db migrate", URL=url, SCHEMA="shop")
        (ours,) = folder.glob(f"migrations/versions/{REVISION}_*.py")
        (theirs,) = set(folder.glob("migrations/versions/*.py")) - {ours}
        written = theirs.read_text()
        assert "['shop.sequence_runs.id']" in written
        theirs.write_text(written.replace("'shop.sequence_runs.id'", "'sequence_runs.id'"))
        flask(folder, "db upgrade", "db downgrade base", "db upgrade", URL=url, SCHEMA="shop")
        look = sa.inspect(engine)
        (key,) = look.get_foreign_keys("note", "shop")
        assert (key["referred_schema"], key["referred_table"]) == (None, "sequence_runs")
        assert look.has_table("sequence_runs", "public")
    finally:
        services.drop_database(services.POSTGRESQL, url)


def assert_partial(url: str) -> None:
    """Look whether an index is partial, where the database has such."""
    engine = sa.create_engine(url, poolclass=NullPool)
    indexes = {index["name"]: index for index in sa.inspect(engine).get_indexes("sequence_runs")}
    options = indexes["ix_sequence_runs_due"].get("dialect_options", {})
    conditions = [str(value) for name, value in options.items() if name.endswith("_where")]
    assert ["waiting" in condition for condition in conditions] == (
        [True] if engine.dialect.name in {"postgresql", "sqlite"} else []
    )


def test_a_plain_migrate_does_the_same(folder: Path, url: str) -> None:
    expected = created(url)
    *_, again = flask(folder, "db init", "db migrate", *UP_AND_DOWN, "sequence init", URL=url)

    assert shape(url) == expected
    assert_partial(url)
    assert "Nothing to do" in again
    (migration,) = folder.glob("migrations/versions/*.py")
    assert "flask_sequence" not in migration.read_text()

    flask(folder, "db downgrade base", URL=url)
    assert not any(name.startswith("sequence_") for name in shape(url))


def test_migrate_may_be_initialised_before_sequence(folder: Path, sqlite: str) -> None:
    flask(folder, "db init", "db migrate", *UP_AND_DOWN, URL=sqlite, MIGRATE_FIRST="1")


def test_a_naming_convention_leaves_our_names_alone(folder: Path, sqlite: str) -> None:
    expected = created(sqlite)
    commands = ("sequence init", "db upgrade", "db migrate", *UP_AND_DOWN)
    flask(folder, *commands, URL=sqlite, CONVENTION="1")

    assert shape(sqlite) == expected


def test_init_knows_several_databases(folder: Path, sqlite: str) -> None:
    runs = f"{sqlite}-runs"

    flask(folder, "sequence init", *UP_AND_DOWN, URL=sqlite, BIND=runs)

    assert set(shape(runs)) > {model.__tablename__ for model in MODELS}
    assert set(shape(sqlite)) == {"autoincrement"}


def test_a_bind_key_needs_a_folder_for_several_databases(folder: Path, sqlite: str) -> None:
    runs = f"{sqlite}-runs"
    flask(folder, "db init", URL=sqlite, BIND=runs)

    (output,) = flask(folder, "sequence init", fails=True, URL=sqlite, BIND=runs)

    assert "flask db init --multidb" in output
    assert not list(folder.glob("migrations/versions/*.py"))


# Without a database


@pytest.fixture
def away(make_app: t.Callable[..., Flask]) -> Flask:
    """An application whose database nobody can reach."""
    return make_app("postgresql+psycopg://nobody@127.0.0.1:1/none")


@pytest.fixture
def migrations(away: Flask, tmp_path: Path) -> Path:
    """The application's folder of migrations, with no revision."""
    path = tmp_path / "own migrations"
    with away.app_context():
        flask_migrate.init(str(path))
    return path


def revise(app: Flask, migrations: Path, name: str, body: str = "pass", head: str = "head") -> None:
    """Add a revision to a folder of migrations."""
    with app.app_context():
        flask_migrate.revision(str(migrations), name, rev_id=name, head=head, splice=True)
    (path,) = migrations.glob(f"versions/{name}_*.py")
    path.write_text(path.read_text().replace("    pass", f"    {body}", 1))


def down_revision(path: Path | None) -> str:
    """Give the revision that another one follows."""
    assert path is not None
    found = re.search(r"^down_revision = (.+)$", path.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_database_is_not_touched(away: Flask, tmp_path: Path) -> None:
    path = write_revision(away, str(tmp_path / "migrations"))

    assert path is not None
    assert path.is_relative_to(tmp_path / "migrations" / "versions")
    assert down_revision(path) == "None"
    assert write_revision(away, str(tmp_path / "migrations")) is None


def test_the_folder_is_the_one_of_flask_migrate(
    away: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    path = write_revision(away)

    assert path is not None
    assert path.resolve().is_relative_to(tmp_path / "migrations")


def test_it_follows_the_head(away: Flask, migrations: Path) -> None:
    revise(away, migrations, "one")
    revise(away, migrations, "two")

    assert down_revision(write_revision(away, str(migrations))) == "'two'"


def test_several_heads_are_named(away: Flask, migrations: Path) -> None:
    revise(away, migrations, "one")
    revise(away, migrations, "left", head="one")
    revise(away, migrations, "right", head="one")

    with pytest.raises(SetupError, match=r"several heads: left, right.*--head left"):
        write_revision(away, str(migrations))
    assert down_revision(write_revision(away, str(migrations), "right")) == "'right'"


def test_an_unknown_head_is_refused(away: Flask, migrations: Path) -> None:
    with pytest.raises(SetupError, match="nowhere"):
        write_revision(away, str(migrations), "nowhere")


@pytest.mark.parametrize(
    "creation",
    [
        "op.create_table('sequence_runs',",
        'op.create_table(\n    "sequence_runs",',
        "CREATE TABLE IF NOT EXISTS sequence_runs (",
        'create table public."sequence_runs" (',
    ],
)
def test_a_squashed_history_creates_the_tables_already(
    away: Flask, migrations: Path, creation: str
) -> None:
    revise(away, migrations, "squashed", f"'''{creation}'''")

    assert write_revision(away, str(migrations)) is None


@pytest.mark.parametrize(
    "mention",
    [
        "op.create_table('note', sa.ForeignKeyConstraint(['run_id'], ['sequence_runs.id']))",
        "op.create_table('sequence_runs_of_mine')",
        "op.drop_table('sequence_runs')",
    ],
)
def test_a_mention_of_the_tables_does_not_create_them(
    away: Flask, migrations: Path, mention: str
) -> None:
    revise(away, migrations, "mentions", f'"""{mention}"""')

    assert down_revision(write_revision(away, str(migrations))) == "'mentions'"


def test_a_folder_of_something_else_is_left_alone(away: Flask, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "song.txt").touch()

    with pytest.raises(SetupError, match="name another one by -d"):
        write_revision(away, str(tmp_path / "taken"))
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["song.txt"]


def test_a_folder_that_cannot_be_made_is_told(away: Flask, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SetupError, match="Cannot write the migration"):
        write_revision(away, str(tmp_path / "file" / "migrations"))


def test_an_error_of_flask_migrate_is_told(
    away: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: t.Any, **__: t.Any) -> None:
        raise CommandError("no template")

    monkeypatch.setattr("alembic.command.init", fail)

    with pytest.raises(SetupError, match="could not make the folder"):
        write_revision(away, str(tmp_path / "migrations"))


def test_without_flask_migrate_it_says_what_to_do(away: Flask, tmp_path: Path) -> None:
    del away.extensions["migrate"]

    with pytest.raises(SetupError, match=r"call Migrate\(app, db\)"):
        write_revision(away, str(tmp_path))


def test_file_template_and_hooks_are_honoured(away: Flask, migrations: Path) -> None:
    @write_hooks.register("flask_sequence_test")
    def add_a_line(filename: str, options: t.Any) -> None:
        path = Path(filename)
        path.write_text(path.read_text() + "# hooked\n")

    ini = migrations / "alembic.ini"
    more = "hooks = mine\nmine.type = flask_sequence_test\n"
    text = ini.read_text().replace("[alembic]", "[alembic]\nfile_template = my_%%(slug)s", 1)
    ini.write_text(f"{text}\n[post_write_hooks]\n{more}")

    path = write_revision(away, str(migrations))

    assert path is not None
    assert path.name == "my_add_the_tables_for_sequences.py"
    assert path.read_text().endswith("# hooked\n")


# How our types look in it


def test_without_flask_migrate_nothing_of_ours_is_in_it(url: str) -> None:
    engine = sa.create_engine(url, poolclass=NullPool)
    expected = created(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        written = produce_migrations(context, Base.metadata).upgrade_ops
        assert written is not None
        text = render_python_code(written, migration_context=context)
        assert "flask_sequence." not in text
        names = {"sa": sa, "mysql": mysql, "postgresql": postgresql, "op": Operations(context)}
        with context.begin_transaction():
            exec(f"if True:\n{text}", names)
        connection.commit()
        assert compare_metadata(context, Base.metadata) == []
    assert shape(url) == expected


def test_the_applications_own_render_item_is_asked(away: Flask, tmp_path: Path) -> None:
    def render_item(kind: str, item: t.Any, context: t.Any) -> str | t.Literal[False]:
        if kind == "type" and type(item) is sa.SMALLINT:
            context.imports.add("import decimal")
            return "sa.Integer()"
        return False

    away.extensions["migrate"].configure_args["render_item"] = render_item

    path = write_revision(away, str(tmp_path / "migrations"))

    assert path is not None
    assert "sa.Column('format', sa.Integer(), nullable=False)" in path.read_text()
    assert "\nimport decimal\n" in path.read_text()


def test_the_prefixes_of_the_application_are_taken(away: Flask, tmp_path: Path) -> None:
    arguments = away.extensions["migrate"].configure_args
    arguments.update(sqlalchemy_module_prefix="alchemy.", alembic_module_prefix="do.")

    path = write_revision(away, str(tmp_path / "migrations"))

    assert path is not None
    text = path.read_text()
    assert "do.create_table('sequence_runs',\n    alchemy.Column('id'" in text
    assert " sa." not in text
    assert " op." not in text
