"""Which statements end a transaction."""

from __future__ import annotations

import pytest

from flask_sequence.rows.endings import MOST_KEPT, ending_in

EVERYWHERE = {
    "COMMIT": "COMMIT",
    " commit work": "COMMIT",
    "Rollback WORK": "ROLLBACK",
    "ROLLBACK\nTO": None,
    "rollback to savepoint a": None,
    "/* now */ COMMIT": "COMMIT",
    "/* a /* b */ c */ COMMIT": "COMMIT",
    "-- now\nEND": "END",
    ";COMMIT": "COMMIT",
    "SELECT 1; -- then\n COMMIT": "COMMIT",
    "INSERT INTO a VALUES (';COMMIT')": None,
    "INSERT INTO a VALUES ('it''s'); COMMIT": "COMMIT",
    'SELECT ";COMMIT" FROM a': None,
    "SELECT CASE WHEN a THEN 1 END FROM b": None,
    "SELECT commit FROM b": None,
    "COMMITTED": None,
    "PREPARE  TRANSACTION 'a'": "PREPARE TRANSACTION",
    "PREPARE a AS SELECT 1": None,
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END": None,
}
MARIADB = {
    "# now\nCOMMIT": "COMMIT",
    "/*!COMMIT*/": "COMMIT",
    "/*M!100100 COMMIT */": "COMMIT",
    "BEGIN": "BEGIN",
    "START TRANSACTION": "START TRANSACTION",
    "BEGIN NOT ATOMIC COMMIT; END": "BEGIN",
    "SET @a = 1, SESSION autocommit = 1": "SET @A = 1, SESSION AUTOCOMMIT",
    "SET @@autocommit=1": "SET @@AUTOCOMMIT",
    "SET @a = 1,\n autocommit = 1": "SET @A = 1, AUTOCOMMIT",
    "SET `autocommit` = 1": "SET `AUTOCOMMIT",
    "SET @a = 'autocommit = 1'": None,
    "SET @autocommit = 1": None,
    "SET no_autocommit = 1": None,
    "ALTER TABLE a ADD b int": "ALTER",
    "CREATE TABLE a (b int)": "CREATE",
    "CREATE TEMPORARY TABLE a (b int)": None,
    "CREATE OR REPLACE TEMPORARY TABLE a (b int)": None,
    "DROP TEMPORARY TABLE a": None,
    "DROP TABLE a": "DROP",
    "TRUNCATE a": "TRUNCATE",
    "LOCK TABLES a WRITE": "LOCK TABLES",
    "UNLOCK TABLES": "UNLOCK TABLES",
    "ANALYZE TABLE a": "ANALYZE TABLE",
    "ANALYZE SELECT 1": None,
    "INSERT INTO a VALUES ('\\'; COMMIT')": None,
    "SELECT created_at, `drop` FROM a": None,
}
POSTGRESQL = {
    "BEGIN": None,  # a warning
    "CREATE TABLE a (b int)": None,
    "SELECT 1 # 2; COMMIT": "COMMIT",
    "SELECT 1 AS a$b$; COMMIT; --$b$": "COMMIT",
    "SELECT E'a\\'; COMMIT; --'": None,
    "DO $x$ BEGIN PERFORM 1; END $x$": None,
}


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
@pytest.mark.parametrize(("text", "ending"), EVERYWHERE.items())
def test_what_ends_a_transaction_everywhere(dialect: str, text: str, ending: str | None) -> None:
    if dialect in {"mysql", "mariadb"} and text.startswith("CREATE"):
        ending = "CREATE"
    assert ending_in(dialect, text) == ending


@pytest.mark.parametrize(("text", "ending"), MARIADB.items())
def test_what_mariadb_commits_by_itself(text: str, ending: str | None) -> None:
    assert ending_in("mysql", text) == ending


@pytest.mark.parametrize(("text", "ending"), POSTGRESQL.items())
def test_what_postgresql_does_not(text: str, ending: str | None) -> None:
    assert ending_in("postgresql", text) == ending


def test_a_text_that_is_too_long_to_be_kept() -> None:
    text = "SELECT '" + "x" * MOST_KEPT + "'; COMMIT"
    assert ending_in("postgresql", text) == "COMMIT"
