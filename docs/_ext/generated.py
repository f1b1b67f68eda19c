"""Write the parts of docs/reference/ that come from the code; they are committed, for a forge.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end generated -->``, where NAME is one
of :data:`PARTS`, with an argument where it takes one.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
import typing as t
from pathlib import Path

import click
import sqlalchemy as sa
from flask.cli import ScriptInfo
from sqlalchemy.dialects import postgresql
from statuses import drawing

import flask_sequence
from flask_sequence import Step, errors, testing
from flask_sequence.broker import embedded_config
from flask_sequence.cli import sequence_cli
from flask_sequence.config import _SETTINGS, Settings
from flask_sequence.definition.options import CELERY_OPTIONS, OPTIONS, StepOptions
from flask_sequence.rows.models import MODELS
from flask_sequence.sequence import PreparedSequence
from flask_sequence.status import MOVES, Status, StepStatus

DOCS = Path(__file__).parents[1]
PACKAGE = Path(flask_sequence.__file__).parent
POSTGRESQL: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
NodeT = t.TypeVar("NodeT", bound=ast.AST)

ERRORS: dict[str, type[BaseException]] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException)
}
"""Every error and interrupt, also those that are not exported, in the order of the code."""


def _table(*rows: t.Sequence[str]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    lines.insert(1, f"| {' | '.join('---' for _ in rows[0])} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Turn the reST of a docstring into Markdown, on one line."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


def _since(text: str) -> str:
    found = re.search(r"\.\. versionadded:: (\S+)", text)
    return found[1] if found else "0.1"


def _markdown(doc: str) -> str:
    """Turn a docstring into Markdown: its paragraphs, its code, then its parameters."""
    doc = re.sub(
        r"\.\. code-block:: python\n((?:\n| +.*\n)+)",
        lambda found: f"```python\n{textwrap.dedent(found[1]).strip()}\n```\n\n",
        doc,
    )
    paragraphs, fields = [], []
    for part in re.split(r"\n\s*\n(?![^`]*\n```\n)", doc):
        if part.startswith("```"):
            paragraphs.append(part)
        elif part.startswith(":"):
            for name, told in re.findall(r"^:([^:]+): ((?:.|\n(?!:))*)", part, re.MULTILINE):
                kind, _, subject = name.partition(" ")
                words = {
                    "param": f"`{subject}`",
                    "raises": f"raises `{subject}`",
                    "return": "returns",
                }
                fields.append(f"- {words[kind]}: {_plain(told)}")
        elif not part.startswith((".. versionadded", "=")):
            paragraphs.append(_plain(part))
    return "\n\n".join([*paragraphs, *(["\n".join(fields)] if fields else [])])


def _first(doc: str) -> str:
    return _plain(re.split(r"\n\s*\n", doc)[0])


@functools.cache
def _attributes(cls: type) -> dict[str, str]:
    """Give the docstrings of the attributes of a class, which stand below them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        target = getattr(node, "target", None) or next(iter(getattr(node, "targets", [])), None)
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr):
            value = getattr(after.value, "value", None)
            if isinstance(value, str):
                found[target.id] = _plain(value)
    return found


# Public names


def _call(name: str, function: t.Callable[..., t.Any]) -> str:
    parameters = [
        parameter.replace(annotation=parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    return f"{name}{inspect.Signature(parameters)}"


def _attribute_rows(cls: type) -> t.Iterator[tuple[str, str]]:
    documented = {} if cls in MODELS else _attributes(cls)  # tables.md has the columns
    for name, told in documented.items():
        if not name.startswith("_"):
            yield f"`{name}`", told
    for name, member in vars(cls).items():
        if isinstance(member, property) and not name.startswith("_"):
            yield f"`{name}`", _first(inspect.getdoc(member) or "")


def _methods(cls: type) -> t.Iterator[str]:
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)
        if inspect.isfunction(function) and not name.startswith("_"):
            yield f"**`{_call(name, function)}`**\n\n{_markdown(inspect.getdoc(function) or '')}"


def api(name: str) -> str:
    """Tell what one public name is."""
    value = _public()[name]
    doc = inspect.getdoc(value) or ""
    parts = [_markdown(doc), f"Since {_since(doc)}."]
    if not inspect.isclass(value):
        parts.insert(0, f"**`{_call(name, value)}`**")
    else:
        if rows := list(_attribute_rows(value)):
            parts.append(_table(("name", "what it is"), *rows))
        parts += _methods(value)
    return _forge("\n\n".join(parts)) + _site(_autodoc(name, value))


def _public() -> dict[str, t.Any]:
    public = {name: getattr(flask_sequence, name) for name in flask_sequence.__all__}
    more = (PreparedSequence, testing.drain, embedded_config)
    return public | {value.__name__: value for value in more}


def _autodoc(name: str, value: t.Any) -> str:
    kind = "class" if inspect.isclass(value) else "function"
    modules = {
        "drain": "flask_sequence.testing",
        "embedded_config": "flask_sequence.broker",
        "PreparedSequence": "flask_sequence.sequence",
    }
    lines = [f".. auto{kind}:: {modules.get(name, 'flask_sequence')}.{name}"]
    if kind == "class":
        lines.append("   :members:")
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"


def _forge(text: str) -> str:
    return f"<!-- forge -->\n{text}\n<!-- end forge -->\n"


def _site(text: str) -> str:
    return f"<!-- site\n{text}\n-->"


# Settings and options


def _takes(check: t.Callable[[t.Any], t.Any], of_seconds: bool) -> str:
    """Tell what a setting takes, by what its check says of something that it does not."""

    def complaint(value: object) -> str:
        try:
            check(value)
        except ValueError as error:
            return str(error)
        return ""

    takes = re.sub(r"^must be ", "", complaint(object()))
    lowest = re.search(r"from ([\d.]+)", complaint(-1)) if of_seconds else None
    return f"{takes}, from {lowest[1]}" if lowest else takes


def _default(value: object, source: str) -> str:
    if isinstance(value, float):
        days, rest = divmod(value, 86400)
        return f"timedelta(days={days:.0f})" if days and not rest else f"{value:g}"
    return source


def settings(_argument: str) -> str:
    """Make the table of the settings."""
    body = ast.parse(textwrap.dedent(inspect.getsource(Settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    sources = {
        node.target.id: ast.unparse(node.value)
        for node in body.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
    }
    rows = []
    for key, (field, check) in _SETTINGS.items():
        told = _attributes(Settings)[field].partition(": ")[2]
        takes = _takes(check, "float" in Settings.__annotations__[field])
        default = _default(getattr(Settings(), field), sources[field])
        since = _since(told + (inspect.getdoc(Settings) or ""))
        meaning = told[0].upper() + told[1:]
        rows.append((f"`{key}`", takes, f"`{default}`", meaning, since))
    return _table(("setting", "takes", "default", "meaning", "since"), *rows)


def options(_argument: str) -> str:
    """Make the table of the options of a step."""
    plain = {**vars(StepOptions()), **vars(StepOptions().retry)}
    names = {
        "retry_backoff": "backoff",
        "retry_backoff_max": "backoff_max",
        "retry_jitter": "jitter",
        "default_retry_delay": "default_delay",
    }
    rows = []
    for name, option in OPTIONS.items():
        takes = re.sub(r"^takes ", "", option.problem(object()) or "")
        value = plain[names.get(name, name)]
        shown = {
            "max_retries": f"{Settings().max_retries}",
            "autoretry_for": "(Exception,)",
            "retry_backoff": "True",
        }.get(name, f"{value:g}" if type(value) is float else repr(value))
        rows.append((f"`{name}`", takes, f"`{shown}`", _differences()[name]))
    return _table(("option", "takes", "default", "difference from Celery"), *rows)


@functools.cache
def _differences() -> dict[str, str]:
    """Give how each option differs from Celery's: the last column of the table of ``Step``."""
    ruler, *lines = re.findall(r"^[=` ].*", inspect.getdoc(Step) or "", re.MULTILINE)[1:-1]
    start = ruler.rindex(" ") + 1
    found: dict[str, str] = {}
    option = ""
    for line in lines:
        if name := re.match(r"``(\w+)``", line):
            option = name[1]
        found[option] = f"{found.get(option, '')} {line[start:]}".strip()
    return {option: _plain(told) for option, told in found.items()}


def celery_options(_argument: str) -> str:
    """Make the table of Celery's options that a step has not."""
    rows = [(f"`{name}`", _plain(cure)) for name, cure in sorted(CELERY_OPTIONS.items())]
    return _table(("Celery's option", "instead"), *rows)


# Errors


def _template(node: ast.expr) -> str:
    """Give the text of a message, with an ellipsis for what is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def _nodes(path: Path, kind: type[NodeT]) -> list[NodeT]:
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, kind)]


@functools.cache
def _messages() -> dict[str, list[str]]:
    """Give the messages of each error, as the code has them."""
    frames = {}
    for cls in _nodes(PACKAGE / "errors.py", ast.ClassDef):
        for call in (node for node in ast.walk(cls) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__":
                frames[cls.name] = _template(call.args[0])
    found = {name: [] if frames.get(name, "…")[-1] == "…" else [frames[name]] for name in ERRORS}
    for path in sorted(PACKAGE.rglob("*.py")):
        imports = _nodes(path, ast.ImportFrom)
        ours = {x.name for node in imports if node.module == "errors" for x in node.names}
        for call in _nodes(path, ast.Call):
            if isinstance(call.func, ast.Name) and call.func.id in ours & found.keys():
                template = _template(call.args[-1]) if call.args else ""
                if re.search(r"\w{3}", template):
                    name = call.func.id
                    found[name].append(frames.get(name, "…")[:-1] + template)
    return found


def error(name: str) -> str:
    """Tell what one error is."""
    cls = ERRORS[name]
    bases = " and ".join(f"`{base.__name__}`" for base in cls.__bases__)
    exported = name in flask_sequence.__all__
    where = "" if exported else " Not exported: you see it in a log or in `run.error`."
    article = "An" if re.match(r"`[AEIOU]", bases) else "A"
    return f"{_markdown(inspect.getdoc(cls) or '')}\n\n{article} {bases}.{where}"


def messages(name: str) -> str:
    """List the messages of one error."""
    told = dict.fromkeys(_plain(text) for text in _messages()[name])
    listed = "\n".join(f"- {_escaped(text)}" for text in told)
    return f"Its messages:\n\n{listed}" if told else "It has no message of its own."


def _escaped(text: str) -> str:
    """Keep Markdown from taking a message's characters for its own, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    special = re.compile(r"[*<]|\b_+|_+\b")
    parts[::2] = [
        special.sub(lambda found: "\\" + "\\".join(found[0]), part) for part in parts[::2]
    ]
    return "".join(parts)


# Commands


def command(name: str) -> str:
    """Give the help of one command."""
    found = sequence_cli.commands[name]
    context = click.Context(found, info_name=f"flask sequence {name}", obj=ScriptInfo())
    context.max_content_width = 90
    text = f"```text\n{found.get_help(context)}\n```"
    directive = (
        f".. command:: flask_sequence.cli.{_variable(found)}\n   :prog: flask sequence {name}"
    )
    return _forge(text) + _site("```{eval-rst}\n" + directive + "\n```")


def _variable(found: click.Command) -> str:
    assert found.callback is not None
    module = inspect.getmodule(found.callback)
    assert module is not None
    variable = next(name for name, value in vars(module).items() if value is found)
    return f"{module.__name__.rpartition('.')[2]}:{variable}"


# Statuses and tables


def statuses(_argument: str) -> str:
    """Make the table of the statuses of a run, with their moves."""
    rows = []
    for status in Status:
        moves = ", ".join(f"`{move}`" for move in Status if move in MOVES[status])
        rows.append((f"`{status}`", _attributes(Status)[status.name], moves or "nothing: final"))
    return _table(("status", "what it means", "moves to"), *rows)


def step_statuses(_argument: str) -> str:
    """Make the table of the statuses of an attempt."""
    rows = [(f"`{status}`", _attributes(StepStatus)[status.name]) for status in StepStatus]
    return _table(("status", "what it means"), *rows)


def columns(name: str) -> str:
    """Make the table of the columns of a table."""
    model = next(model for model in MODELS if model.__tablename__ == name)
    table = t.cast(sa.Table, model.__table__)
    told = _attributes(model)
    rows = []
    for column in table.columns:
        kind = column.type.compile(dialect=POSTGRESQL).lower()
        rows.append(
            (
                f"`{column.name}`",
                kind + ("" if column.nullable else ", not null"),
                told.get(column.name, _told_otherwise(column)),
            )
        )
    indexes = sorted(
        f"`{index.name}` ({', '.join(index.columns.keys())})" for index in table.indexes
    )
    listed = f"\n\nIndexes: {', '.join(indexes)}." if indexes else ""
    return _table(("column", "type on PostgreSQL", "what it is"), *rows) + listed


def _told_otherwise(column: sa.Column[t.Any]) -> str:
    if column.foreign_keys:
        return f"Refers to `{next(iter(column.foreign_keys)).target_fullname}`."
    if column.name.endswith("_at") and column.name != "published_at":
        return "When that was, in UTC."
    return "Its id." if column.primary_key else "Internal: may change."


PARTS: t.Mapping[str, t.Callable[[str], str]] = {
    "api": api,
    "settings": settings,
    "options": options,
    "celery options": celery_options,
    "error": error,
    "messages": messages,
    "command": command,
    "statuses": statuses,
    "step statuses": step_statuses,
    "columns": columns,
}
"""What can be generated; each takes what stands behind the colon of its argument."""

_PART = re.compile(
    r"(<!-- generated: ([^:>]+?)(?:: (\S+))? -->\n).*?(<!-- end generated -->)", re.DOTALL
)


def filled(text: str) -> str:
    """Put into the generated parts of a page what the code says now."""

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}{PARTS[found[2]](found[3] or '')}\n{found[4]}"

    return _PART.sub(fill, text)


def files() -> dict[Path, str]:
    """Give every file that is generated, or has generated parts, with the text that is right."""
    pages = sorted((DOCS / "reference").glob("*.md"))
    texts = {page: filled(page.read_text("utf-8")) for page in pages}
    return {**texts, DOCS / "images" / "statuses.svg": drawing()}


def main() -> None:
    """Write the files that are not as the code has it."""
    for path, text in files().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"Wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
