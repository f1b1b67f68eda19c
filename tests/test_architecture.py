"""The layout of the package: who may import whom, and where statements may stand."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flask_sequence"

MODULES = """
    errors status config retry data options callables steps functions definition failures columns
    database database_errors runtime models readonly claims queries statements store upkeep sessions
    transaction fence control sequence attempt runner sweep folders transport broker publisher
    repeats tasks share children keeper worker migration cli extension testing __init__
"""
LAYOUT = MODULES.split()
"""A module imports only what stands before it."""

USERS = {
    "alembic": {"migration"},
    "asgiref": {"steps"},
    "celery": {"broker", "children", "publisher", "repeats", "retry", "share", "tasks"}
    | {"worker"},
    "click": {"cli"},
    "flask": {"broker", "cli", "extension", "fence", "migration", "runtime", "sessions", "tasks"}
    | {"testing"},
    "flask_migrate": {"migration"},
    "flask_sqlalchemy": {"extension"},
    "kombu": {"folders", "publisher", "transport"},
    "sqlalchemy": {
        "claims",
        "columns",
        "database",
        "database_errors",
        "fence",
        "migration",
        "models",
        "queries",
    }
    | {"readonly", "sessions", "statements", "store", "transaction", "upkeep"},
    "typing_extensions": {"steps"},
}
"""Which modules may import which package, when they run."""

STATEMENTS = {"delete", "insert", "select", "text", "update"}
STORES = {"database", "queries", "statements", "store", "upkeep"}
"""Where statements stand: reads, moves, deletions; in ``database`` what tells databases apart."""

TREES = {path.stem: ast.parse(path.read_text("utf-8")) for path in PACKAGE.glob("*.py")}

DefinitionT = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DocumentT = ast.Module | DefinitionT


class Import(t.NamedTuple):
    """One imported module, as far as the layout cares."""

    package: str
    """The package; empty for a module of our own."""
    names: tuple[str, ...]
    """What is imported from it; of our own package, the modules."""
    is_typing: bool
    """Whether only a type checker imports it."""
    is_hidden: bool
    """Whether it stands in a function."""


def imports_of(node: ast.AST, *, typing: bool = False, hidden: bool = False) -> list[Import]:
    """Give every import in a module."""
    found: list[Import] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [Import(a.name.split(".")[0], (), typing, hidden) for a in child.names]
        elif isinstance(child, ast.ImportFrom):
            names = tuple(alias.name for alias in child.names)
            if child.level and child.module:
                names = (child.module,)
            package = "" if child.level else (child.module or "").split(".")[0]
            found.append(Import(package, names, typing, hidden))
        is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        is_hidden = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        found += imports_of(child, typing=typing or is_typing, hidden=hidden or is_hidden)
    return found


def public_things(node: ast.Module | ast.ClassDef, name: str) -> t.Iterator[tuple[str, DocumentT]]:
    """Give every public class, function and method, and the module itself."""
    yield name, node
    for child in node.body:
        if not isinstance(child, DefinitionT) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from public_things(child, f"{name}.{child.name}")
        elif "t.overload" not in map(ast.unparse, child.decorator_list):
            yield f"{name}.{child.name}", child


def test_every_module_stands_in_the_layout() -> None:
    assert sorted(TREES) == sorted(LAYOUT)


@pytest.mark.parametrize("module", TREES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    above = LAYOUT[: LAYOUT.index(module)]
    own = [name for item in imports_of(TREES[module]) if not item.package for name in item.names]
    assert [name for name in own if name not in above] == []


@pytest.mark.parametrize("module", TREES)
def test_a_package_is_imported_only_where_it_belongs(module: str) -> None:
    packages = {i.package for i in imports_of(TREES[module]) if i.package and not i.is_typing}
    foreign = packages - sys.stdlib_module_names
    assert [name for name in sorted(foreign) if module not in USERS.get(name, ())] == []


@pytest.mark.parametrize("module", TREES)
def test_only_an_optional_dependency_is_imported_in_a_function(module: str) -> None:
    hidden = [item for item in imports_of(TREES[module]) if item.is_hidden]
    assert [item for item in hidden if item.package != "asgiref"] == []


def statements_in(module: str, kinds: t.Collection[str] = STATEMENTS) -> list[str]:
    """Give the statements in a module, and what sends plain SQL."""
    found = []
    for item in imports_of(TREES[module]):
        found += [name for name in item.names if name in kinds and item.package]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target, name = ast.unparse(node.func.value), node.func.attr
            if (target in {"sa", "sqlalchemy"} and name in kinds) or "driver_sql" in name:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("module", sorted(set(TREES) - STORES))
def test_statements_stand_in_few_modules(module: str) -> None:
    # A partial index says in SQL which rows it holds; it is part of the table.
    partial = ("status = ", "IS NOT NULL") if module == "models" else ()
    found = statements_in(module)
    assert [text for text in found if not any(word in text for word in partial)] == []


def test_a_query_changes_nothing() -> None:
    assert statements_in("queries", STATEMENTS - {"select"}) == []


def sets_status(module: str) -> bool:
    """Tell whether a statement in a module gives a status to a row."""
    calls = (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call))
    values = (call for call in calls if ast.unparse(call.func).endswith(".values"))
    return any(keyword.arg == "status" for call in values for keyword in call.keywords)


def test_every_move_of_a_run_stands_in_the_store() -> None:
    assert [module for module in TREES if sets_status(module)] == ["store"]


@pytest.mark.parametrize("module", TREES)
def test_every_public_thing_has_a_docstring(module: str) -> None:
    things = public_things(TREES[module], module)
    assert [name for name, node in things if not ast.get_docstring(node)] == []


def test_the_lower_bounds_are_the_releases_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    tested, _ = (ROOT / "tests" / "lowest.txt").read_text("utf-8").split("\n\n")
    assert {re.sub(r"\[.*\]", "", text).replace(">=", "==") for text in required} == {
        line for line in tested.splitlines() if not line.startswith("#")
    }
