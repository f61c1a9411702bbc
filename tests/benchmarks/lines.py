"""Which lines of some files run in a process and in those that it starts: a sitecustomize that traces them.

Python's own hook is enough for a few files; nothing of it is in what is traced.
"""

import dis
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType

_TRACER = """
import atexit, json, os, sys, threading
folder, files = os.environ["LINES_TO"], set(json.loads(os.environ["LINES_OF"]))
ran = {}
def trace(frame, event, argument):
    name = frame.f_code.co_filename
    if name not in files:
        return None
    seen = ran.setdefault(name, set())
    def line(frame, event, argument):
        seen.add(frame.f_lineno)
        return line
    seen.add(frame.f_lineno)
    return line
def write():
    sys.settrace(None)
    with open(os.path.join(folder, f"{os.getpid()}.json"), "w") as file:
        json.dump({name: sorted(seen) for name, seen in ran.items()}, file)
if any(argument.endswith("gpu_check.py") for argument in sys.orig_argv):
    threading.settrace(trace)
    sys.settrace(trace)
    atexit.register(write)
"""


def tracing(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """The environment of a process whose lines of these files are to be kept in a folder."""
    (folder / "sitecustomize.py").write_text(_TRACER, encoding="utf-8")
    named = {"LINES_TO": str(folder), "LINES_OF": json.dumps([str(path) for path in files])}
    return os.environ | named | {"PYTHONPATH": str(folder)}


def not_run(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, list[int]]]:
    """By file and function (dotted, of its classes too) the lines that no traced process has run."""
    ran: dict[str, set[int]] = {}
    for path in folder.glob("*.json"):
        for name, lines in json.loads(path.read_text(encoding="utf-8")).items():
            ran.setdefault(name, set()).update(lines)
    missing: dict[str, dict[str, list[int]]] = {}
    for path in files:
        for function, lines in _functions(compile(path.read_text(encoding="utf-8"), str(path), "exec")):
            left = sorted(lines - ran.get(str(path), set()))
            if left:
                missing.setdefault(path.name, {})[function] = left
    return missing


def _functions(code: CodeType, name: str = "") -> Iterator[tuple[str, set[int]]]:
    """Every function of a module with its lines, its own first line left out: a definition is not a call."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            inner = part.co_name if part.co_name.startswith("<") else f"{name}.{part.co_name}".lstrip(".")
            inner = name if part.co_name.startswith("<") else inner
            yield inner, {line for _, line in dis.findlinestarts(part) if line and line != part.co_firstlineno}
            yield from _functions(part, inner)
