"""The tables of fields in docs/python.md, made from the public dataclasses."""

import dataclasses
import inspect
import re
from collections.abc import Iterator

import vidqa
from doclib.markdown import table

DATACLASSES = ("Request", "Turn", "EngineConfig", "Answer", "Plan")


def render_fields() -> list[str]:
    """Return a section for each public dataclass: its docstring, and its fields with types and defaults."""
    lines: list[str] = []
    for name in DATACLASSES:
        kind = getattr(vidqa, name)
        rows = [(f"`{field.name}`", f"`{_type(field)}`", _default(field)) for field in dataclasses.fields(kind)]
        lines += [f"### {name}", "", inspect.getdoc(kind) or "", "", *table(("field", "type", "default"), rows), ""]
    return lines


def render_methods() -> list[str]:
    """Return a table of Session's public methods with the first paragraph of their docstrings."""
    return table(("method", "what it does"), _methods())


def _methods() -> Iterator[tuple[str, str]]:
    for name, method in inspect.getmembers(vidqa.Session, inspect.isfunction):
        if not name.startswith("_"):
            names = [one for one in inspect.signature(method).parameters if one != "self"]
            yield f"`{name}({', '.join(names)})`", (inspect.getdoc(method) or "").split("\n\n")[0]


def _type(field: "dataclasses.Field[object]") -> str:
    written = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    return re.sub(r"\b[a-z.]+\.(?=[A-Z])", "", written)


def _default(field: "dataclasses.Field[object]") -> str:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else "empty"
    return f"`{field.default!r}`"
