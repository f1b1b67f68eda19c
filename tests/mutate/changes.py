"""Every change of a module that ought to turn a test red, as a piece of text that replaces one."""

from __future__ import annotations

import ast
import collections
import copy
import functools
import typing as t

NUMBERS = (int, float)
OTHER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
DROPPED = {"values", "with_for_update", "dict"}
"""The calls that do without any of their keywords, and then mean something else."""


class Change(t.NamedTuple):
    """One change of one module."""

    path: str
    """Of the module, from the root of the repository."""
    where: str
    """The class and the function; empty: neither."""
    line: int
    kind: str
    number: int
    """Counts up those that read the same."""
    start: int
    """Where the old text begins, in bytes."""
    old: str
    new: str

    @property
    def name(self) -> str:
        """Name it, also in other states of the module."""
        number = f" ({self.number})" if self.number > 1 else ""
        where = f"{self.path}, {self.where or 'module'}"
        return f"{where}: {_line(self.old)} -> {_line(self.new)}{number}"

    def apply(self, source: str) -> str:
        """Make the change.

        :param source: The text of the module.
        """
        text, old = source.encode(), self.old.encode()
        assert text[self.start :].startswith(old)
        return (text[: self.start] + self.new.encode() + text[self.start + len(old) :]).decode()


def _line(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def changes_of(path: str, source: str) -> tuple[Change, ...]:
    """Find all changes of a module.

    :param path: Its path, from the root of the repository.
    :param source: Its text.
    """
    counted: collections.Counter[str] = collections.Counter()
    found = []
    for change in _Finder(path, source).found(ast.parse(source), "", None):
        counted[change.name] += 1
        found.append(change._replace(number=counted[change.name]))
    return tuple(found)


class _Finder:
    def __init__(self, path: str, source: str) -> None:
        self._path = path
        self._text = source.encode()
        starts = [0]
        for line in self._text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts = starts

    def found(self, node: ast.AST, where: str, returns: ast.expr | None) -> t.Iterator[Change]:
        """Find what can be changed in a node, and below it."""
        if isinstance(node, ast.Assert) or _is_for_types(node):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}".lstrip(".")
            returns = node.returns if isinstance(node, ast.FunctionDef) else None
        for kind, place, new in _changes(node, returns):
            start, end = self._span(place)
            old = self._text[start:end].decode()
            line = place.lineno
            yield Change(self._path, where, line, kind, 1, start, old, _text(new, old))
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list"}:
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self.found(child, where, returns)

    def _span(self, node: t.Any) -> tuple[int, int]:
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset


Found = t.Iterator[tuple[str, t.Any, ast.AST | str]]
"""A kind of change, the node whose text is replaced, and by what; ``{}`` is the old text."""


def _text(new: ast.AST | str, old: str) -> str:
    return new.replace("{}", old) if isinstance(new, str) else ast.unparse(new)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _changes(node: ast.AST, returns: ast.expr | None) -> Found:
    if isinstance(node, ast.Compare):
        yield from _other_comparisons(node)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", node, str(not node.value)
        elif isinstance(node.value, NUMBERS):
            yield "constant", node, repr(node.value + 1)
    elif isinstance(node, ast.BoolOp):
        operator = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield "condition", node, _but(node, op=operator)
    elif isinstance(node, ast.BinOp) and _joins(node):
        yield "condition", node, node.left
        yield "condition", node, node.right
    elif isinstance(node, ast.Return):
        yield from _other_returns(node, returns)
    elif isinstance(node, ast.Call | ast.Dict):
        yield from _without_entries(node)
    elif isinstance(node, ast.ExceptHandler):
        yield from _other_handlers(node)
    yield from _negated(node)
    if _can_go(node):
        yield "statement", node, "pass"


def _joins(node: ast.BinOp) -> bool:
    is_type = isinstance(node.right, ast.Constant) and node.right.value is None
    return isinstance(node.op, ast.BitAnd | ast.BitOr) and not is_type


def _but(node: ast.AST, **fields: t.Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _other_comparisons(node: ast.Compare) -> Found:
    for number, operator in enumerate(node.ops):
        other = OTHER[type(operator)]()
        ops = [*node.ops[:number], other, *node.ops[number + 1 :]]
        yield "comparison", node, _but(node, ops=ops)


def _negated(node: ast.AST) -> Found:
    tests = [node.test] if isinstance(node, ast.If | ast.While | ast.IfExp) else []
    tests += node.ifs if isinstance(node, ast.comprehension) else []
    for test in tests:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield "condition", test, test.operand
        elif not (isinstance(test, ast.Compare) and len(test.ops) == 1 and _is_exact(test.ops[0])):
            yield "condition", test, "(not ({}))"


def _is_exact(operator: ast.cmpop) -> bool:
    return not isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE)


def _other_returns(node: ast.Return, returns: ast.expr | None) -> Found:
    value, told = node.value, "" if returns is None else ast.unparse(returns)
    if value is None or isinstance(value, ast.Constant):
        return  # a constant is changed as one
    if told == "bool":
        yield "return", value, "(not ({}))"
    elif "None" in told:
        yield "return", value, "None"


def _without_entries(node: ast.Call | ast.Dict) -> Found:
    if isinstance(node, ast.Dict):
        for number in range(len(node.keys)):
            keys, values = list(node.keys), list(node.values)
            del keys[number], values[number]
            yield "entry", node, _but(node, keys=keys, values=values)
        return
    name = ast.unparse(node.func).rpartition(".")[2]
    if name in DROPPED:
        for keyword in node.keywords:
            left = [each for each in node.keywords if each is not keyword]
            yield "entry", node, _but(node, keywords=left)
    elif name == "where" and len(node.args) > 1:
        for argument in node.args:
            yield "entry", node, _but(node, args=[each for each in node.args if each != argument])
    elif name == "suppress":
        yield "except", node, _but(node, args=[])


def _other_handlers(node: ast.ExceptHandler) -> Found:
    caught = "" if node.type is None else ast.unparse(node.type)
    if caught not in {"", "BaseException"}:
        yield "except", node.type, "BaseException" if caught == "Exception" else "Exception"
    if not isinstance(node.body[0], ast.Raise):
        yield "except", node.body[0], "raise"


def _can_go(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call | ast.Await)
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete)
