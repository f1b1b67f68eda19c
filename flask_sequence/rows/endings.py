"""Which statements end a transaction, told by their text."""

from __future__ import annotations

import functools
import re
import typing as t

from .columns import MYSQL

_ENDS = r"COMMIT|END|ABORT|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b)"
_BEGINS = r"BEGIN|START\s+TRANSACTION|SET\b.*?(?:(?<=@@)|(?<![@\w]))`?autocommit(?=[`\s]*:?=)"
_DEFINES = (
    r"ALTER|CREATE(?!\s+(?:OR\s+REPLACE\s+)?TEMPORARY)|DROP(?!\s+(?:TEMPORARY|PREPARE))|RENAME"
    r"|TRUNCATE|GRANT|REVOKE|UN?LOCK\s+TABLES?|LOCK\s+TABLES?|(?:UN)?INSTALL|FLUSH|RESET"
    r"|(?:ANALYZE|CHECK|OPTIMIZE|REPAIR)\s+(?:\w+\s+)?TABLES?|CACHE\s+INDEX|LOAD\s+INDEX"
)
"""Of MariaDB and MySQL, which commit before such a statement, and after it."""

_PLAIN = re.compile(rf"(?:{_ENDS})\b", re.IGNORECASE | re.DOTALL)
_IMPLICIT = re.compile(rf"(?:{_ENDS}|{_BEGINS}|{_DEFINES})\b", re.IGNORECASE | re.DOTALL)
_HAS_BODY = re.compile(
    r"CREATE\b[^;]*?\b(?:FUNCTION|PROCEDURE|TRIGGER|EVENT)\b", re.IGNORECASE | re.DOTALL
)
"""What has statements inside, which are not executed now."""

_QUOTED = re.compile(
    r"(?<![\w$])\$(\w*)\$.*?\$\1\$|\b[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"",
    re.DOTALL,
)
_QUOTED_MYSQL = re.compile(r"'(?:[^'\\]|''|\\.)*'|\"(?:[^\"\\]|\"\"|\\.)*\"", re.DOTALL)
_EXECUTED_COMMENT = re.compile(r"/\*M?!\d*")
_INNERMOST_COMMENT = re.compile(r"/\*(?:(?!/\*|\*/).)*\*/", re.DOTALL)
_REST_OF_LINE = re.compile(r"--[^\n]*")
_REST_OF_LINE_MYSQL = re.compile(r"(?:--\s|#)[^\n]*")


MOST_KEPT = 10_000
"""Characters of a text of which the answer is kept: what SQLAlchemy compiles is shorter."""


def ending_in(dialect: str, text: str) -> str | None:
    """Return the words by which a text ends the transaction in which it is sent, if it does.

    :param dialect: SQLAlchemy's name of the database.
    :param text: One statement, or several.
    """
    return _ending_in(dialect, text) if len(text) <= MOST_KEPT else _look_for(dialect, text)


def _look_for(dialect: str, text: str) -> str | None:
    is_mysql = dialect in MYSQL
    ends = _IMPLICIT if is_mysql else _PLAIN
    if not ends.search(text):
        return None
    for statement in _without_quotes_and_comments(text, is_mysql=is_mysql).split(";"):
        statement = statement.strip()
        if found := ends.match(statement):
            return " ".join(found[0].upper().split())
        if _HAS_BODY.match(statement):
            return None
    return None


_ending_in = functools.lru_cache(maxsize=512)(_look_for)


def _without_quotes_and_comments(text: str, *, is_mysql: bool) -> str:
    quoted, rest_of_line = _QUOTED, _REST_OF_LINE
    if is_mysql:
        quoted, rest_of_line = _QUOTED_MYSQL, _REST_OF_LINE_MYSQL
        text = _EXECUTED_COMMENT.sub(" ", text)
    for pattern in (quoted, rest_of_line, _INNERMOST_COMMENT):
        before: t.Any = None
        while before != text:
            before, text = text, pattern.sub(" ", text)
    return text.replace("*/", " ")
