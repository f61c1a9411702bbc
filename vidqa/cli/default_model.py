"""Which model answers when none was named: a cached Qwen2-VL, else the user's choice."""

import sys

from vidqa.cli.console import StderrReporter
from vidqa.errors import ModelMissing

SUGGESTED_MODEL = "Qwen/Qwen2-VL-2B-Instruct"
_QUESTION = f"""No model was named and none is cached.
  1  fetch {SUGGESTED_MODEL} (4.4 GB)
  2  use the demo model (coloured shapes only)
Which one? [1/2] """


def choose_model(named: str | None, talk: StderrReporter) -> str:
    """The named model, else the first cached one, else what a person at the terminal picks.

    Raises ModelMissing where nobody can be asked.
    """
    if named:
        return named
    from vidqa.models.hub import cached_models

    for cached in cached_models():
        if cached.runnable:
            return cached.repository
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ModelMissing(
            "No model was named and no Qwen2-VL is cached.",
            f"Fetch one with `vidqa pull {SUGGESTED_MODEL}` (4.4 GB), or add --model demo (coloured shapes only).",
        )
    return _ask_person(talk)


def _ask_person(talk: StderrReporter) -> str:
    sys.stderr.write(_QUESTION)
    sys.stderr.flush()
    while (reply := sys.stdin.readline().strip()) not in {"1", "2"}:
        if not reply:
            raise ModelMissing("No model was chosen.", "Add --model demo, or name one with --model.")
        sys.stderr.write("Type 1 or 2: ")
        sys.stderr.flush()
    if reply == "2":
        return "demo"
    from vidqa.models.hub import pull_model

    talk.say(f"fetching {SUGGESTED_MODEL}")
    pull_model(SUGGESTED_MODEL)
    return SUGGESTED_MODEL


def planned_model() -> str:
    """The first cached model, else the one that most cards can run: nobody is asked, nothing is fetched."""
    from vidqa.models.hub import cached_models

    return next((model.repository for model in cached_models() if model.runnable), SUGGESTED_MODEL)
