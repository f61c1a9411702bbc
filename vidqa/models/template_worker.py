"""The process that renders chat templates: `python -m vidqa.models.template_worker`.

A template is a program from a checkpoint. jinja2's sandbox denies files and Python's internals, but not endless loops
or huge strings; this process exits if a template takes too much time or memory. It reads one JSON command per line from
stdin, and writes a length of four bytes and JSON to stdout. No torch, no transformers.
"""

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDER_SECONDS = 3.0  # a Qwen2-VL template takes a millisecond
_ADDRESS_SPACE_BYTES = 2**29
_MAX_ERROR_CHARACTERS = 300


class _Generation(Extension):
    """The tag {% generation %}: renders its contents. transformers can return a mask of them; vidqa needs none."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own attribute

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_rendered"), [], [], body).set_lineno(line)

    def _rendered(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace, which refuses names with a leading underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        for name in (attributes := dict(*rest, **values)):
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)` without access to the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@lru_cache(maxsize=1)
def _compiled(template: str) -> jinja2.Template:
    """Compile a template with transformers' names (utils/chat_template_utils.py, _cached_compile_jinja_template)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _Dict(), "namespace": _Namespace,
    }  # fmt: skip
    return environment.from_string(template)


def render(template: str, values: dict[str, Any], max_characters: int) -> str:
    """Render a template; raise ValueError if the text becomes too long, and any error of the template."""
    pieces, length = [], 0
    for piece in _compiled(template).generate(**values):
        length += len(piece)
        if length > max_characters:
            raise ValueError(f"it writes more than {max_characters} characters")
        pieces.append(piece)
    return "".join(pieces)


def _answer(command: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": render(command["template"], command["values"], command["max_characters"])}
    except MemoryError:
        return {"error": f"it takes more than {_ADDRESS_SPACE_BYTES // 2**20} MiB"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # a template may raise anything
        return {"error": f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS]}


def serve(commands: BinaryIO, out: BinaryIO, traceback: Any) -> None:
    """Run one command per line until the input ends. The process exits if a command takes too long."""
    for line in commands:
        faulthandler.dump_traceback_later(RENDER_SECONDS, exit=True, file=traceback)
        encoded = json.dumps(_answer(json.loads(line))).encode()
        faulthandler.cancel_dump_traceback_later()
        out.write(len(encoded).to_bytes(4, "big") + encoded)
        out.flush()


def _limit_process() -> None:
    """Leave Ctrl-C to the parent, and limit the memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Serve the parent until it closes the pipe."""
    _limit_process()
    with open(os.devnull, "wb") as traceback, suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer, traceback)


if __name__ == "__main__":
    main()
