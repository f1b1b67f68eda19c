"""Sequence: the extension, registered with a Flask application."""

from __future__ import annotations

import logging
import typing as t

from flask import Flask, Response, g
from flask_sqlalchemy import SQLAlchemy

from .cli import sequence_cli
from .config import Settings
from .engine import control
from .engine.transaction import uncommitted
from .errors import InvalidStepError, SetupError
from .rows.listeners import meet
from .rows.models import join_metadata
from .runtime import Runtime, runtime_of
from .worker import signals as signals
from .worker.task import check_celery, find_celery, publish, register

if t.TYPE_CHECKING:
    from celery import Celery

logger: logging.Logger = logging.getLogger("flask_sequence")


class Sequence:
    """Runs sequences on the Celery workers and the database of a Flask application.

    :param app: The application, if it exists already; otherwise call :meth:`init_app` later.
    :param db: The application's Flask-SQLAlchemy; by default the one registered with it.
    :param celery: The application's Celery; by default ``app.extensions["celery"]``, looked up
        when it is first needed. If there is none, one is made from ``app.config["CELERY"]``, or
        with a broker in the instance folder that needs no server. None is made if the process has
        a Celery application that was made elsewhere: pass that one here.
    :raises SetupError: See :meth:`init_app`.
    :raises ConfigError: See :meth:`init_app`.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        app: Flask | None = None,
        db: SQLAlchemy | None = None,
        celery: Celery | None = None,
    ) -> None:
        self._db = db
        self._celery_app = celery
        if app is not None:
            self.init_app(app)

    def __init_subclass__(cls, **kwargs: t.Any) -> None:
        raise InvalidStepError(
            f"{cls.__name__} inherits from Sequence, which is the extension: a sequence is a"
            f" subclass of BaseSequence: class {cls.__name__}(BaseSequence)."
        )

    def init_app(
        self, app: Flask, db: SQLAlchemy | None = None, celery: Celery | None = None
    ) -> None:
        """Register the models, the commands and the listeners with an application.

        :param app: The application, configured, and already registered with Flask-SQLAlchemy.
        :param db: See the class.
        :param celery: See the class.
        :raises SetupError: If Flask-SQLAlchemy is not initialised yet, this extension already is,
            the engine commits by itself, its driver is not supported, ``db.session`` begins no
            transaction by itself, or ``app``, ``db`` or ``celery`` is something else than its name
            says.
        :raises ConfigError: If a ``SEQUENCE_*`` setting is misspelled or invalid.

        .. versionadded:: 0.1
        """
        if not isinstance(app, Flask):
            raise SetupError(
                f"Sequence takes the Flask application first, but was given a {type(app).__name__}:"
                " write Sequence(app, db=db), or Sequence() and sequence.init_app(app) later."
            )
        if "sequence" in app.extensions:
            raise SetupError(
                f"A Sequence is registered with {app.name!r} already: import and use that one."
            )
        celery = self._celery_app if celery is None else celery
        check_celery(celery)
        given, registered = db or self._db, app.extensions.get("sqlalchemy")
        db = registered if given is None else given
        if not isinstance(db, SQLAlchemy | None):
            raise SetupError(
                f"Sequence(db=...) takes your SQLAlchemy object, but was given a"
                f" {type(db).__name__}: write Sequence(app, db=db), and a Celery application as"
                " Sequence(app, celery=celery)."
            )
        if db is None or registered is None:
            raise SetupError(
                "Flask-SQLAlchemy comes first: call db.init_app(app) before sequence.init_app(app)."
            )
        if db != registered:
            raise SetupError(
                "Sequence(db=...) was given a SQLAlchemy object that is not the one of"
                f" {app.name!r}: call init_app(app) of a single one, and leave out db."
            )
        _refuse_sessions_that_wait(db)
        settings = Settings.from_config(app.config)
        if settings.bind_key is None:
            _refuse_autocommit(app)
        join_metadata(db, settings.bind_key)
        with app.app_context():  # before the application's first savepoint, for SQLite
            meet(db.engines[settings.bind_key])
        runtime = Runtime(
            app=app,
            settings=settings,
            db=db,
            verbs=control,
            find_celery=find_celery,
            publish=publish,
            celery_app=celery,
        )
        app.extensions["sequence"] = runtime
        register(runtime)
        _warn_of_forgotten_commits(app, db)
        app.cli.add_command(sequence_cli)


def celery_app(app: Flask) -> Celery:
    """Return the Celery application that runs the sequences of a Flask application.

    For ``celery -A``, put ``celery = celery_app(flask_app)`` into a module.

    :param app: The application, registered with :class:`Sequence`.
    :return: The one that the extension was given, or the one in ``app.extensions["celery"]``, or a
        new one; from then on it is in ``app.extensions["celery"]``.
    :raises SetupError: If the process has a Celery application that the extension was not given, or
        the extension is not initialised for ``app``.

    .. versionadded:: 0.1
    """
    return runtime_of(app).celery


def _refuse_autocommit(app: Flask) -> None:
    options = app.config.get("SQLALCHEMY_ENGINE_OPTIONS", {})
    places = (options, options.get("execution_options", {}))
    if any(place.get("isolation_level") == "AUTOCOMMIT" for place in places):
        raise SetupError(
            "The engine commits each statement by itself (isolation_level AUTOCOMMIT), so a step"
            " and its effects cannot be one commit: remove it from SQLALCHEMY_ENGINE_OPTIONS, or"
            " use it on a separate bind only."
        )


def _refuse_sessions_that_wait(db: SQLAlchemy) -> None:
    factory: t.Any = getattr(db.session, "session_factory", None)
    if not getattr(factory, "kw", {}).get("autobegin", True):
        raise SetupError(
            "db.session begins no transaction by itself (autobegin=False), so no step could use it:"
            " remove autobegin from the session_options of SQLAlchemy()."
        )


def _warn_of_forgotten_commits(app: Flask, db: SQLAlchemy) -> None:
    @app.after_request
    def note_status(response: Response) -> Response:
        g._sequence_response = response.status_code
        return response

    @app.teardown_request
    def note_request(error: BaseException | None) -> None:
        g._sequence_response = g.get("_sequence_response", 500)

    def warn(error: BaseException | None) -> None:
        if error is not None or g.get("_sequence_response", 200) >= 400:
            return
        if db.session.registry.has() and (names := uncommitted(db.session())):
            logger.warning(
                "Started and not committed: %s. They will not run: call db.session.commit() after"
                " start().",
                ", ".join(names),
            )

    # Flask calls the last one first. This comes right before the one that removes the session,
    # so that the application's own may commit.
    owners = [getattr(teardown, "__self__", None) for teardown in app.teardown_appcontext_funcs]
    app.teardown_appcontext_funcs.insert(owners.index(db) + 1 if db in owners else 0, warn)
