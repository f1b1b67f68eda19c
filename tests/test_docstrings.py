"""Every public name says what it is, its arguments, what it gives, and since when."""

from __future__ import annotations

import inspect
import typing as t

import pytest

import flask_sequence
from flask_sequence import config, sequence
from flask_sequence.broker import embedded
from flask_sequence.testing import draining

MORE = (embedded.embedded_config, config.Settings, sequence.PreparedSequence, draining.drain)
NOTHING = ("None", "t.NoReturn", inspect.Signature.empty)


def _public() -> t.Iterator[tuple[str, t.Any]]:
    named = [getattr(flask_sequence, name) for name in flask_sequence.__all__]
    for value in (*named, *MORE):
        yield value.__name__, value
        for name, member in vars(value).items() if inspect.isclass(value) else ():
            if not name.startswith("_"):
                function = getattr(member, "__func__", member)
                if inspect.isfunction(function) or isinstance(function, property):
                    yield f"{value.__name__}.{name}", function


PUBLIC = dict(_public())


@pytest.mark.parametrize("name", PUBLIC)
def test_it_is_documented(name: str) -> None:
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    assert text, "has no docstring"
    if isinstance(value, property):
        return
    assert ".. versionadded:: " in text
    own = value if inspect.isfunction(value) else vars(value).get("__init__")
    if not inspect.isfunction(own) or own.__qualname__.startswith("__create_fn__"):
        return
    signature = inspect.signature(own)
    documented_fields = value is config.Settings or hasattr(value, "__table__")
    for parameter in signature.parameters:
        if parameter not in ("self", "cls") and not documented_fields:
            assert f":param {parameter}:" in text
    if inspect.isfunction(value) and signature.return_annotation not in NOTHING:
        assert ":return:" in text
