"""The types of the columns are ours, whichever release of SQLAlchemy makes the tables."""

from __future__ import annotations

import typing as t
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from flask_sequence import SequenceRun
from flask_sequence.rows.models import MODELS
from tests.support.application import db
from tests.support.starts import TwoSteps

DIALECTS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "mariadb": "mariadb+pymysql",
    "mysql": "mysql+pymysql",
}
TEXTS = Path(__file__).parent / "tables"
"""The statements that make the tables, for each kind of database; a text is changed by hand."""


def dialect(kind: str) -> sa.Dialect:
    made: sa.Dialect = sa.make_url(f"{DIALECTS[kind]}://").get_dialect()()
    return made


@pytest.mark.parametrize("kind", DIALECTS)
def test_the_tables_are_made_as_they_were(kind: str) -> None:
    statements: list[str] = []
    for model in MODELS:
        table = t.cast(sa.Table, model.__table__)
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        elements: list[t.Any] = [CreateTable(table), *map(CreateIndex, indexes)]
        for element in elements:
            lines = str(element.compile(dialect=dialect(kind))).strip().splitlines()
            statements.append("\n".join(line.rstrip().replace("\t", "    ") for line in lines))
    text = TEXTS / ("mariadb.sql" if kind == "mysql" else f"{kind}.sql")
    assert ";\n\n".join(statements) + ";\n" == text.read_text("utf-8")


@pytest.mark.parametrize("kind", DIALECTS)
def test_no_type_is_chosen_by_sqlalchemy(kind: str) -> None:
    """A type in upper case names what is stored; any other one leaves that to the dialect."""
    for model in MODELS:
        for column in t.cast(sa.Table, model.__table__).c:
            chosen = column.type._variant_mapping.get(kind, column.type)
            stored = chosen.impl if isinstance(chosen, sa.types.TypeDecorator) else chosen
            assert type(stored).__name__.isupper(), column


def test_a_uid_is_asked_for_by_value_and_by_text(app: t.Any) -> None:
    with app.app_context():
        run = TwoSteps.start()
        db.session.commit()
        assert type(run.uid) is uuid.UUID
        for asked in (run.uid, str(run.uid), run.uid.hex):
            found = sa.select(SequenceRun.id).where(SequenceRun.uid == t.cast(t.Any, asked))
            assert db.session.scalars(found).all() == [run.id]
        db.session.rollback()
