"""The application's factory and settings.

Each setting can be given as an environment variable with ``FLASK_`` before its name, for example
``FLASK_INBOX_PASSWORD``. Two have names that hosts set: ``DATABASE_URL``, by default a SQLite file
in the instance folder, and ``CELERY_BROKER_URL``, by default the embedded broker there.

===================================== ============================================================
``SECRET_KEY``                        By default made once and kept in the instance folder.
``INBOX_PASSWORD``                    Of the team. Without one the inbox stays closed.
``LOGINS_PER_HOUR``                   20, from one network, whether the password is right or wrong.
``MESSAGES_PER_HOUR``                 10, from one network, and from one e-mail address.
``PROXIES``                           0; how many proxies before the application are to be trusted
                                      to tell where a request came from. With too small a number
                                      all visitors count as one network.
``SESSION_COOKIE_SECURE``             False; set it to True where the pages are served by HTTPS.
``MAIL_SERVER``                       Without one the mails are files in the instance folder.
``MAIL_PORT``                         25
``MAIL_USE_TLS``                      True: STARTTLS, and the server's certificate is checked.
``MAIL_USERNAME``, ``MAIL_PASSWORD``  None: no login.
``MAIL_FROM``                         ``contact@example.com``
===================================== ============================================================
"""

from __future__ import annotations

import json
import os
import secrets
import typing as t
from pathlib import Path

from flask import Flask, Response, render_template
from sqlalchemy import make_url
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_sequence import SequenceRun, Status, StepRun

from . import cli, inbox, models, pages, sequences, team
from .extensions import db, migrate, sequence

DEFAULTS: dict[str, t.Any] = {
    "SECRET_KEY": None,
    "INBOX_PASSWORD": None,
    "LOGINS_PER_HOUR": 20,
    "MESSAGES_PER_HOUR": 10,
    "PROXIES": 0,
    "MAIL_SERVER": None,
    "MAIL_PORT": 25,
    "MAIL_USE_TLS": True,
    "MAIL_USERNAME": None,
    "MAIL_PASSWORD": None,
    "MAIL_FROM": "contact@example.com",
    "MAX_CONTENT_LENGTH": 256 * 1024,
    "SEQUENCE_IMPORTS": ["example_app.sequences"],
    "SESSION_COOKIE_SAMESITE": "Lax",
}
ERRORS = {
    400: "This request is not complete. Go back, reload the page, and try again.",
    404: "This page does not exist.",
    405: "This page does not exist.",
    413: "This is too large for us. Please write less.",
    500: "Something went wrong on our side. Please try again in a few minutes.",
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
    app.config.from_prefixed_env(loads=_value)
    app.config.update(_secrets())
    app.config.update(given)
    if app.config["MAIL_USE_TLS"] not in (True, False):
        raise ValueError("MAIL_USE_TLS is either True or False.")
    if proxies := app.config["PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]
    _make_database_file(app)
    app.config["SECRET_KEY"] = app.config["SECRET_KEY"] or _secret_key(app)

    db.init_app(app)
    migrate.init_app(app, db, directory=str(Path(__file__).parent / "migrations"))
    sequence.init_app(app)
    app.register_blueprint(pages.pages)
    app.register_blueprint(team.team)
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


def _value(text: str) -> t.Any:
    word = (
        text.lower()
    )  # JSON knows no "False", and text that is no JSON stays text, which is true.
    return json.loads(word if word in ("true", "false") else text)


def _secrets() -> dict[str, str]:
    # As they are: "1e5" and "true" are not to be read as JSON.
    names = ("SECRET_KEY", "INBOX_PASSWORD", "MAIL_USERNAME", "MAIL_PASSWORD")
    return {name: value for name in names if (value := os.environ.get(f"FLASK_{name}"))}


def _make_database_file(app: Flask) -> None:
    # SQLite would let every user of the machine read it, with all messages in it.
    url = make_url(app.config["SQLALCHEMY_DATABASE_URI"])
    name = url.database or ":memory:"
    if url.get_backend_name() == "sqlite" and not name.startswith((":memory:", "file:")):
        (_make_folder(app.instance_path) / name).touch(mode=0o600)


def _make_folder(path: str) -> Path:
    folder = Path(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _secret_key(app: Flask) -> str:
    folder = _make_folder(app.instance_path)
    path = folder / "secret_key"
    if not path.exists():
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
    standard = error.description == type(error).description
    text = ERRORS.get(error.code) if standard else None
    return render_template("error.html", error=error, text=text or error.description), error.code


def _shell_names() -> dict[str, t.Any]:
    classes = (models.Member, models.Message, sequences.ContactForm, SequenceRun, StepRun, Status)
    return {"db": db, "sequence": sequence} | {cls.__name__: cls for cls in classes}
