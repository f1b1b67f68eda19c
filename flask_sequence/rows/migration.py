"""The Alembic revision of ``flask sequence init``."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import time
import typing as t
from dataclasses import dataclass, field

import flask_migrate
import sqlalchemy as sa
from alembic.autogenerate import render_python_code
from alembic.config import Config
from alembic.operations import ops
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from flask import Flask

from ..errors import SetupError
from ..runtime import Runtime, runtime_of
from .dialects import is_missing_file
from .models import MODELS, runs
from .own_connections import OwnConnections

if t.TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

    RenderItem = t.Callable[[str, t.Any, AutogenContext], str | t.Literal[False]]

REVISION = "flask_sequence_1"
"""The revision that creates the tables of this version; Alembic keeps 32 characters."""
MESSAGE = "Add the tables for sequences"

_CREATES_OUR_TABLE = re.compile(
    rf"create[_ ]table\W+(?:if\W+not\W+exists\W+)?(?:\w+\W+)?{runs.name}\b", re.IGNORECASE
)
_MULTIDB_MARK = "%s_upgrades"
_INI = "alembic.ini"

LOOK_SECONDS = 2
"""How long a look at the database may take."""


@dataclass(frozen=True, kw_only=True)
class Migrations:
    """Where the migrations of an application are, and how they are applied."""

    folder: pathlib.Path
    config: Config
    upgrade: str
    """The command that applies them."""
    option: str = ""
    """What names the folder to ``flask sequence init``, where the application does not."""
    arguments: t.Mapping[str, t.Any] = field(default_factory=dict)
    """What the application tells Alembic for autogenerate."""
    default_token: str = ""
    """How a folder for several databases calls the default one."""
    is_new: bool = False
    """Whether Flask-Migrate has yet to make the folder."""


def find_migrations(app: Flask, directory: str | None = None) -> Migrations:
    """Find the migrations of an application: of Flask-Migrate, Flask-Alembic, or plain Alembic.

    :param app: The application.
    :param directory: Their folder; by default the one of the extension, or of ``alembic.ini``.
    :raises SetupError: If there are none.

    .. versionadded:: 0.1
    """
    option = "" if directory is None else f" -d {directory}"
    extension = app.extensions.get("migrate")
    named = pathlib.Path(directory or "")
    is_flask_migrates = extension is not None and (named / _INI).exists()
    if directory is not None and (named / "env.py").exists() and not is_flask_migrates:
        return _of_alembic(named, option)
    if extension is not None:
        folder = pathlib.Path(directory or extension.directory)
        return Migrations(
            folder=folder,
            config=extension.migrate.get_config(str(folder)),
            upgrade=f"flask db upgrade{option}",
            option=option,
            arguments=extension.configure_args,
            is_new=not (folder / _INI).exists(),
        )
    if "alembic" in app.extensions and directory is None:
        extension = app.extensions["alembic"]
        with app.app_context():
            config = extension.config
        return Migrations(
            folder=pathlib.Path(config.get_main_option("script_location")),
            config=config,
            upgrade=f"flask {extension.command_name} upgrade",
            arguments=app.config["ALEMBIC_CONTEXT"],
            default_token="default",
        )
    if directory is None and pathlib.Path(_INI).exists():
        return _of_alembic(None, option)
    raise SetupError(
        "No migrations were found: call Migrate(app, db) of Flask-Migrate in the function that"
        " creates the application; or name Alembic's folder, the one with env.py, as in flask"
        " sequence init -d alembic; or create the tables by db.create_all()."
    )


def _of_alembic(folder: pathlib.Path | None, option: str) -> Migrations:
    for ini in [pathlib.Path(_INI)] if folder is None else [folder / _INI, pathlib.Path(_INI)]:
        config = Config(str(ini))
        if ini.exists() and config.get_main_option("script_location"):
            found = pathlib.Path(ScriptDirectory.from_config(config).dir)
            if folder is None or found.resolve() == folder.resolve():
                named = "" if ini == pathlib.Path(_INI) else f" -c {ini}"
                upgrade = f"alembic{named} upgrade head"
                return Migrations(folder=found, config=config, upgrade=upgrade, option=option)
    if folder is None:
        raise SetupError(f"{_INI} names no script_location: name the folder by -d.")
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return Migrations(folder=folder, config=config, upgrade="alembic upgrade head", option=option)


def write_revision(
    app: Flask, directory: str | None = None, head: str | None = None
) -> pathlib.Path | None:
    """Write the migration that creates our tables. The database is at most read.

    :param app: The application.
    :param directory: Its folder of migrations; see :func:`find_migrations`. Flask-Migrate's is
        made if there is none.
    :param head: The head to append to; needed where the history has several.
    :return: The file; None if the history creates the tables already.
    :raises SetupError: If it cannot be written; the text says what to do.

    .. versionadded:: 0.1
    """
    runtime = runtime_of(app)
    bind_key = runtime.settings.bind_key
    with app.app_context():
        folder = pathlib.Path(directory or "")
        try:
            migrations = find_migrations(app, directory)
            folder = migrations.folder
            with contextlib.redirect_stdout(io.StringIO()):  # Alembic tells each file it makes
                if migrations.is_new:
                    _refuse_second_history(runtime, migrations, set())
                    _make_folder(folder, multidb=bind_key is not None)
                    migrations = find_migrations(app, directory)
                return _write(runtime, migrations, head)
        except CommandError as error:
            raise SetupError(f"{folder}: {error}") from error
        except OSError as error:
            raise SetupError(f"Cannot write the migration: {error}") from error


def _make_folder(folder: pathlib.Path, *, multidb: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise SetupError(
            f"The folder {folder} is not empty and holds neither {_INI} nor env.py, so it has no"
            " migrations: name another one by -d, or empty it."
        )
    try:
        flask_migrate.init(str(folder), multidb=multidb)
    except SystemExit as error:  # how Flask-Migrate ends on an error, which it has logged
        raise SetupError(f"Flask-Migrate could not make the folder {folder}.") from error


def _write(runtime: Runtime, migrations: Migrations, head: str | None) -> pathlib.Path | None:
    history = ScriptDirectory.from_config(migrations.config)
    revisions = list(history.walk_revisions())
    if any(_creates_our_tables(revision) for revision in revisions):
        return None
    _refuse_second_history(runtime, migrations, {revision.revision for revision in revisions})
    heads = history.get_heads()
    if head is None and len(heads) > 1:
        raise SetupError(
            f"{migrations.folder} has several heads: {', '.join(heads)}. Name the one to append to,"
            f" as in flask sequence init{migrations.option} --head {heads[0]}, or merge them first."
        )
    written = history.generate_revision(
        REVISION,
        MESSAGE,
        head=head or "head",
        refresh=True,
        **_template_arguments(migrations, runtime.settings.bind_key),
    )
    return None if written is None else pathlib.Path(written.path)


def _refuse_second_history(
    runtime: Runtime, migrations: Migrations, revisions: t.Collection[str]
) -> None:
    unknown = [each for each in _applied(runtime, migrations) if each not in revisions]
    if unknown:
        raise SetupError(
            f"The database is at revision {unknown[0]}, which is not in {migrations.folder}: a"
            " migration there would begin a second history. Run the command where flask db runs,"
            " or name the folder of the application's migrations, as in flask sequence init -d"
            " db/migrations."
        )


def _applied(runtime: Runtime, migrations: Migrations) -> t.Sequence[str]:
    """Read which revisions the database is at; none where it does not answer."""
    engine = runtime.db.engines[runtime.settings.bind_key]
    if is_missing_file(engine):
        return ()
    name = migrations.arguments.get("version_table", "alembic_version")
    schema = migrations.arguments.get("version_table_schema")
    own = OwnConnections(engine)
    try:
        until = time.monotonic() + LOOK_SECONDS
        with own.transaction(statement=LOOK_SECONDS, until=until) as connection:
            if not sa.inspect(connection).has_table(name, schema=schema):
                return ()
            table = sa.table(name, sa.column("version_num", sa.String), schema=schema)
            return connection.scalars(sa.select(table.c.version_num)).all()
    except Exception:  # whatever makes its connections
        return ()
    finally:
        own.close()


def _creates_our_tables(revision: Script) -> bool:
    # A squashed history has lost our revision's id.
    if revision.revision == REVISION:
        return True
    text = pathlib.Path(revision.path).read_text(encoding="utf-8", errors="replace")
    return _CREATES_OUR_TABLE.search(text) is not None


def _template_arguments(migrations: Migrations, bind_key: str | None) -> dict[str, t.Any]:
    imports: set[str] = set()
    upgrades, downgrades = _render(migrations.arguments, imports)
    prefix = _token_prefix(migrations, bind_key)
    return {
        "config": migrations.config,
        "imports": "\n".join(sorted(imports)),
        f"{prefix}upgrades": upgrades,
        f"{prefix}downgrades": downgrades,
    }


def _token_prefix(migrations: Migrations, bind_key: str | None) -> str:
    template = (migrations.folder / "script.py.mako").read_text(encoding="utf-8")
    if _MULTIDB_MARK in template:
        return f"{bind_key or migrations.default_token}_"
    if bind_key is not None:
        raise SetupError(
            f"SEQUENCE_BIND_KEY is {bind_key!r}, and {migrations.folder} is for a single database,"
            " so the tables would be created in the wrong one: make a folder that knows several by"
            " flask db init --multidb."
        )
    return ""


def _render(arguments: t.Mapping[str, t.Any], imports: set[str]) -> tuple[str, str]:
    render_item: RenderItem | None = arguments.get("render_item")
    contexts: list[AutogenContext] = []

    def render_and_note(kind: str, item: t.Any, context: AutogenContext) -> t.Any:
        contexts.append(context)
        return render_item(kind, item, context) if render_item else False

    def render(operations: ops.UpgradeOps | ops.DowngradeOps) -> str:
        prefixes = ("sqlalchemy_module_prefix", "alembic_module_prefix")
        given = {name: arguments[name] for name in prefixes if arguments.get(name)}
        return render_python_code(operations, render_item=render_and_note, **given)

    upgrade = _operations()
    rendered = render(upgrade), render(upgrade.reverse())
    imports.update(*(context.imports for context in contexts))
    return rendered


def _operations() -> ops.UpgradeOps:
    creations: list[ops.MigrateOperation] = []
    for model in MODELS:
        table = t.cast(sa.Table, model.__table__)
        creations.append(ops.CreateTableOp.from_table(table))
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        creations += [ops.CreateIndexOp.from_index(index) for index in indexes]
    return ops.UpgradeOps(creations)
