"""Texts that the command line and the session share, with the session's names instead of the options'."""

import re

# What the plan panel calls the options of the command line.
_WORDS = {
    "vram": "the budget", "max-wait": "wait", "quality": "quality", "frames": "frames", "size": "size",
    "weights": "weights", "kv": "KV cache", "sample": "sample", "prune": "prune", "focus": "focus", "subs": "subs",
    "model": "model", "start": "start", "end": "end",
}  # fmt: skip
_OPTION = re.compile(rf"--({'|'.join(_WORDS)})(?![\w-])")


def in_session_words(text: str) -> str:
    """Return a text about a plan with the names of the plan panel: `--quality fast` becomes `quality fast`."""
    return _OPTION.sub(lambda match: _WORDS[match[1]], text)
