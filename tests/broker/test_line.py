"""The connection to a broker, and how it is missed when the other end has gone."""

from __future__ import annotations

import socket
import typing as t

import pytest
from celery import Celery

from flask_sequence.broker.line import alive_options, keep_alive
from tests.support import services

KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
OPTIONS: dict[str, dict[str, t.Any]] = {
    "redis": {
        "socket_keepalive": True,
        "socket_keepalive_options": {**KEEPALIVE, socket.TCP_USER_TIMEOUT: 20_000},
    },
    "amqp": {"socket_settings": KEEPALIVE},
}


def celery_at(url: str, **chosen: t.Any) -> Celery:
    """Make a Celery application with these transport options."""
    celery = Celery("line", set_as_current=False, broker=url)
    celery.conf.broker_transport_options = chosen
    return celery


@pytest.mark.parametrize("driver", OPTIONS)
def test_a_broker_is_asked_for_signs_of_life(driver: str) -> None:
    assert alive_options(celery_at(f"{driver}://"), driver) == OPTIONS[driver]


def test_another_broker_is_left_alone() -> None:
    assert alive_options(celery_at("memory://"), "memory") == {}


@pytest.mark.parametrize(
    ("driver", "chosen"),
    [
        ("redis", {"socket_keepalive": False}),
        ("redis", {"socket_keepalive_options": {socket.TCP_KEEPIDLE: 60}}),
        ("amqp", {"socket_settings": {}}),
        ("amqp", {"socket_settings": {socket.TCP_KEEPIDLE: 60}}),
    ],
)
def test_what_the_application_has_chosen_stays(driver: str, chosen: dict[str, t.Any]) -> None:
    celery = celery_at(f"{driver}://", **chosen)
    assert alive_options(celery, driver) == {}
    keep_alive(celery)
    assert celery.conf.broker_transport_options == chosen


@pytest.mark.parametrize("driver", OPTIONS)
def test_what_else_the_application_has_chosen_goes_with_it(driver: str) -> None:
    celery = celery_at(f"{driver}://", visibility_timeout=7)
    keep_alive(celery)
    assert celery.conf.broker_transport_options == {**OPTIONS[driver], "visibility_timeout": 7}


@pytest.mark.parametrize(("kind", "unanswered"), [("redis", 20_000), ("rabbitmq", 1000)])
def test_the_socket_of_a_worker_has_the_options(kind: str, unanswered: int) -> None:
    broker = services.make_broker(kind)
    celery = celery_at(str(broker.url))
    keep_alive(celery)
    with celery.connection_for_read() as connection:
        channel: t.Any = connection.default_channel
        if kind == "redis":
            with channel.conn_or_acquire() as client:
                client.ping()
                taken = client.connection_pool.get_connection()
                found = taken._sock
                client.connection_pool.release(taken)
        else:
            found = connection.connection.transport.sock
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = {name: found.getsockopt(socket.IPPROTO_TCP, name) for name in KEEPALIVE}
        assert options == KEEPALIVE
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == unanswered
    broker.clear()
