"""The embedded broker, which needs no server, and the Celery app of who has none."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import pathlib
import typing as t
import weakref

from celery import Celery, Task, _state
from celery.app import defaults
from flask import Flask

from ..errors import ConfigError
from .transport import POLLING_SECONDS

TRANSPORT = "flask_sequence.broker.transport:Transport"

logger: logging.Logger = logging.getLogger("flask_sequence")

_made: weakref.WeakSet[Celery] = weakref.WeakSet()
_to_warn: weakref.WeakSet[Celery] = weakref.WeakSet()


def embedded_config(folder: pathlib.Path) -> dict[str, t.Any]:
    """Return the Celery settings for a broker that needs no server.

    Publishers and workers must run on one machine, as one user, with the same folder.

    :param folder: Where the messages are kept; created with mode 0700 on first use.
    :return: A mapping for ``app.config["CELERY"]`` or ``celery.config_from_object``.

    .. versionadded:: 0.1
    """
    folder = folder.absolute()
    messages = str(folder / "messages")
    return {
        "broker_url": "filesystem://",
        # By its path and not by an alias: a worker finds it whatever it has imported.
        "broker_transport": TRANSPORT,
        "broker_transport_options": {
            "data_folder_in": messages,
            "data_folder_out": messages,
            "control_folder": str(folder / "exchanges"),
            "polling_interval": POLLING_SECONDS,
        },
        "broker_connection_retry_on_startup": True,
        "task_ignore_result": True,
        # SIGKILL loses what a worker holds in advance.
        "worker_prefetch_multiplier": 1,
    }


def make_celery(app: Flask) -> Celery:
    """Make the Celery app of a Flask app that has none, as Flask's documentation does.

    Its settings are ``app.config["CELERY"]``, and those keys of ``app.config`` that Celery knows by
    their names, such as ``CELERY_BROKER_URL``. Celery's own environment variables go before them.
    If none of all these names a broker, it is the embedded one in the instance folder. Tasks run
    in an app context.

    It becomes Celery's default app, so that ``shared_task`` works, unless the process has a
    Celery app that somebody else made: then it is used by flask-sequence only.

    :param app: The Flask app.
    :return: The Celery app, also in ``app.extensions["celery"]``.
    :raises ConfigError: If ``app.config["CELERY"]`` is an address.

    .. versionadded:: 0.1
    """
    celery = Celery(app.name, task_cls=_context_task(app), set_as_current=False)
    config, named = app.config.get("CELERY"), _named_settings(app.config)
    if isinstance(config, str) and "://" in config:
        raise ConfigError("CELERY", 'is an address: write CELERY = {"broker_url": "..."}.')
    if config and not isinstance(config, t.Mapping):
        celery.config_from_object(config)  # a module or an object
    else:
        _warn_of_misspelled(config or {})
        settings = {_OLD_NAMES.get(name, name): value for name, value in (config or {}).items()}
        settings = {**named, **settings}
        if not _names_broker(settings) and not _broker_in_environment():
            settings = {**embedded_config(_folder_of(app)), **settings}
            _to_warn.add(celery)
        elif not config:
            ours = {"broker_connection_retry_on_startup": True, "task_ignore_result": True}
            settings = {**ours, **settings}
        celery.config_from_object(settings)
    if not foreign_celeries():
        celery.set_default()
    _made.add(celery)
    app.extensions["celery"] = celery
    return celery


def is_made(celery: Celery) -> bool:
    """Tell whether a Celery app was made by :func:`make_celery`.

    :param celery: The Celery app.
    """
    return celery in _made


def foreign_celeries() -> list[Celery]:
    """Give the Celery apps of this process that somebody else made for all of it.

    Those are the ones that became Celery's current or default app. It is not asked which one is
    current now: that differs from thread to thread.
    """
    state: t.Any = _state
    return [
        celery
        for celery in list(state._get_active_apps())
        if celery not in _made
        and (celery.set_as_current or (celery is state.default_app and celery.main != "default"))
    ]


def check_folders(celery: Celery) -> None:
    """Create the folders of the embedded broker, if it is this that a Celery app has.

    :param celery: The Celery app.
    :raises SetupError: They cannot be created, or others can write into them.

    .. versionadded:: 0.1
    """
    if celery.conf.broker_transport == TRANSPORT:
        transport: t.Any = celery.connection_for_read().transport
        with contextlib.suppress(OSError):  # that will pass, and the worker waits for it
            transport.folders.make()


def _context_task(app: Flask) -> type[Task[..., t.Any]]:
    class ContextTask(Task):  # type: ignore[type-arg]  # Task[...] needs Celery 5.7
        def __call__(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    return ContextTask


def _broker_in_environment() -> bool:
    names = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")
    return any(os.environ.get(name) for name in names)


def _folder_of(app: Flask) -> pathlib.Path:
    return pathlib.Path(app.instance_path) / "sequence_broker"


_OLD_NAMES: dict[str, str] = t.cast(t.Any, defaults)._TO_NEW_KEY
_BROKERS = {"broker_url", "broker_read_url", "broker_write_url", "broker_host", "broker_transport"}


def _names_broker(settings: t.Mapping[str, t.Any]) -> bool:
    return any(value and name.lower() in _BROKERS for name, value in settings.items())


def _warn_of_misspelled(config: t.Mapping[str, t.Any]) -> None:
    """Warn of what Celery would leave unread without a word."""
    for name in config:
        if name in defaults.SETTING_KEYS or name in _OLD_NAMES:
            continue
        meant = name.lower().removeprefix("celery_")
        near = difflib.get_close_matches(meant, defaults.SETTING_KEYS, n=1, cutoff=0.75)
        if near:
            logger.warning(
                "CELERY has the key %r, which is not a setting of Celery and has no effect: did you"
                " mean %r?",
                name,
                near[0],
            )


def _named_settings(config: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Read Celery's settings from the keys of a Flask app, by their old and their new names."""
    named = {}
    for key, value in config.items():
        name = key.removeprefix("CELERY_").lower() if key.startswith("CELERY_") else ""
        if name not in defaults.SETTING_KEYS:
            name = _OLD_NAMES.get(key, "") if key.startswith(("CELERY", "BROKER_")) else ""
        if name and value is not None:
            named[name] = value
    return named


def warn_embedded(app: Flask) -> None:
    """Log once that an app publishes through the embedded broker, outside debug and testing.

    :param app: The Flask app, when it publishes.

    .. versionadded:: 0.1
    """
    celery: t.Any = app.extensions.get("celery")
    if celery is None or celery not in _to_warn or celery.current_worker_task:
        return
    if app.debug or app.testing:
        return
    _to_warn.discard(celery)
    logger.warning(
        "flask-sequence publishes through files in %s, for a single machine and user. For"
        ' production, set a broker: app.config["CELERY"] = {"broker_url": "redis://..."}, or'
        " CELERY_BROKER_URL; or pass your Celery app to Sequence(celery=...). To keep the files"
        ' deliberately: app.config["CELERY"] = flask_sequence.broker.embedded_config(folder).',
        _folder_of(app),
    )
