"""Prompt templates: built-in and own prompts by name, from a file or as text, with fields for a clip's facts.

Templates are checked before the first clip. They have plain fields only, no attributes, indices, conversions or format
specs, as file names from untrusted sources fill them.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Formatter

from vidqa.config import config_path
from vidqa.errors import UsageError
from vidqa.types import VideoInfo
from vidqa.utils.safe_text import safe_line, safe_text

FIELDS = ("name", "stem", "parent", "duration", "width", "height", "fps", "existing")
DEFAULT_PROMPT = "short"

_MAX_FILE_BYTES = 64 * 1024
_MAX_EXISTING_CHARACTERS = 4000
_BRACES = "Write {{ and }} for literal braces."
_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A checked template; `name` is empty if it was given as text or by a file."""

    name: str
    text: str

    @property
    def fields(self) -> frozenset[str]:
        """The names of FIELDS that it uses."""
        return frozenset(field for _, field in _parts(self.text) if field)


def find_prompt(text: str) -> PromptTemplate:
    """Return the prompt of a known name, in a file (`@FILE`), or the text itself; raises UsageError.

    Users' own prompts are in prompts.toml beside the configuration file.
    """
    if text.startswith("@"):
        return _checked(PromptTemplate("", _read_text(Path(text[1:]))), f"The prompt in {text[1:]}")
    known = known_prompts()
    if text in known:
        return _checked(PromptTemplate(text, known[text]), f"The prompt {text!r}")
    if _NAME.fullmatch(text) and (near := difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.7)):
        raise UsageError(f"There is no prompt named {text!r}.", f"Did you mean {near[0]!r}? Or give a sentence.")
    return _checked(PromptTemplate("", text), "The prompt")


def known_prompts() -> dict[str, str]:
    """Return the built-in and the user's own prompts by name; raises UsageError for an invalid file."""
    built_in = _parse(files("vidqa.batch").joinpath("prompts.toml").read_text("utf-8"), "prompts.toml")
    own = config_path().with_name("prompts.toml")
    return built_in | _parse(_read_text(own), str(own)) if own.exists() else built_in


def clip_values(path: Path, video: VideoInfo, existing: str) -> dict[str, str]:
    """Return a clip's values for FIELDS: seconds, pixels, frames per second, and the text of its sidecar."""
    shown = existing
    if len(existing) > _MAX_EXISTING_CHARACTERS:
        shown = f"{existing[:_MAX_EXISTING_CHARACTERS]}…"
    return {
        "name": path.name,
        "stem": path.stem,
        "parent": path.absolute().parent.name,
        "duration": f"{round(video.duration_seconds, 1):g}",
        "width": str(video.width),
        "height": str(video.height),
        "fps": f"{round(video.fps, 2):g}",
        "existing": shown.strip(),
    }


def fill(prompt: PromptTemplate, values: Mapping[str, str]) -> str:
    """Return the prompt with its fields filled; control characters are escaped, braces in values are plain text."""
    parts = _parts(prompt.text)
    return "".join(literal + (_escaped(field, values[field]) if field else "") for literal, field in parts)


def _escaped(field: str, value: str) -> str:
    """Escape control characters; only an existing caption keeps its lines."""
    return safe_text(value.replace("\r\n", "\n")) if field == "existing" else safe_line(value)


def _checked(prompt: PromptTemplate, source: str) -> PromptTemplate:
    if not prompt.text.strip():
        raise UsageError(f"{source} is empty.", "Write what the model shall say about a clip.")
    try:
        _parts(prompt.text)
    except ValueError as error:
        raise UsageError(f"{source} has an unmatched brace: {error}.", _BRACES) from error
    return prompt


def _parts(text: str) -> list[tuple[str, str]]:
    """Return literals, each with the field after it or ``; raises UsageError for other fields, ValueError."""
    parts = []
    for literal, field, form, conversion in Formatter().parse(text):
        if field is not None and (form or conversion or field not in FIELDS):
            raise _unknown_field(field, form, conversion)
        parts.append((literal, field or ""))
    return parts


def _unknown_field(field: str, form: str | None, conversion: str | None) -> UsageError:
    written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
    plain = "".join(re.findall(r"^ *(\w+)", field))  # `name` of name.__class__ and name[0]
    near = difflib.get_close_matches(plain, FIELDS, n=1)
    suggestion = f"Did you mean {{{near[0]}}}? " if near else ""
    known = " ".join(f"{{{name}}}" for name in FIELDS)
    return UsageError(f"{{{written}}} is not a field of prompts.", f"{suggestion}The fields are {known}. {_BRACES}")


def _parse(text: str, path: str) -> dict[str, str]:
    """Parse a TOML file of prompts; raises UsageError."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        remedy = 'Write lines such as: brief = "What happens?"'
        raise UsageError(f"{path} is not valid TOML: {error}.", remedy) from error
    for name, prompt in found.items():
        if not isinstance(prompt, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} in {path} is not a prompt.",
                'Write NAME = "TEXT"; a name has letters, digits, - and _ and begins with a letter.',
            )
    return {name: prompt.strip() for name, prompt in found.items()}


def _read_text(path: Path) -> str:
    """Return a file's text, stripped; raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise UsageError(f"{path} is longer than {_MAX_FILE_BYTES // 1024} KiB.", "A prompt is a short text.")
        return data.decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}.", "Give a text file.") from error
