"""What the model is asked about each clip: prompts by name, from a file or in words, with fields for a clip's facts.

Everything about a template is checked when it is found, before the first clip. A template has fields and nothing
more: no attributes, no indices, no conversions and no formats, since it is filled with what strangers named their
files. Knows text; opens the files of prompts only.
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

_FILE_BYTES = 64 * 1024
_EXISTING_CHARACTERS = 4000
_BRACES = "Write {{ and }} for braces that are meant as such."
_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A checked template; `name` is empty where it was given in words or by a file."""

    name: str
    text: str

    @property
    def fields(self) -> frozenset[str]:
        """Which of FIELDS it asks for."""
        return frozenset(field for _, field in _parts(self.text) if field)


def find_prompt(words: str) -> PromptTemplate:
    """The prompt of a known name, in a file (`@FILE`), or these very words; raises UsageError.

    The user's own are in prompts.toml beside the configuration file.
    """
    if words.startswith("@"):
        return _checked(PromptTemplate("", _read_text(Path(words[1:]))), f"the prompt in {words[1:]}")
    known = known_prompts()
    if words in known:
        return _checked(PromptTemplate(words, known[words]), f"the prompt {words!r}")
    if _NAME.fullmatch(words) and (near := difflib.get_close_matches(words.lower(), known, n=1, cutoff=0.7)):
        raise UsageError(
            f"There is no prompt named {words!r}.", f"Did you mean {near[0]!r}? A prompt may be a sentence."
        )
    return _checked(PromptTemplate("", words), "the prompt")


def known_prompts() -> dict[str, str]:
    """The built-in prompts and the user's own, by name; raises UsageError for a file that holds none."""
    built_in = _prompts(files("vidqa.batch").joinpath("prompts.toml").read_text("utf-8"), "prompts.toml")
    own = config_path().with_name("prompts.toml")
    return built_in | _prompts(_read_text(own), str(own)) if own.exists() else built_in


def clip_values(path: Path, video: VideoInfo, existing: str) -> dict[str, str]:
    """A clip's facts by the names of FIELDS: seconds, pixels, frames per second, and text that is in its sidecar."""
    shown = existing if len(existing) <= _EXISTING_CHARACTERS else f"{existing[:_EXISTING_CHARACTERS]}…"
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
    """The prompt with a clip's values in its fields; control characters in them are shown as escapes.

    A value is put in as it is: braces in it are text.
    """
    return "".join(
        literal + (_harmless(field, values[field]) if field else "") for literal, field in _parts(prompt.text)
    )


def _harmless(field: str, value: str) -> str:
    """One line of a name; what somebody wrote may have several."""
    return safe_text(value.replace("\r\n", "\n")) if field == "existing" else safe_line(value)


def _checked(prompt: PromptTemplate, what: str) -> PromptTemplate:
    if not prompt.text.strip():
        raise UsageError(f"{what[0].upper()}{what[1:]} is empty.", "Say what the model shall write about a clip.")
    try:
        _parts(prompt.text)
    except ValueError as error:
        raise UsageError(f"{what[0].upper()}{what[1:]} has a brace too many or too few: {error}.", _BRACES) from error
    return prompt


def _parts(text: str) -> list[tuple[str, str]]:
    """Literals, each with the field that comes after it or ``; raises UsageError for what is no field, ValueError."""
    parts = []
    for literal, field, form, conversion in Formatter().parse(text):
        if field is not None and (form or conversion or field not in FIELDS):
            raise _no_field(field, form, conversion)
        parts.append((literal, field or ""))
    return parts


def _no_field(field: str, form: str | None, conversion: str | None) -> UsageError:
    written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
    plain = "".join(re.findall(r"^ *(\w+)", field))  # of name.__class__ and name[0], name is what there is
    near = difflib.get_close_matches(plain, FIELDS, n=1)
    meant = f"Did you mean {{{near[0]}}}? " if near else ""
    known = " ".join(f"{{{name}}}" for name in FIELDS)
    return UsageError(f"{{{written}}} is no field of a prompt.", f"{meant}There are {known}, just so. {_BRACES}")


def _prompts(text: str, path: str) -> dict[str, str]:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}.", 'Write lines such as: brief = "What happens?"'
        ) from error
    for name, prompt in found.items():
        if not isinstance(prompt, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} in {path} is no prompt.",
                'Write NAME = "TEXT", the name of letters, digits, - and _ and a letter first.',
            )
    return {name: prompt.strip() for name, prompt in found.items()}


def _read_text(path: Path) -> str:
    """A file's text without what surrounds it; raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
        if len(data) > _FILE_BYTES:
            raise UsageError(f"{path} is longer than {_FILE_BYTES // 1024} KiB.", "A prompt is a short text.")
        return data.decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}.", "Give a text file.") from error
