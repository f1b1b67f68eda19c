from __future__ import annotations

import dataclasses
import re
import typing as t
from datetime import timedelta

import pytest

from flask_sequence import config
from flask_sequence.config import Settings
from flask_sequence.errors import ConfigError


def test_the_defaults() -> None:
    assert Settings.from_config({}) == Settings(
        imports=(),
        bind_key=None,
        queue=None,
        publish=None,
        max_retries=25,
        max_crashes=5,
        lease_seconds=30,
        sweep_seconds=5,
        burst_seconds=1,
        retention_seconds=604_800,
        max_data_bytes=4_194_304,
    )


@pytest.mark.parametrize(
    ("key", "value", "field", "read"),
    [
        ("SEQUENCE_IMPORTS", ["app.one", "app.two"], "imports", ("app.one", "app.two")),
        ("SEQUENCE_BIND_KEY", "other", "bind_key", "other"),
        ("SEQUENCE_QUEUE", "mail", "queue", "mail"),
        ("SEQUENCE_PUBLISH", True, "publish", True),
        ("SEQUENCE_PUBLISH", False, "publish", False),
        ("SEQUENCE_PUBLISH", None, "publish", None),
        ("SEQUENCE_MAX_RETRIES", 0, "max_retries", 0),
        ("SEQUENCE_MAX_RETRIES", None, "max_retries", None),
        ("SEQUENCE_MAX_CRASHES", 1, "max_crashes", 1),
        ("SEQUENCE_LEASE_SECONDS", 1, "lease_seconds", 1.0),
        ("SEQUENCE_LEASE_SECONDS", timedelta(minutes=1), "lease_seconds", 60.0),
        ("SEQUENCE_SWEEP_SECONDS", 0.1, "sweep_seconds", 0.1),
        ("SEQUENCE_SWEEP_SECONDS", None, "sweep_seconds", None),
        ("SEQUENCE_BURST_SECONDS", 0, "burst_seconds", 0.0),
        ("SEQUENCE_RETENTION", 0, "retention_seconds", 0.0),
        ("SEQUENCE_RETENTION", timedelta(days=1), "retention_seconds", 86_400.0),
        ("SEQUENCE_RETENTION", None, "retention_seconds", None),
        ("SEQUENCE_MAX_DATA_BYTES", 1, "max_data_bytes", 1),
    ],
)
def test_a_key_fills_its_field(key: str, value: t.Any, field: str, read: t.Any) -> None:
    settings = Settings.from_config({key: value})
    assert settings == dataclasses.replace(Settings(), **{field: read})
    assert type(getattr(settings, field)) is type(read)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("SEQUENCE_IMPORTS", "app.sequences", "must be a tuple of module names"),
        ("SEQUENCE_IMPORTS", None, "must be a tuple of module names"),
        ("SEQUENCE_IMPORTS", ("app", ""), "must be a tuple of module names"),
        ("SEQUENCE_IMPORTS", (re,), "must be a tuple of module names"),
        ("SEQUENCE_BIND_KEY", "", "must be a name or None"),
        ("SEQUENCE_QUEUE", 1, "must be a name or None"),
        ("SEQUENCE_PUBLISH", "no", "must be True, False or None, not 'no'."),
        ("SEQUENCE_PUBLISH", 0, "must be True, False or None, not 0."),
        ("SEQUENCE_MAX_RETRIES", -1, "must be a whole number from 0 or None, not -1."),
        ("SEQUENCE_MAX_RETRIES", True, "must be a whole number from 0 or None"),
        ("SEQUENCE_MAX_RETRIES", 2.0, "must be a whole number"),
        ("SEQUENCE_MAX_RETRIES", "25", "not '25'."),
        ("SEQUENCE_MAX_CRASHES", 0, "must be a whole number from 1, not 0."),
        ("SEQUENCE_MAX_CRASHES", None, "must be a whole number from 1, not None."),
        ("SEQUENCE_LEASE_SECONDS", 0.9, "must be from 1 to 1000000000 seconds, not 0.9."),
        ("SEQUENCE_LEASE_SECONDS", None, "must be a number of seconds or a timedelta, not None."),
        ("SEQUENCE_LEASE_SECONDS", "30", "must be a number of seconds"),
        ("SEQUENCE_SWEEP_SECONDS", 0, "must be from 0.1 to 1000000000 seconds or None"),
        ("SEQUENCE_SWEEP_SECONDS", False, "must be a number of seconds"),
        ("SEQUENCE_BURST_SECONDS", float("nan"), "must be a number of seconds"),
        ("SEQUENCE_BURST_SECONDS", float("inf"), "must be from 0 to"),
        ("SEQUENCE_RETENTION", timedelta(-1), "must be from 0 to"),
        ("SEQUENCE_RETENTION", 10**10, "must be from 0 to"),
        ("SEQUENCE_MAX_DATA_BYTES", 0, "must be a whole number from 1"),
        ("SEQUENCE_MAX_DATA_BYTES", None, "must be a whole number from 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(key: str, value: t.Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key} .*{re.escape(problem)}") as caught:
        Settings.from_config({key: value})
    assert caught.value.key == key
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("SEQUENCE_IMPORT", "SEQUENCE_IMPORTS"),
        ("SEQUENCE_IMPROTS", "SEQUENCE_IMPORTS"),
        ("SEQUENCE_BINDKEY", "SEQUENCE_BIND_KEY"),
        ("SEQUENCE_RETRIES", "SEQUENCE_MAX_RETRIES"),
        ("SEQUENCE_QUEUES", "SEQUENCE_QUEUE"),
        ("SEQUENCE_MAX_RETRY", "SEQUENCE_MAX_RETRIES"),
        ("SEQUENCE_LEASE", "SEQUENCE_LEASE_SECONDS"),
        ("SEQUENCE_SWEEP", "SEQUENCE_SWEEP_SECONDS"),
        ("SEQUENCE_BURST", "SEQUENCE_BURST_SECONDS"),
        ("SEQUENCE_RETENTION_DAYS", "SEQUENCE_RETENTION"),
        ("SEQUENCE_RETENSION", "SEQUENCE_RETENTION"),
        ("SEQUENCE_MAX_DATA", "SEQUENCE_MAX_DATA_BYTES"),
        ("SEQUENCE_MAX", "SEQUENCE_MAX_RETRIES or SEQUENCE_MAX_CRASHES or SEQUENCE_MAX_DATA_BYTES"),
    ],
)
def test_a_misspelt_key_names_the_right_one(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .*did you mean {meant}\? \[") as caught:
        Settings.from_config({key: 1})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("SEQUENCE_LEASE_TIMEOUT", "SEQUENCE_LEASE_SECONDS"),
        ("SEQUENCE_DEFAULT_QUEUE", "SEQUENCE_QUEUE"),
        ("SEQUENCE_SWEEP_INTERVAL", "SEQUENCE_SWEEP_SECONDS"),
        ("SEQUENCE_BURST_TIME", "SEQUENCE_BURST_SECONDS"),
        ("SEQUENCE_KEEP_CRASHES", "SEQUENCE_MAX_CRASHES"),
        ("SEQUENCE_DATABASE_BIND", "SEQUENCE_BIND_KEY"),
        ("SEQUENCE_BYTES", "SEQUENCE_MAX_DATA_BYTES"),
        ("SEQUENCE_IMPORTED_MODULES", "SEQUENCE_IMPORTS"),
    ],
)
def test_any_other_key_is_warned_of_with_the_nearest(
    key: str, nearest: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert Settings.from_config({key: 1}) == Settings()
    (record,) = caplog.records
    assert f"{key} is not a setting of flask-sequence" in record.getMessage()
    assert f"nearest one is {nearest}." in record.getMessage()
    assert record.levelname == "WARNING"


def test_other_keys_are_left_to_the_application(caplog: pytest.LogCaptureFixture) -> None:
    others = {
        "SEQUENCE_PAGE_SIZE": 10,
        "SEQUENCE_EXPORTS": "x",
        "SEQUENCE_REPORTS": "x",
        "SEQUENCE_QUEUE_SIZE": 10,
        "SEQUENCE_BATCH_SECONDS": 10,
        "SEQUENCE_COLOUR": "red",
        "MAX_RETRIES": "x",
        "CONSEQUENCE_QUEUE": 1,
    }
    assert Settings.from_config(others) == Settings()
    assert len(caplog.records) == 6


def test_every_setting_has_one_key() -> None:
    fields = [field for field, _ in config._SETTINGS.values()]
    assert fields == [field.name for field in dataclasses.fields(Settings)]


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().queue = "other"  # type: ignore[misc]
