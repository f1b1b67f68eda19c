"""The numbers with which the package is shipped: other tests replace them, or ask for them."""

from __future__ import annotations

import importlib
import typing as t

import pytest

SHIPPED: dict[str, dict[str, t.Any]] = {
    "broker.bounded": {"IDLE_SECONDS": 10.0},
    "broker.folders": {"TRIAL_BYTES": 4096, "LITTER_SECONDS": 3600.0, "TRIES": 50},
    "broker.line": {"BATCH": 100},
    "broker.publisher": {
        "PUBLISH_SECONDS": 1.0,
        "WAIT_SECONDS": 1.75,
        "REST_SECONDS": 10.0,
        "STUCK_SECONDS": 30.0,
    },
    "broker.transport": {
        "POLLING_SECONDS": 0.1,
        "FIRST_POLLING_SECONDS": 0.005,
        "LISTING_SECONDS": 0.25,
        "SIGN_SECONDS": 60.0,
        "DEAD_SECONDS": 300.0,
    },
    "definition.data": {"WARN_BYTES": 262144, "MAX_LEVELS": 30},
    "engine.attempt": {"FRESH_TRIES": 5},
    "engine.claiming": {"STAND_IN_SECONDS": 600.0},
    "engine.connections": {"KEPT_SECONDS": 1.0},
    "engine.control": {
        "LONGEST_POLL": 0.25,
    },
    "engine.failing": {"LONGEST_WAIT": 30.0},
    "engine.in_hand": {"SLOTS": 1024},
    "engine.known_steps": {"MOST_NAMED": 10},
    "engine.patience": {"TRIES": 5, "REFUSALS": 20, "LONGEST_PAUSE": 2.0},
    "engine.retention": {"DELETE_SECONDS": 1},
    "engine.starting": {
        "KEY_TRIES": 5,
        "MAX_KEY": 255,
        "BATCH_CHARACTERS": 1000000,
        "LAST_YEAR": 9998,
    },
    "engine.transaction": {"MOST_NUDGES": 100},
    "engine.waiting": {"LOCK_SECONDS": 10.0, "LONGEST_PAUSE": 0.1},
    "rows.endings": {"MOST_KEPT": 10000},
    "rows.liveness": {
        "SILENT_SECONDS": 20,
        "PROBES": 3,
        "RESTED_SECONDS": 5.0,
        "CONNECT_SECONDS": 10,
    },
    "rows.migration": {"LOOK_SECONDS": 2},
    "rows.models": {"FORMAT": 1, "EMPTIED": 0},
    "rows.moves": {"CLAIM_SECONDS": 2, "MOST_KEPT": 1024},
    "rows.own_connections": {"SERVER_SECONDS": 2, "IDLE_SECONDS": 10},
    "rows.reads": {"OLDEST": 1000},
    "rows.statements": {"MOVE_SECONDS": 30},
    "worker.duties": {"LOOK_SECONDS": 0.5},
    "worker.duties.lease": {"GONE_SECONDS": 3600.0},
    "worker.duties.publishing": {
        "HUNGRY_SECONDS": 0.1,
        "SLOTS_AHEAD": 100,
        "RESERVED": 10,
        "PUBLISHED_AT_ONCE": 200,
    },
    "worker.duties.purge": {
        "PURGED_AT_ONCE": 500,
        "PURGED_AT_FIRST": 16,
        "HISTORY_AT_ONCE": 2000,
        "AGAIN_SECONDS": 0.5,
        "LONGEST_PAUSE": 600.0,
    },
    "worker.duties.queues": {"MOVED_AT_ONCE": 500, "MOST_QUEUES": 100, "AGAIN_SECONDS": 0.5},
    "worker.duties.recovery": {
        "FREED_AT_ONCE": 50,
        "WATCH_SECONDS": 5.0,
        "CLAIM_SECONDS": 0.2,
        "AGAIN_SECONDS": 0.5,
    },
    "worker.duties.unknown": {"MOVED_AT_ONCE": 500, "AGAIN_SECONDS": 0.5, "PAUSE": 10},
    "worker.forking": {"FORK_SECONDS": 5.0},
    "worker.introduction": {"MOST_NAMED": 20},
    "worker.keeper": {
        "KEEP_SECONDS": 0.25,
        "LEAVE_SECONDS": 5.0,
        "LEAVE_ROWS": 500,
        "LATE_SECONDS": 1.0,
    },
    "worker.post": {"MOST_TOLD": 10000},
    "worker.signals": {"LOOK_SECONDS": 5.0},
    "worker.task": {"MOST": 9223372036854775807},
}


@pytest.mark.parametrize("module", SHIPPED)
def test_what_is_shipped(module: str) -> None:
    found = vars(importlib.import_module(f"flask_sequence.{module}"))
    assert {name: found[name] for name in SHIPPED[module]} == SHIPPED[module]


@pytest.mark.parametrize("module", SHIPPED)
def test_every_number_is_told(module: str) -> None:
    found = vars(importlib.import_module(f"flask_sequence.{module}"))
    numbers = {
        name
        for name, value in found.items()
        if name.isupper() and name[0] != "_" and type(value) in (int, float)
    }
    imported = {name for others in SHIPPED.values() for name in others} - set(SHIPPED[module])
    assert numbers - imported == set(SHIPPED[module])
