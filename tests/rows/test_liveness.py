"""Connections of a worker: how their sockets are set, and which are given up."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
import typing as t

import pytest
import sqlalchemy as sa

from flask_sequence.rows import liveness
from flask_sequence.rows.driver_errors import is_transient
from flask_sequence.rows.liveness import watch_connections
from tests.support import services

DRIVERS = ["psycopg", "psycopg2", "pymysql", "MySQLdb"]
OPTIONS = {
    "on": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "unanswered": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
}
OURS = {"on": 1, "idle": 10, "interval": 5, "count": 3, "unanswered": 20_000}


def url_of(driver: str) -> str:
    """Give the address of a server by a driver; skip the test if one of the two is missing."""
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"{driver} is not installed")
    server = services.POSTGRESQL if "psycopg" in driver else services.MARIADB
    services.require(server)
    dialect = "postgresql" if "psycopg" in driver else "mariadb"
    url = sa.make_url(server).set(drivername=f"{dialect}+{driver.lower()}")
    return url.render_as_string(hide_password=False)


@pytest.fixture(params=DRIVERS)
def driver_url(request: pytest.FixtureRequest) -> str:
    return url_of(request.param)


@pytest.fixture
def watch() -> t.Iterator[t.Callable[..., sa.Engine]]:
    """The function that makes an engine whose connections are watched."""
    engines: list[sa.Engine] = []

    def make(url: str, **options: t.Any) -> sa.Engine:
        engines.append(sa.create_engine(url, **options))
        watch_connections(engines[-1])
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


MakeEngine = t.Callable[..., sa.Engine]


def socket_of(driver: t.Any) -> socket.socket:
    return socket.socket(fileno=os.dup(getattr(driver, "_sock", driver).fileno()))


def options_of(engine: sa.Engine) -> dict[str, int]:
    """Give the options of the socket of a connection."""
    with engine.connect() as connection:
        with socket_of(connection.connection.dbapi_connection) as copy:
            found = {name: copy.getsockopt(*option) for name, option in OPTIONS.items()}
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    return found


def test_a_connection_is_asked_for_signs_of_life(watch: MakeEngine, driver_url: str) -> None:
    assert options_of(watch(driver_url)) == OURS


def test_however_it_is_made(watch: MakeEngine, driver_url: str) -> None:
    plain = sa.create_engine(driver_url)
    args, params = plain.dialect.create_connect_args(plain.url)
    module: t.Any = plain.dialect.dbapi

    def create() -> t.Any:
        return module.connect(*args, **params)

    assert options_of(watch(driver_url, creator=create)) == OURS
    engine = sa.create_engine(driver_url)
    sa.event.listen(engine, "do_connect", lambda *_: create())
    watch_connections(engine)
    assert options_of(engine) == OURS
    engine.dispose()


def test_a_connection_that_was_made_before_is_asked_too(driver_url: str) -> None:
    engine = sa.create_engine(driver_url)
    with engine.connect() as connection:
        number = number_of(connection)
    assert options_of(engine) != OURS
    watch_connections(engine)
    assert options_of(engine) == OURS
    with engine.connect() as connection:
        assert number_of(connection) == number
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_parameters_of_the_application_win(watch: MakeEngine, driver: str) -> None:
    url = url_of(driver)
    arguments = {"keepalives_idle": 100, "tcp_user_timeout": 0}
    mine = options_of(watch(url, connect_args=arguments))
    assert (mine["idle"], mine["unanswered"]) == (100, 0)
    assert mine["count"] != OURS["count"]
    mine = options_of(watch(f"{url}?keepalives=0"))
    assert (mine["on"], mine["unanswered"]) == (0, OURS["unanswered"])


def test_the_listeners_of_the_application_win(driver_url: str) -> None:
    def set_own(driver: t.Any, record: t.Any) -> None:
        with socket_of(driver) as copy:
            copy.setsockopt(*OPTIONS["idle"], 77)

    for after in (False, True):
        engine = sa.create_engine(driver_url)
        if after:
            watch_connections(engine)
        sa.event.listen(engine, "connect", set_own)
        if not after:
            watch_connections(engine)
        mine = options_of(engine)
        assert (mine["idle"], mine["unanswered"]) == (77, OURS["unanswered"])
        engine.dispose()


def test_a_socket_file_is_left_alone(watch: MakeEngine) -> None:
    engine = watch("sqlite://")
    with engine.connect() as connection:
        assert connection.scalar(sa.select(1)) == 1


# Connecting


@pytest.fixture
def mute_server() -> t.Iterator[tuple[str, int]]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def test_who_is_not_let_in_does_not_wait_long(
    watch: MakeEngine,
    mute_server: tuple[str, int],
    driver_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "CONNECT_SECONDS", 2)
    host, port = mute_server
    url = sa.make_url(driver_url).set(host=host, port=port, password="x")
    began = time.monotonic()
    with pytest.raises(sa.exc.OperationalError) as error:
        watch(url).connect()
    assert time.monotonic() - began < 8
    assert is_transient(error.value)


def test_a_statement_may_take_longer_than_to_connect(
    watch: MakeEngine, driver_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "CONNECT_SECONDS", 1)
    sleep = "pg_sleep" if "psycopg" in driver_url else "SLEEP"
    with watch(driver_url).connect() as connection:
        connection.exec_driver_sql(f"SELECT {sleep}(2.5)")


def connect_parameters(watch: MakeEngine, url: str, **arguments: t.Any) -> dict[str, t.Any]:
    """Give what a driver is called with."""
    seen: dict[str, t.Any] = {}
    engine = watch(url, connect_args=arguments)
    sa.event.listen(engine, "do_connect", lambda *given: seen.update(given[3]))
    engine.connect().close()
    return seen


def test_the_time_to_connect_is_the_applications(
    watch: MakeEngine, driver_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect_parameters(watch, driver_url)["connect_timeout"] == 10
    assert connect_parameters(watch, driver_url, connect_timeout=7)["connect_timeout"] == 7
    if "psycopg" in driver_url:
        monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
        assert "connect_timeout" not in connect_parameters(watch, driver_url)


def test_the_time_to_read_is_the_applications(watch: MakeEngine) -> None:
    url = url_of("pymysql")
    assert connect_parameters(watch, url, read_timeout=1)["read_timeout"] == 1
    engine = watch(url, connect_args={"read_timeout": 1})
    with engine.connect() as connection, pytest.raises(sa.exc.OperationalError, match="timed out"):
        connection.exec_driver_sql("SELECT SLEEP(5)")


# What the pool holds


def number_of(connection: sa.Connection) -> int:
    """Give the server's number of a connection."""
    is_postgresql = connection.dialect.name == "postgresql"
    ask = "SELECT pg_backend_pid()" if is_postgresql else "SELECT CONNECTION_ID()"
    return t.cast(int, connection.exec_driver_sql(ask).scalar_one())


def end_on_server(url: str, number: int) -> None:
    """End a connection on the server's side."""
    engine = sa.create_engine(url)
    end = "SELECT pg_terminate_backend({})" if "psycopg" in url else "KILL {}"
    with engine.connect() as connection:
        connection.exec_driver_sql(end.format(number))
    engine.dispose()


def test_a_connection_that_has_rested_is_asked_before_it_is_used(
    watch: MakeEngine, driver_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = watch(driver_url)
    with engine.connect() as connection, engine.connect() as other:
        numbers = [number_of(connection), number_of(other)]
    with engine.connect() as connection:
        assert number_of(connection) in numbers
    for number in numbers:
        end_on_server(driver_url, number)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 6.0)
    for _ in range(2):
        with engine.connect() as connection:
            assert number_of(connection) not in numbers


def test_a_listener_that_has_used_it_does_no_harm(
    watch: MakeEngine, driver_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(driver: t.Any, record: t.Any, proxy: t.Any) -> None:
        cursor = driver.cursor()
        cursor.execute("SELECT 1")
        cursor.close()

    engine = sa.create_engine(driver_url)
    sa.event.listen(engine, "checkout", use)
    watch_connections(engine)
    with engine.connect() as connection:
        number = number_of(connection)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 6.0)
    with engine.connect() as connection:
        assert number_of(connection) == number
    engine.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_connection_that_may_write_no_more_is_given_up(
    watch: MakeEngine, request: pytest.FixtureRequest, kind: str
) -> None:
    engine = watch(request.getfixturevalue(f"{kind}_url"), pool_size=1, max_overflow=0)
    write = "INSERT INTO effects (step, note) VALUES ('', '')"
    # As a failover leaves it, which a server does to all its connections.
    end = "SESSION CHARACTERISTICS AS" if kind == "postgresql" else "SESSION"
    with engine.connect() as connection:
        number = number_of(connection)
        connection.exec_driver_sql(f"SET {end} TRANSACTION READ ONLY")
        connection.commit()
    with engine.connect() as connection:
        assert number_of(connection) == number
        with pytest.raises(sa.exc.DBAPIError) as error:
            connection.exec_driver_sql(write)
        assert is_transient(error.value)
    with engine.begin() as connection:
        assert number_of(connection) != number
        connection.exec_driver_sql(write)
