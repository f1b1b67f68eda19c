"""The Alembic revision of ``flask sequence init``."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import typing as t

import flask_migrate
import sqlalchemy as sa
from alembic.autogenerate import render_python_code
from alembic.operations import ops
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from flask import Flask

from ..errors import SetupError
from ..runtime import runtime_of
from .models import MODELS, runs

if t.TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.config import Config

    RenderItem = t.Callable[[str, t.Any, AutogenContext], str | t.Literal[False]]

REVISION = "flask_sequence_1"
"""The revision that creates the tables of this version; Alembic keeps 32 characters."""
MESSAGE = "Add the tables for sequences"

_CREATES_OUR_TABLE = re.compile(
    rf"create[_ ]table\W+(?:if\W+not\W+exists\W+)?(?:\w+\W+)?{runs.name}\b", re.IGNORECASE
)
_MULTIDB_MARK = "%s_upgrades"


def write_revision(
    app: Flask, directory: str | None = None, head: str | None = None
) -> pathlib.Path | None:
    """Write the migration that creates our tables. The database is not touched.

    :param app: The application.
    :param directory: Its folder of migrations; by default Flask-Migrate's. Made if there is none.
    :param head: The head to append to; needed where the history has several.
    :return: The file; None if the history creates the tables already.
    :raises SetupError: If it cannot be written; the text says what to do.

    .. versionadded:: 0.1
    """
    bind_key = runtime_of(app).settings.bind_key
    default: str = _configuration_of(app).directory
    folder = pathlib.Path(directory or default)
    with app.app_context():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # Alembic tells each file it makes
                _make_folder(folder, multidb=bind_key is not None)
                return _write(app, folder, head, bind_key)
        except CommandError as error:
            raise SetupError(f"{folder}: {error}") from error
        except OSError as error:
            raise SetupError(f"Cannot write the migration: {error}") from error


def _configuration_of(app: Flask) -> t.Any:
    try:
        return app.extensions["migrate"]
    except KeyError:
        raise SetupError(
            "Flask-Migrate is not initialised: call Migrate(app, db) in the function that creates"
            " the application, or create the tables by db.create_all()."
        ) from None


def _make_folder(folder: pathlib.Path, *, multidb: bool) -> None:
    if (folder / "alembic.ini").exists():
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise SetupError(
            f"The folder {folder} is not empty and holds no alembic.ini, so it is none of"
            " Flask-Migrate's: name another one by -d, or empty it."
        )
    try:
        flask_migrate.init(str(folder), multidb=multidb)
    except SystemExit as error:  # how Flask-Migrate ends on an error, which it has logged
        raise SetupError(f"Flask-Migrate could not make the folder {folder}.") from error


def _write(
    app: Flask, folder: pathlib.Path, head: str | None, bind_key: str | None
) -> pathlib.Path | None:
    config = _configuration_of(app).migrate.get_config(str(folder))
    history = ScriptDirectory.from_config(config)
    if any(_creates_our_tables(revision) for revision in history.walk_revisions()):
        return None
    heads = history.get_heads()
    if head is None and len(heads) > 1:
        raise SetupError(
            f"{folder} has several heads: {', '.join(heads)}. Name the one to append to, as in"
            f" flask sequence init --head {heads[0]}, or join them by flask db merge heads."
        )
    written = history.generate_revision(
        REVISION,
        MESSAGE,
        head=head or "head",
        refresh=True,
        **_template_arguments(app, folder, bind_key, config),
    )
    return None if written is None else pathlib.Path(written.path)


def _creates_our_tables(revision: Script) -> bool:
    # A squashed history has lost our revision's id.
    if revision.revision == REVISION:
        return True
    text = pathlib.Path(revision.path).read_text(encoding="utf-8", errors="replace")
    return _CREATES_OUR_TABLE.search(text) is not None


def _template_arguments(
    app: Flask, folder: pathlib.Path, bind_key: str | None, config: Config
) -> dict[str, t.Any]:
    imports: set[str] = set()
    upgrades, downgrades = _render(app, imports)
    prefix = _token_prefix(folder, bind_key)
    return {
        "config": config,
        "imports": "\n".join(sorted(imports)),
        f"{prefix}upgrades": upgrades,
        f"{prefix}downgrades": downgrades,
    }


def _token_prefix(folder: pathlib.Path, bind_key: str | None) -> str:
    template = (folder / "script.py.mako").read_text(encoding="utf-8")
    if _MULTIDB_MARK in template:
        return f"{bind_key or ''}_"
    if bind_key is not None:
        raise SetupError(
            f"SEQUENCE_BIND_KEY is {bind_key!r}, and {folder} is for a single database, so the"
            " tables would be created in the wrong one: make a folder that knows several by"
            " flask db init --multidb."
        )
    return ""


def _render(app: Flask, imports: set[str]) -> tuple[str, str]:
    arguments = _configuration_of(app).configure_args
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
