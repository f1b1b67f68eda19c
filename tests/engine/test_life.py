"""A short life of an installation: what it asks of its database, and what it leaves there."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy.pool import NullPool

from flask_sequence.engine import control
from tests.conftest import create_tables
from tests.support import services
from tests.support.application import db
from tests.support.living import live
from tests.support.starts import TwoSteps
from tests.support.stepping import recorded

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

MakeApp = t.Callable[..., "Flask"]

HOUR = 3600
RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
TABLES = ("sequence_runs", "sequence_step_runs", "sequence_workers", "effects")
LEFT = """
SELECT 'set ' || name FROM pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction_%'
UNION ALL SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
UNION ALL SELECT 'channel ' || name FROM pg_listening_channels() AS name
UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relpersistence = 't'
"""


def changing(url: str) -> t.Callable[[sa.Executable], object]:
    """Give what changes rows on a connection of its own."""
    engine = sa.create_engine(url, poolclass=NullPool)

    def change(statement: sa.Executable) -> None:
        with engine.begin() as connection:
            connection.execute(statement)

    return change


def administer(url: str, *statements: str) -> None:
    """Send statements that no transaction may hold."""
    engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_runs_are_written_and_read_on_the_primary(
    make_app: MakeApp, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a session sends each read to a replica, which has nothing of what was written yet."""
    binds = {"replica": f"sqlite:///{tmp_path / 'replica.sqlite'}"}
    create_tables(binds["replica"])
    app = make_app(database_url, SQLALCHEMY_BINDS=binds, SEQUENCE_RETENTION=HOUR)
    real = FlaskSession.get_bind

    def route(
        self: FlaskSession, mapper: t.Any = None, clause: t.Any = None, **options: t.Any
    ) -> t.Any:
        if isinstance(clause, sa.Select) and not self._flushing:
            return db.engines["replica"]
        return real(self, mapper, clause, **options)

    monkeypatch.setattr(FlaskSession, "get_bind", route)
    with app.app_context():
        replica: list[str] = []
        sa.event.listen(
            db.engines["replica"], "before_cursor_execute", lambda *sent: replica.append(sent[2])
        )
        assert db.session.scalar(sa.select(sa.literal(1))) == 1
    with recorded(app) as primary:
        live(app, changing(database_url))
    with app.app_context():
        run = TwoSteps.start()
        db.session.commit()
        assert control.find_run(control.id_of(run)).sequence == "TwoSteps"
    assert replica.pop(0).startswith("SELECT")
    assert replica == []
    assert [statement for statement in primary if "sequence_runs" in statement] != []


GRANTS = {
    "postgresql": (
        "CREATE ROLE {name} LOGIN PASSWORD '{name}'",
        "REVOKE ALL ON DATABASE {name} FROM PUBLIC",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        "GRANT CONNECT ON DATABASE {name} TO {name}",
        "GRANT USAGE ON SCHEMA public TO {name}",
        "GRANT USAGE ON SEQUENCE sequence_runs_id_seq, sequence_step_runs_id_seq TO {name}",
        "GRANT USAGE ON SEQUENCE effects_id_seq TO {name}",
        *(f"GRANT {RIGHTS} ON {table} TO {{name}}" for table in TABLES),
    ),
    "mariadb": (
        "CREATE USER {name} IDENTIFIED BY '{name}'",
        *(f"GRANT {RIGHTS} ON {table} TO {{name}}" for table in TABLES),
    ),
}
"""What gives a user of the database's own name the rights that the page on security names."""


@pytest.fixture(params=GRANTS)
def role_url(request: pytest.FixtureRequest) -> t.Iterator[str]:
    """The address of a database for somebody who has no more rights there than are needed."""
    kind = str(request.param)
    server = services.POSTGRESQL if kind == "postgresql" else services.MARIADB
    services.require(server)
    url = services.create_database(server)
    create_tables(url)
    name = str(sa.make_url(url).database)
    administer(url, *(grant.format(name=name) for grant in GRANTS[kind]))
    role = sa.make_url(url).set(username=name, password=name)
    yield role.render_as_string(hide_password=False)
    services.drop_database(server, url)
    administer(server, f"DROP {'ROLE' if kind == 'postgresql' else 'USER'} {name}")


def test_four_rights_on_the_tables_are_enough(make_app: MakeApp, role_url: str) -> None:
    live(make_app(role_url, SEQUENCE_RETENTION=HOUR), changing(role_url))
    with pytest.raises(sa.exc.DBAPIError, match="denied"):
        administer(role_url, "CREATE TABLE more (id INT)")


def test_nothing_is_left_on_a_connection_to_postgresql(
    make_app: MakeApp, postgresql_url: str
) -> None:
    """A pooler gives it to somebody else after each transaction."""
    app = make_app(postgresql_url, SEQUENCE_RETENTION=HOUR)
    left: list[str] = []
    looked = []

    def look(driver: t.Any, record: t.Any) -> None:
        with driver.cursor() as cursor:
            cursor.execute(LEFT)
            left.extend(row[0] for row in cursor.fetchall())
        driver.rollback()
        looked.append(record)

    with app.app_context():
        sa.event.listen(db.engine, "checkin", look)
    live(app, changing(postgresql_url))
    assert left == []
    assert len(looked) > 10
