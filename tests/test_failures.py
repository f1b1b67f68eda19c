"""What is kept of an exception: text on one line, and a traceback, whatever the exception does."""

from __future__ import annotations

import typing as t

import pytest

from flask_sequence.failures import MAX_LINE, MAX_TRACEBACK, long_text, one_line, sanitise, sentence


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
    def fail(error: BaseException) -> list[str]:
        raise RecursionError

    monkeypatch.setattr("traceback.format_exception", fail)
    assert long_text(ValueError("x")) == "ValueError: x\n(its traceback cannot be formatted)"


def test_sanitise_leaves_what_is_harmless() -> None:
    assert sanitise("a\n\tb\xa0c") == "a\n\tb\xa0c"
    assert sanitise("a\rb") == "a\\rb"
