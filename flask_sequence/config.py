"""The ``SEQUENCE_*`` settings of one application, read once and checked."""

from __future__ import annotations

import difflib
import functools
import logging
import math
import typing as t
from dataclasses import dataclass
from datetime import timedelta

from .errors import ConfigError

logger: logging.Logger = logging.getLogger("flask_sequence")

_PREFIX = "SEQUENCE_"
_NEAR = 0.77
"""How much of a key, without its prefix, must be that of a setting to be a near miss of it."""
_LONGEST = 10**9  # About 31 years: any longer and the database's clock arithmetic overflows.


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of flask-sequence, checked; one value per application.

    Each field is read from the key of ``app.config`` that its description names.

    .. versionadded:: 0.1
    """

    imports: tuple[str, ...] = ()
    """``SEQUENCE_IMPORTS``: the modules with sequences that workers and the CLI import."""
    bind_key: str | None = None
    """``SEQUENCE_BIND_KEY``: the bind that holds the tables; ``None`` means the default bind."""
    queue: str | None = None
    """``SEQUENCE_QUEUE``: the queue of steps that set none; ``None`` means Celery's default."""
    publish: bool | None = None
    """``SEQUENCE_PUBLISH``: whether commits send messages or leave runs to the sweep; with
    ``None`` they send messages unless ``TESTING`` is set."""
    max_retries: int | None = 25
    """``SEQUENCE_MAX_RETRIES``: retries of steps that set no number; ``None`` means no limit."""
    max_crashes: int = 5
    """``SEQUENCE_MAX_CRASHES``: the number of crashes without progress at which a run fails."""
    lease_seconds: float = 30.0
    """``SEQUENCE_LEASE_SECONDS``: how long a worker without a heartbeat still counts as alive, in
    seconds; at least 1."""
    sweep_seconds: float | None = 5.0
    """``SEQUENCE_SWEEP_SECONDS``: seconds between sweeps; ``None``: no sweeps by this worker."""
    burst_seconds: float = 1.0
    """``SEQUENCE_BURST_SECONDS``: how long a burst may last, in seconds; 0 means one step."""
    retention_seconds: float | None = 7 * 86400.0
    """``SEQUENCE_RETENTION``: how long finished and cancelled runs are kept, in seconds (or a
    timedelta); 0 deletes them at once, ``None`` keeps them forever."""
    max_data_bytes: int = 4 * 1024 * 1024
    """``SEQUENCE_MAX_DATA_BYTES``: the maximum size of a run's data, in bytes of JSON."""

    @classmethod
    def from_config(cls, config: t.Mapping[str, t.Any]) -> Settings:
        """Read and check the settings of an application.

        :param config: ``app.config``. Missing keys take their defaults. A ``SEQUENCE_*`` key that
            resembles no setting is left to the application, with a warning.
        :return: The settings.
        :raises ConfigError: If a value is invalid, or a key looks like a misspelled setting.

        .. versionadded:: 0.1
        """
        _check_keys(config)
        values = {}
        for key, (field, check) in _SETTINGS.items():
            if key in config:
                try:
                    values[field] = check(config[key])
                except ValueError as error:
                    raise ConfigError(key, f"{error}, not {config[key]!r}.") from None
        return cls(**values)


def _check_keys(config: t.Iterable[str]) -> None:
    settings = {key.removeprefix(_PREFIX): key for key in _SETTINGS}
    for key in config:
        if key.startswith(_PREFIX) and key not in _SETTINGS:
            name = key.removeprefix(_PREFIX)
            longer = [known for known in settings if known.startswith(f"{name}_")]
            near = longer or difflib.get_close_matches(name, settings, n=1, cutoff=_NEAR)
            if near:
                meant = " or ".join(settings[known] for known in near)
                raise ConfigError(key, f"is not a setting; did you mean {meant}?")
            logger.warning(
                "%s is not a setting of flask-sequence and has no effect; the nearest one is %s."
                " Use another prefix for keys of your own.",
                key,
                settings[max(settings, key=functools.partial(_likeness, name))],
            )


def _likeness(name: str, known: str) -> tuple[int, float]:
    """Compare two names by the words that they share, then by their letters."""
    words = set(name.split("_")) & set(known.split("_"))
    return len(words), difflib.SequenceMatcher(None, name, known).ratio()


def _names(value: t.Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(n, str) and n for n in value):
        raise ValueError('must be a tuple of module names, for example ("app.sequences",)')
    return tuple(value)


def _optional_flag(value: t.Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError("must be True, False or None")
    return value


def _optional_name(value: t.Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError("must be a name or None")
    return value


def _whole(value: t.Any, *, least: int, optional: bool = False) -> int | None:
    if value is None and optional:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"must be a whole number from {least}{' or None' * optional}")
    return value


def _seconds(value: t.Any, *, least: float, optional: bool = False) -> float | None:
    if value is None and optional:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        raise ValueError(f"must be a number of seconds or a timedelta{' or None' * optional}")
    if not least <= value <= _LONGEST:
        raise ValueError(f"must be from {least} to {_LONGEST} seconds{' or None' * optional}")
    return float(value)


_SETTINGS: dict[str, tuple[str, t.Callable[[t.Any], t.Any]]] = {
    "SEQUENCE_IMPORTS": ("imports", _names),
    "SEQUENCE_BIND_KEY": ("bind_key", _optional_name),
    "SEQUENCE_QUEUE": ("queue", _optional_name),
    "SEQUENCE_PUBLISH": ("publish", _optional_flag),
    "SEQUENCE_MAX_RETRIES": ("max_retries", functools.partial(_whole, least=0, optional=True)),
    "SEQUENCE_MAX_CRASHES": ("max_crashes", functools.partial(_whole, least=1)),
    "SEQUENCE_LEASE_SECONDS": ("lease_seconds", functools.partial(_seconds, least=1)),
    "SEQUENCE_SWEEP_SECONDS": (
        "sweep_seconds",
        functools.partial(_seconds, least=0.1, optional=True),
    ),
    "SEQUENCE_BURST_SECONDS": ("burst_seconds", functools.partial(_seconds, least=0)),
    "SEQUENCE_RETENTION": (
        "retention_seconds",
        functools.partial(_seconds, least=0, optional=True),
    ),
    "SEQUENCE_MAX_DATA_BYTES": ("max_data_bytes", functools.partial(_whole, least=1)),
}
"""Each key in ``app.config``, the field that it fills, and the check of its value."""
