"""The layout of the package: who may import whom, and where statements may stand."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flask_sequence"

FLOORS = (
    ("errors", "status", "masking"),
    ("failures",),
    ("config",),
    ("definition",),
    ("runtime",),
    ("rows",),
    ("broker",),
    ("engine",),
    ("worker",),
    ("sequence",),
    ("testing",),
    ("cli",),
    ("extension",),
    ("__init__",),
)
"""The rooms and the modules beside them, from the ground up: data goes downwards, imports too."""

ROOMS = {
    "definition": "callables habits retry options data steps functions sources registry",
    "rows": "driver_errors columns liveness dialects own_connections locks models readonly"
    " endings listeners claims reads prepared statements inserts moves upkeep migration",
    "broker": "bounded folders transport garbage embedded share line problems publisher",
    "engine": "known_steps own_errors processes contexts connections consumers waiting transaction"
    " starting fence doors commits in_hand control attempt forks patience claiming body failing"
    " runner retention",
    "worker": "children forking task repeats post duties.duty duties.batches duties.lease"
    " duties.recovery duties.publishing duties.unknown duties.queues duties.code"
    " duties.purge duties.shutdown duties keeper introduction signals",
    "testing": "draining",
    "cli": "text group migration worker runs",
}
"""The modules of each room: one imports only those of its room that stand before it.

A folder in a room is named after its modules.
"""

USERS = {
    "alembic": {"rows.migration"},
    "asgiref": {"definition.steps"},
    "billiard": {"worker"},
    "celery": {"definition.retry", "broker", "worker"},
    "click": {"cli"},
    "flask": {"broker", "cli", "engine", "extension", "rows.migration", "runtime", "testing"}
    | {"worker"},
    "flask_migrate": {"rows.migration"},
    "flask_sqlalchemy": {"extension"},
    "kombu": {"broker"},
    "sqlalchemy": {"rows", "engine"},
    "typing_extensions": {"definition.steps"},
}
"""Which rooms or modules may import which package, when they run."""

STATEMENTS = {"delete", "insert", "select", "text", "update"}


def module_name(path: Path) -> str:
    """Name a module by its path in the package; a room by its own name."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


TREES = {module_name(path): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}

DefinitionT = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DocumentT = ast.Module | DefinitionT


class Import(t.NamedTuple):
    """One imported module, as far as the layout cares."""

    package: str
    """The package; empty for a module of our own."""
    names: tuple[str, ...]
    """What is imported from it."""
    level: int
    """How many dots stand before it."""
    path: str
    """The module, after the dots."""
    is_typing: bool
    """Whether only a type checker imports it."""
    is_hidden: bool
    """Whether it stands in a function."""


def imports_of(node: ast.AST, *, typing: bool = False, hidden: bool = False) -> list[Import]:
    """Give every import in a module."""
    found: list[Import] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
            found += [Import(name.split(".")[0], (), 0, name, typing, hidden) for name in names]
        elif isinstance(child, ast.ImportFrom):
            imported, path = tuple(alias.name for alias in child.names), child.module or ""
            package = "" if child.level else path.split(".")[0]
            found.append(Import(package, imported, child.level, path, typing, hidden))
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


def room_of(module: str) -> str:
    """Give the room of a module; one that stands in none is a room of its own."""
    return module.partition(".")[0]


def floor_of(module: str) -> int:
    """Count the floor on which the room of a module stands."""
    return next(number for number, rooms in enumerate(FLOORS) if room_of(module) in rooms)


def own_imports(module: str) -> set[str]:
    """Give the modules of the package that a module imports."""
    here = module.split(".")
    if not (PACKAGE / Path(*here) / "__init__.py").exists():
        here.pop()
    found = set()
    for item in imports_of(TREES[module]):
        if item.package or item.is_typing:
            continue
        base = [*here[: len(here) + 1 - item.level], *filter(None, item.path.split("."))]
        for name in item.names:
            candidates = (".".join([*base, name]), ".".join(base))
            found |= {next(name for name in candidates if name in TREES)}
    return found


def test_every_module_stands_in_the_layout() -> None:
    inside = {f"{room}.{name}" for room, names in ROOMS.items() for name in names.split()}
    assert set(TREES) == inside | {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("module", TREES)
def test_a_room_imports_none_that_stands_above_it(module: str) -> None:
    others = {name for name in own_imports(module) if room_of(name) != room_of(module)}
    assert [name for name in sorted(others) if floor_of(name) >= floor_of(module)] == []


@pytest.mark.parametrize("module", [name for name in TREES if "." in name])
def test_a_module_imports_those_of_its_room_that_stand_before_it(module: str) -> None:
    room, _, name = module.partition(".")
    order = ROOMS[room].split()
    mine = {other for other in own_imports(module) if room_of(other) == room and other != room}
    before = order[: order.index(name)]
    assert [other for other in sorted(mine) if other.partition(".")[2] not in before] == []


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_it_is_for(room: str) -> None:
    told = (ast.get_docstring(TREES[room]) or "").splitlines()
    assert 1 <= len(told) <= 4


@pytest.mark.parametrize("module", TREES)
def test_a_package_is_imported_only_where_it_belongs(module: str) -> None:
    packages = {i.package for i in imports_of(TREES[module]) if i.package and not i.is_typing}
    foreign = packages - sys.stdlib_module_names
    places = {module, room_of(module)}
    assert [name for name in sorted(foreign) if not places & USERS.get(name, set())] == []


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


@pytest.mark.parametrize("module", [name for name in TREES if room_of(name) != "rows"])
def test_statements_stand_in_one_room(module: str) -> None:
    assert statements_in(module) == []


def test_a_read_changes_nothing() -> None:
    assert statements_in("rows.reads", STATEMENTS - {"select"}) == []


def test_one_module_says_how_rows_are_locked() -> None:
    locking = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "with_for_update"
    }
    assert locking == {"rows.locks"}


def sets_status(module: str) -> bool:
    """Tell whether a statement in a module gives a status to a row."""
    calls = (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call))
    values = (call for call in calls if ast.unparse(call.func).endswith(".values"))
    return any(keyword.arg == "status" for call in values for keyword in call.keywords)


LASTING = re.compile(
    r"\b(LISTEN|UNLISTEN|NOTIFY|TEMP|TEMPORARY|DISCARD)\b|advisory|get_lock|SET SESSION"
    r"|(^|;)\s*SET (?!LOCAL|CONSTRAINTS)|set_config\((?!.*, true\))"
)
"""What leaves something on a connection, which a pooler gives to somebody else."""


def texts_in(module: str) -> list[str]:
    """Give the texts in a module but its docstrings; what is put into one stands as ``?``."""
    nodes = list(ast.walk(TREES[module]))
    made = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    left_out = {id(part) for node in made for part in node.values}
    left_out |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values)
        for node in made
    ]
    plain = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in left_out)
    return texts + [node.value for node in plain if isinstance(node.value, str)]


def test_no_statement_leaves_anything_on_a_connection_to_postgresql() -> None:
    found = {module: list(filter(LASTING.search, texts_in(module))) for module in TREES}
    del found["rows.endings"]  # it looks for such statements in what a step sends
    assert {module: texts for module, texts in found.items() if texts} == {
        "rows.locks": [  # on MariaDB, until the end of a verb
            "SET SESSION innodb_lock_wait_timeout = ?, SESSION lock_wait_timeout = ?"
        ],
        "rows.own_connections": ["SET SESSION ?, ?"],  # on MariaDB, on a keeper's own connection
    }


def test_every_move_of_a_run_stands_in_one_module() -> None:
    assert [module for module in TREES if sets_status(module)] == ["rows.moves"]


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
