"""The order of docs/guide/from-celery-chain.md, as a Celery chain and as a sequence."""

from __future__ import annotations

import importlib
import typing as t
from pathlib import Path

import pytest
from celery import _state
from flask import Flask

from flask_sequence import SequenceRun, Status
from flask_sequence.testing import drain

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
FORM = {"email": "joel@example.com", "amount": "17"}
CONFIRMED = [("joel@example.com", "Thank you for order 1")]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.Callable[[str], t.Any]]:
    """Import an example, and leave Celery's default application as it was."""
    state: t.Any = _state
    monkeypatch.syspath_prepend(EXAMPLES)
    default, current = state.default_app, state._tls.current_app
    state.default_app = state._tls.current_app = None
    before = list(state._get_active_apps())
    yield importlib.import_module
    state.default_app, state._tls.current_app = default, current
    for celery in list(state._get_active_apps()):
        if celery not in before:
            state._deregister_app(celery)


@pytest.fixture
def services(load: t.Callable[[str], t.Any]) -> t.Any:
    """What the examples call, as if nothing had been done yet."""
    module = load("services")
    for told in (module.charges, module.mails, module.outages):
        told.clear()
    return module


def made(example: t.Any, folder: Path, **celery: t.Any) -> Flask:
    app: Flask = example.create_app(f"sqlite:///{folder}/orders.db", **celery)
    with app.app_context():
        example.db.create_all()
    return app


def post(app: Flask) -> None:
    assert app.test_client().post("/orders", data=FORM).json == {"order": 1}


def order(example: t.Any) -> t.Any:
    return example.db.session.get(example.Order, 1)


def test_the_chain(load: t.Callable[[str], t.Any], services: t.Any, tmp_path: Path) -> None:
    example = load("chain")
    app = made(example, tmp_path, task_always_eager=True)
    services.outages.append("no route to host")
    post(app)
    with app.app_context():
        assert (order(example).state, order(example).charge_id) == ("paid", "charge-order-1")
    assert (services.charges, services.mails) == ({"order-1": 17}, CONFIRMED)


def test_the_sequence(load: t.Callable[[str], t.Any], services: t.Any, tmp_path: Path) -> None:
    example = load("sequence")
    app = made(example, tmp_path, broker_url="memory://")
    services.outages.append("no route to host")
    post(app)
    assert drain(app) == 2  # the second one failed
    assert drain(app, ignore_due=True) == 2
    with app.app_context():
        run = example.db.session.get(SequenceRun, 1)
        assert run.status is Status.FINISHED
        assert order(example).state == "paid"
        assert order(example).charge_id in {f"charge-{key}" for key in services.charges}
    assert list(services.charges.values()) == [17]
    assert services.mails == CONFIRMED


def test_a_failed_sequence_goes_on_where_it_failed(
    load: t.Callable[[str], t.Any], services: t.Any, tmp_path: Path
) -> None:
    example = load("sequence")
    app = made(example, tmp_path, broker_url="memory://")
    services.outages.extend(["no route to host"] * 11)
    post(app)
    drain(app, ignore_due=True)
    with app.app_context():
        run = example.db.session.get(SequenceRun, 1)
        assert (run.status, run.step) == (Status.FAILED, "Charge")
        assert order(example).state == "reserved"
        run.retry()
        example.db.session.commit()
    assert drain(app) == 2
    assert (list(services.charges.values()), services.mails) == ([17], CONFIRMED)


NO_BROKER = "redis://127.0.0.1:1/0"


def test_without_a_broker_the_chain_is_lost(
    load: t.Callable[[str], t.Any], services: t.Any, tmp_path: Path
) -> None:
    example = load("chain")
    publish = {"task_publish_retry": False, "broker_transport_options": {"max_retries": 0}}
    app = made(example, tmp_path, broker_url=NO_BROKER, **publish)
    assert app.test_client().post("/orders", data=FORM).status_code == 500
    with app.app_context():
        assert order(example).state == "new"


def test_without_a_broker_the_sequence_waits(
    load: t.Callable[[str], t.Any], services: t.Any, tmp_path: Path
) -> None:
    example = load("sequence")
    app = made(example, tmp_path, broker_url=NO_BROKER)
    post(app)
    with app.app_context():
        assert example.db.session.get(SequenceRun, 1).status is Status.WAITING
    assert drain(app) == 3
    assert services.mails == CONFIRMED


def test_there_is_no_order_without_a_run(
    load: t.Callable[[str], t.Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(**data: t.Any) -> t.NoReturn:
        raise SystemExit

    example = load("sequence")
    app = made(example, tmp_path, broker_url="memory://")
    monkeypatch.setattr(example.PlaceOrder, "start", die)
    with pytest.raises(SystemExit):
        app.test_client().post("/orders", data=FORM)
    with app.app_context():
        assert order(example) is None
