"""The application's factory and settings.

Each setting can be given as an environment variable with ``FLASK_`` before its name, for example
``FLASK_INBOX_PASSWORD``. Two have names that hosts set: ``DATABASE_URL``, by default a SQLite file
in the instance folder, and ``CELERY_BROKER_URL``, by default the embedded broker there.

============================= ====================================================================
``SECRET_KEY``                By default made once and kept in the instance folder.
``INBOX_PASSWORD``            Of the team. Without one the inbox stays closed.
``MAIL_SERVER``               Without one the mails are files in the instance folder.
``MAIL_PORT``                 25
``MAIL_USE_TLS``              False; True: STARTTLS.
``MAIL_USERNAME``, ``..._PASSWORD`` None: no login.
``MAIL_FROM``                 ``contact@example.com``
============================= ====================================================================
"""

from __future__ import annotations

import os
import secrets
import typing as t
from pathlib import Path

from flask import Flask, Response, render_template
from werkzeug.exceptions import HTTPException

from flask_sequence import SequenceRun, Status, StepRun

from . import cli, inbox, models, pages, sequences
from .extensions import db, migrate, sequence

DEFAULTS: dict[str, t.Any] = {
    "SECRET_KEY": None,
    "INBOX_PASSWORD": None,
    "MAIL_SERVER": None,
    "MAIL_PORT": 25,
    "MAIL_USE_TLS": False,
    "MAIL_USERNAME": None,
    "MAIL_PASSWORD": None,
    "MAIL_FROM": "contact@example.com",
    "MAX_CONTENT_LENGTH": 256 * 1024,
    "SEQUENCE_IMPORTS": ["example_app.sequences"],
    "SESSION_COOKIE_SAMESITE": "Lax",
}
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def create_app(config: t.Mapping[str, t.Any] | None = None) -> Flask:
    """Make the application.

    :param config: Settings that go before those of the environment; ``INSTANCE_PATH`` among them,
        or in the environment, is another instance folder.
    """
    given = dict(config or {})
    instance = given.pop("INSTANCE_PATH", None) or os.environ.get("INSTANCE_PATH")
    app = Flask(__package__, instance_path=instance and os.path.abspath(instance))
    app.config.from_mapping(DEFAULTS)
    app.config["SQLALCHEMY_DATABASE_URI"] = _database_url()
    if broker := os.environ.get("CELERY_BROKER_URL"):
        app.config["CELERY"] = {"broker_url": broker}
    app.config.from_prefixed_env()
    app.config.update(_secrets())
    app.config.update(given)
    app.config["SECRET_KEY"] = app.config["SECRET_KEY"] or _secret_key(Path(app.instance_path))

    db.init_app(app)
    migrate.init_app(app, db, directory=str(Path(__file__).parent / "migrations"))
    sequence.init_app(app)
    app.register_blueprint(pages.pages)
    app.register_blueprint(inbox.inbox)
    app.cli.add_command(cli.add_members)
    app.register_error_handler(HTTPException, _error_page)
    app.after_request(_add_headers)
    app.shell_context_processor(_shell_names)
    return app


def _database_url() -> str:
    url = os.environ.get("DATABASE_URL") or "sqlite:///contact.sqlite"
    scheme, colon, rest = url.partition(":")
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg"
    return scheme + colon + rest


def _secrets() -> dict[str, str]:
    # As they are: from_prefixed_env() reads "1e5" and "true" as JSON.
    names = ("SECRET_KEY", "INBOX_PASSWORD", "MAIL_USERNAME", "MAIL_PASSWORD")
    return {name: value for name in names if (value := os.environ.get(f"FLASK_{name}"))}


def _secret_key(folder: Path) -> str:
    path = folder / "secret_key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        mine = folder / f".{secrets.token_hex()}"
        mine.touch(mode=0o600)
        mine.write_text(secrets.token_hex())
        try:
            os.link(mine, path)
        except FileExistsError:  # Another process was first, and its key is the one.
            pass
        finally:
            mine.unlink()
    return path.read_text()


def _add_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if not response.cache_control.max_age and not response.cache_control.no_cache:
        response.cache_control.no_store = True
    return response


def _error_page(error: HTTPException) -> tuple[str, int] | HTTPException:
    if error.response is not None or error.code is None:
        return error
    return render_template("error.html", error=error), error.code


def _shell_names() -> dict[str, t.Any]:
    classes = (models.Member, models.Message, sequences.ContactForm, SequenceRun, StepRun, Status)
    return {"db": db, "sequence": sequence} | {cls.__name__: cls for cls in classes}
