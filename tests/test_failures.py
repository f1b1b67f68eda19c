"""What is kept of an exception: text on one line, and a traceback, whatever the exception does."""

from __future__ import annotations

import itertools
import traceback
import typing as t

import pytest

from flask_sequence.failures import (
    MAX_BYTES,
    MAX_LINE,
    MAX_TRACEBACK,
    Failure,
    failure_of,
    long_text,
    one_line,
    sanitise,
    sentence,
)


class Hostile(Exception):  # noqa: N818
    """Raises, or gives nonsense, when it is asked for its text."""

    def __init__(self, answer: t.Any) -> None:
        super().__init__()
        self.answer = answer

    def __str__(self) -> str:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return t.cast(str, self.answer)


class Text(str):
    """A text whose own methods fail."""

    def __format__(self, spec: str) -> str:
        raise ValueError(spec)

    split = strip = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(), "ValueError"),
        (ValueError("a  b\tc\r\nd\u2028e\x85f"), "ValueError: a b c d e f"),
        (ValueError("\x00\x07\x7f\u200b\u202e"), "ValueError: \\x00\\x07\\x7f\\u200b\\u202e"),
        (ValueError("\ud83d x"), "ValueError: \\ud83d x"),
        (ValueError("né\u3000日本 🙈"), "ValueError: né 日本 🙈"),
        (Hostile(ValueError()), "Hostile: (its message cannot be read)"),
        (Hostile(KeyboardInterrupt()), "Hostile: (its message cannot be read)"),
        (Hostile(7), "Hostile: (its message cannot be read)"),
        (Hostile(Text("odd")), "Hostile: odd"),
        (type("Odd\nName", (Exception,), {})("x"), "Odd Name: x"),
    ],
)
def test_one_line(error: BaseException, line: str) -> None:
    assert one_line(error) == line
    assert "Error" in long_text(error) or type(error).__name__.split()[0] in long_text(error)


def test_a_long_line_is_cut() -> None:
    assert len(one_line(ValueError("x" * MAX_LINE * 3))) == MAX_LINE
    assert len(one_line(ValueError("\x00" * MAX_LINE))) == MAX_LINE
    assert sentence("y" * MAX_LINE) == "y" * MAX_LINE
    assert sentence("y" * (MAX_LINE + 1)).endswith("y…")


def test_the_end_of_a_long_traceback_is_kept() -> None:
    text = long_text(ValueError("x" * MAX_TRACEBACK + "the end"))
    assert len(text) == MAX_TRACEBACK
    assert text.startswith("…x")
    assert text.endswith("the end\n")
    assert len(long_text(ValueError("\x00" * MAX_TRACEBACK))) == MAX_TRACEBACK


def test_a_traceback_names_the_causes() -> None:
    def fail() -> None:
        try:
            raise KeyError("cause\x1b[0m")
        except KeyError as error:
            raise ValueError("effect\r") from error

    with pytest.raises(ValueError, match="effect") as caught:
        fail()
    text = long_text(caught.value)
    assert "KeyError: 'cause\\x1b[0m'" in text
    assert text.endswith("ValueError: effect\\x0d\n") or text.endswith("ValueError: effect\\r\n")
    assert "in fail\n" in text


def test_a_traceback_that_cannot_be_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(frames: object) -> list[str]:
        raise RecursionError

    monkeypatch.setattr("traceback.format_tb", fail)
    error = raised(ValueError("x hush"))
    told = "ValueError: x ***\n(its traceback cannot be formatted)"
    assert long_text(error, ("hush",)) == told


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def chained(*errors: BaseException) -> t.Any:
    """Give the last of some exceptions, each of which is the cause of the next one."""
    for cause, error in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


class NotedError(ValueError):
    pass


def suppressed() -> BaseException:
    error = ValueError("effect")
    error.__context__, error.__suppress_context__ = KeyError("context"), True
    return error


def noted() -> BaseException:
    error = NotedError("x")
    error.add_note("first\nsecond")
    return error


def syntax() -> BaseException:
    try:
        compile("1 +", "<text>", "exec")
    except SyntaxError as error:
        return error.with_traceback(None)
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [
        raised(ValueError("x")),
        ValueError(),
        raised(noted()),
        raised(suppressed()),
        syntax(),
        raised(chained(KeyError("a"), raised(OSError("b")), ValueError("c"))),
    ],
    ids=repr,
)
def test_a_traceback_is_told_as_python_does(error: BaseException) -> None:
    assert long_text(error) == "".join(traceback.format_exception(error))


def test_a_chain_without_end() -> None:
    first, second = KeyError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert long_text(second).count("second") == 1
    many = chained(*(ValueError(f"number {number}") for number in range(5000)))
    assert long_text(many).endswith("ValueError: number 4999\n")
    assert long_text(many).count("number 4998") == 1


def test_the_members_of_a_group_are_told() -> None:
    inner = chained(KeyError("why"), raised(ValueError("inner hush")))
    group = raised(ExceptionGroup("outer", [ExceptionGroup("more", [inner])]))
    lines = long_text(group, ("hush",)).splitlines()
    assert "ExceptionGroup: outer (1 sub-exception)" in lines
    assert "  |   | ValueError: inner ***" in lines
    assert "  |   | KeyError: 'why'" in lines
    wide = ExceptionGroup("wide", [ValueError(number) for number in range(30)])
    assert long_text(wide).endswith("ValueError: 14\n  +---------------- and 15 more\n")
    deep: Exception = ValueError("bottom")
    for _ in range(100):
        deep = ExceptionGroup("deep", [deep])
    assert "deep (1 sub-exception)" in long_text(deep)


# Secrets


def test_secrets_are_masked_before_the_text_is_cut() -> None:
    secret = "hush" * 50
    for start in range(MAX_LINE - 300, MAX_LINE + 10, 7):
        error = ValueError("x" * start + secret)
        assert "hush" not in one_line(error, (secret,))
        assert "hush" not in sentence("x" * start + secret, (secret,))
    for start in range(MAX_TRACEBACK - 300, MAX_TRACEBACK + 10, 17):
        assert "hush" not in long_text(ValueError(secret + "x" * start), (secret,))


def test_secrets_are_masked_wherever_they_stand() -> None:
    cause = KeyError("hush-1")
    cause.add_note("hush-2")
    group = ExceptionGroup("hush-3", [chained(cause, ValueError("hush-4"))])
    failure = failure_of(group, ("hush-1", "hush-2", "hush-3", "hush-4"))
    assert "hush" not in f"{failure}"
    assert failure.error == "ExceptionGroup: *** (1 sub-exception)"


# An error of one of our own statements, as SQLAlchemy raises it


class DriverError(Exception):
    pass


class StatementError(Exception):
    """Shows its parameters."""

    def __init__(self, orig: BaseException, statement: str, params: object) -> None:
        super().__init__(f"({type(orig).__name__}) {orig} [{statement}] [{params}]")
        self.orig, self.statement, self.params = orig, statement, params
        self.__cause__ = orig


OURS = "UPDATE sequence_runs SET data = %s"
SENT = {"data": '{"a": "hush"}', "key": "order-17", "n": 3, "more": [("hush-too",)]}
TOLD = [
    (
        DriverError("null value in column\nDETAIL:  Failing row contains (3, hush)."),
        "(tests.test_failures.DriverError) null value in column",
    ),
    (
        DriverError({"S": "ERROR", "M": "null value", "D": "Failing row contains (hush)"}),
        "(tests.test_failures.DriverError) null value",
    ),
    (
        DriverError(1062, "Duplicate entry 'Shop-order-17' for key 'uq_sequence_runs_key'"),
        "(tests.test_failures.DriverError) (1062,"
        " \"Duplicate entry 'Shop-***' for key 'uq_sequence_runs_key'\")",
    ),
    (
        DriverError("Incorrect string value: '\\xF0\\x9F hush' for column `data` at row 1"),
        "(tests.test_failures.DriverError) Incorrect string value: '…' for column `data` at row 1",
    ),
    (
        DriverError("Unknown column 'sequence_runs.format' in 'field list'"),
        "(tests.test_failures.DriverError) Unknown column 'sequence_runs.format' in 'field list'",
    ),
]


@pytest.mark.parametrize(("orig", "told"), TOLD)
def test_our_own_statement_is_told_without_what_was_sent_with_it(
    orig: DriverError, told: str
) -> None:
    error = StatementError(orig, OURS, SENT)
    assert one_line(error) == f"StatementError: {told}"
    inner = told.partition(") ")[2]
    assert long_text(error).startswith(f"tests.test_failures.DriverError: {inner}\n")
    assert long_text(error).endswith(f"tests.test_failures.StatementError: {told}\n")


def nestings(error: StatementError) -> t.Iterator[BaseException]:
    yield error
    yield error.orig
    yield chained(error, ValueError("x"))
    yield chained(error.orig, ValueError("x"))
    yield chained(error, ExceptionGroup("x", [ValueError("y")]), KeyError("z"))
    yield ExceptionGroup("x", [chained(error, ValueError("y")), KeyError("z")])
    by_context = ValueError("x")
    by_context.__context__ = BaseExceptionGroup("y", [error])
    yield by_context
    # Whoever raises the driver's error from inside a handler of ours.
    bare = ValueError("x")
    bare.__cause__, bare.__context__ = error.orig, error
    yield bare


def test_however_it_is_nested() -> None:
    for orig, _ in TOLD:
        for number, nested in enumerate(nestings(StatementError(orig, OURS, SENT))):
            if nested is orig or (number == 3 and nested.__cause__ is orig):
                continue  # the driver's own error alone does not tell whose it is
            text = f"{failure_of(nested)}"
            assert "hush" not in text, number
            assert "order-17" not in text, number


def test_a_statement_of_the_users_is_told_as_it_is() -> None:
    error = StatementError(
        DriverError("x\nDETAIL: y"), "UPDATE orders SET name = %s", {"name": "Joel"}
    )
    assert "DETAIL: y" in one_line(error)
    assert "Joel" in one_line(error)
    assert "Joel" not in one_line(error, ("Joel",))


def test_what_looks_like_a_statement_and_fails_when_it_is_asked() -> None:
    class Odd(Exception):  # noqa: N818
        @property
        def orig(self) -> t.NoReturn:
            raise RuntimeError

    assert one_line(Odd("x")) == "Odd: x"
    for params in (None, 5, [{}], object()):
        assert one_line(StatementError(DriverError("x"), OURS, params)).endswith(") x")
    assert (
        one_line(StatementError(DriverError(), OURS, {}))
        == "StatementError: (tests.test_failures.DriverError) "[:-1]
    )


# What a connection can carry


@pytest.mark.parametrize(
    "text", ["x", "no 🎉", "zoë…", "\ud83d", "🎉" * MAX_LINE, "x" * MAX_LINE * 2]
)
def test_a_failure_can_be_told_in_ascii(text: str) -> None:
    failure = failure_of(raised(ValueError(text)))
    plain = failure.in_ascii()
    assert plain.traceback is not None
    assert (plain.error + plain.traceback).isascii()
    assert len(plain.error) <= MAX_LINE
    assert plain.error.startswith("ValueError: ")
    assert plain.traceback.startswith("Traceback")
    assert plain.in_ascii() == plain
    if text == "no 🎉":
        assert plain.error == "ValueError: no \\U0001f389"
        assert plain.traceback.endswith("ValueError: no \\U0001f389\n")


def test_a_failure_without_a_traceback_in_ascii() -> None:
    assert Failure("zoë").in_ascii() == Failure("zo\\xeb")


@pytest.mark.parametrize("character", ["x", "ë", "語", "🎉", "\x00"])
def test_a_failure_is_bounded_in_characters_and_in_bytes(character: str) -> None:
    failure = failure_of(ValueError(character * MAX_TRACEBACK * 2))
    for told in (failure, failure.in_ascii()):
        assert len(told.error) <= MAX_LINE
        assert told.traceback is not None
        assert len(told.traceback) <= MAX_TRACEBACK
        assert len(told.traceback.encode()) > MAX_BYTES - 2000
        assert len(told.traceback.encode()) <= MAX_BYTES
        assert told.traceback.startswith(("…", "..."))


def test_sanitise_leaves_what_is_harmless() -> None:
    assert sanitise("a\n\tb\xa0c") == "a\n\tb\xa0c"
    assert sanitise("a\rb") == "a\\rb"
