"""Connections of a thread of its own: as the application's, and bounded."""

from __future__ import annotations

import sqlite3
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence.rows.liveness import watch_connections
from flask_sequence.rows.own_connections import SERVER_SECONDS, OwnConnections, TimeIsUp

SLEEP = {"postgresql": "SELECT pg_sleep(20)", "mariadb": "SELECT sleep(20)"}


@pytest.fixture
def engine(database_url: str) -> t.Iterator[sa.Engine]:
    engine = sa.create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def own(engine: sa.Engine) -> t.Iterator[OwnConnections]:
    own = OwnConnections(engine)
    yield own
    own.close()


def use(own: OwnConnections, statement: str = "SELECT 1", *, seconds: float = 20.0) -> t.Any:
    until = time.monotonic() + seconds
    with own.transaction(statement=seconds, until=until) as connection:
        return connection.exec_driver_sql(statement).scalar()


def test_what_listens_to_the_engine_hears_of_them(engine: sa.Engine, own: OwnConnections) -> None:
    heard: list[str] = []
    for event in ("do_connect", "connect", "checkout", "before_cursor_execute", "commit"):
        sa.event.listen(engine, event, lambda *_, event=event, **__: heard.append(event))
    use(own)
    assert {"do_connect", "connect", "checkout", "before_cursor_execute", "commit"} == set(heard)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_listener_that_sends_the_first_statement(postgresql_url: str, level: str) -> None:
    engine = sa.create_engine(postgresql_url, isolation_level=level)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("SELECT 1"))
    own = OwnConnections(engine)
    assert use(own, "SELECT current_setting('transaction_isolation')") == "read committed"
    own.close()
    with engine.connect() as connection:
        isolation = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
    assert isolation == level.lower()
    engine.dispose()


def test_a_listener_is_asked_once_for_a_connection(database_url: str) -> None:
    engine, asked = sa.create_engine(database_url), list[str]()
    sa.event.listen(engine, "do_connect", lambda *_: asked.append("before"))
    own = OwnConnections(engine)
    sa.event.listen(engine, "do_connect", lambda *_: asked.append("after"))
    own.open()
    assert asked == ["before", "after"]
    own.close()
    engine.dispose()


def test_a_creator_makes_them(database_url: str) -> None:
    real = sa.create_engine(database_url, poolclass=NullPool)
    made: list[t.Any] = []

    def create() -> t.Any:
        fresh = real.raw_connection()
        made.append(fresh.driver_connection)
        fresh.detach()
        return made[-1]

    url = sa.make_url(database_url)
    # Whoever makes connections by himself often gives no more than the kind of the database.
    engine = sa.create_engine(f"{url.drivername}://", creator=create, poolclass=NullPool)
    own = OwnConnections(engine)
    assert use(own) == 1
    assert len(made) == 1
    own.close()


def test_what_changes_the_arguments_for_the_driver_is_heard(database_url: str) -> None:
    url = sa.make_url(database_url)
    wrong = url.set(database="nothing_like_this" if url.host else "/no/such/folder/at/all")
    engine = sa.create_engine(wrong)
    _, right = engine.dialect.create_connect_args(url)

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: t.Any, record: t.Any, args: list[t.Any], params: t.Any) -> t.Any:
        if not url.host:
            args[0] = url.database
        params.update(right)

    own = OwnConnections(engine)
    assert use(own) == 1
    own.close()
    engine.dispose()


def test_execution_options_of_the_application_hold(database_url: str) -> None:
    engine = sa.create_engine(database_url, execution_options={"mine": 1})
    own = OwnConnections(engine.execution_options(more=2))
    until = time.monotonic() + 20
    with own.transaction(statement=20, until=until) as connection:
        options = connection.get_execution_options()
    assert (options["mine"], options["more"]) == (1, 2)
    own.close()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_statements_of_a_listener_are_no_hindrance(database_url: str, level: str) -> None:
    if database_url.startswith("sqlite"):
        level = "SERIALIZABLE"
    engine = sa.create_engine(database_url, isolation_level=level)

    @sa.event.listens_for(engine, "checkout")
    def check(connection: t.Any, *_: t.Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()

    own = OwnConnections(engine)
    for _ in range(2):
        assert use(own) == 1
    if engine.dialect.name == "postgresql":
        assert use(own, "SHOW transaction_isolation") == "read committed"
    own.close()
    engine.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_no_statement_takes_longer(request: pytest.FixtureRequest, kind: str) -> None:
    engine = sa.create_engine(request.getfixturevalue(f"{kind}_url"))
    own = OwnConnections(engine)
    began = time.monotonic()
    with (
        pytest.raises(sa.exc.OperationalError),
        own.transaction(statement=0.5, until=began + 60) as connection,
    ):
        connection.exec_driver_sql(SLEEP[kind])
    assert time.monotonic() - began < 15
    assert use(own) == 1
    own.close()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_bounds_are_gone_from_the_connections_of_the_application(
    request: pytest.FixtureRequest, kind: str
) -> None:
    shown = {"postgresql": "SHOW statement_timeout", "mariadb": "SELECT @@max_statement_time"}
    engine = sa.create_engine(request.getfixturevalue(f"{kind}_url"))
    with engine.connect() as connection:
        before = connection.exec_driver_sql(shown[kind]).scalar()
    own = OwnConnections(engine)
    assert use(own, shown[kind], seconds=0.5) != before
    with engine.connect() as connection:
        assert connection.exec_driver_sql(shown[kind]).scalar() == before
    if kind == "postgresql":  # behind a pooler, others have the connection next
        raw = own.open()
        cursor = raw.cursor()
        cursor.execute(shown[kind])
        assert cursor.fetchone() == (before,)
    own.close()
    engine.dispose()


def test_no_statement_begins_when_the_time_is_up(own: OwnConnections) -> None:
    with own.transaction(statement=20, until=time.monotonic() + 20) as connection:
        connection.exec_driver_sql("CREATE TABLE mine (id integer)")

    def write(until: float) -> t.NoReturn:
        with own.transaction(statement=20, until=until) as connection:
            connection.exec_driver_sql("INSERT INTO mine VALUES (1)")
            while True:
                connection.exec_driver_sql("SELECT 1")

    with pytest.raises(TimeIsUp):
        write(time.monotonic() + 0.2)
    assert use(own, "SELECT count(*) FROM mine") == 0


def test_a_connection_is_kept_until_it_is_closed_or_lost(
    engine: sa.Engine, own: OwnConnections
) -> None:
    made: list[t.Any] = []
    sa.event.listen(engine, "connect", lambda connection, _: made.append(connection))
    for _ in range(3):
        use(own)
    assert len(made) == 1
    made[0].close()  # the server has closed it, as it were
    assert use(own) == 1
    own.close()
    assert use(own) == 1
    assert len(made) == 3


@pytest.mark.parametrize(
    ("url", "limits"),
    [
        ("postgresql+psycopg://h/d", {"connect_timeout", "tcp_user_timeout", "keepalives_idle"}),
        ("mysql+pymysql://h/d", {"connect_timeout", "read_timeout", "write_timeout"}),
        ("sqlite:///x.db", set[str]()),
    ],
)
def test_the_driver_is_told_to_wait_for_no_server_long(
    monkeypatch: pytest.MonkeyPatch, url: str, limits: set[str]
) -> None:
    told: list[dict[str, t.Any]] = []

    def connect(*args: t.Any, **params: t.Any) -> t.NoReturn:
        told.append(params)
        raise OSError("no server")

    mine = {"cached_statements": 7} if url.startswith("sqlite") else {"read_timeout": 60, "mine": 1}
    engine = sa.create_engine(url, connect_args=mine)
    monkeypatch.setattr(engine.dialect, "connect", connect)
    own = OwnConnections(engine)
    connects: tuple[t.Callable[[], t.Any], ...] = (own.open, engine.raw_connection)
    for open_one in connects:
        with pytest.raises(OSError, match="no server"):
            open_one()
    bounded, plain = told
    assert {name for name in bounded if name not in plain or bounded[name] != plain[name]} == (
        limits | {name for name in bounded if name.startswith("keepalives")}
    )
    assert plain.items() >= mine.items()
    assert all(bounded[name] in (SERVER_SECONDS, SERVER_SECONDS * 1000, 1) for name in limits)


def test_only_the_thread_that_connects_is_bounded(
    engine: sa.Engine, own: OwnConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {}
    connect, begun, go = engine.dialect.connect, threading.Event(), threading.Event()

    def wait(*args: t.Any, **params: t.Any) -> t.Any:
        seen[threading.current_thread().name] = set(params)
        if threading.current_thread().name == "own":
            begun.set()
            assert go.wait(20)
        return connect(*args, **params)

    monkeypatch.setattr(engine.dialect, "connect", wait)

    def open_and_close() -> None:
        own.open()
        own.close()

    thread = threading.Thread(target=open_and_close, name="own")
    thread.start()
    assert begun.wait(20)
    engine.raw_connection().close()
    go.set()
    thread.join(20)
    assert seen["own"] >= seen[threading.current_thread().name]
    if engine.dialect.name != "sqlite":
        assert "connect_timeout" not in seen[threading.current_thread().name]


def test_what_watches_the_connections_of_a_worker_leaves_their_bounds(mariadb_url: str) -> None:
    engine = sa.create_engine(mariadb_url)
    watch_connections(engine)
    own = OwnConnections(engine)
    connection: t.Any = own.open().driver_connection
    assert connection._read_timeout == SERVER_SECONDS
    own.close()
    engine.dispose()


def test_a_refused_commit_leaves_no_lock_behind(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    reader, writer = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM effects").fetchall()  # so that nobody may commit
    engine = sa.create_engine(sqlite_url)
    own = OwnConnections(engine)
    bounds = {"statement": 0.1, "until": time.monotonic() + 20}
    with (
        pytest.raises(sa.exc.OperationalError, match="locked"),
        own.transaction(**bounds) as connection,
    ):
        connection.exec_driver_sql("INSERT INTO effects (step, note) VALUES ('', '')")
    reader.execute("ROLLBACK")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("ROLLBACK")
    assert writer.execute("SELECT * FROM effects").fetchall() == []
    own.close()
    engine.dispose()
    reader.close()
    writer.close()
