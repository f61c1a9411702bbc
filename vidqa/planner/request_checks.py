"""Checks of a request and of settings before any file is opened, and of a video that is searched."""

import os

from vidqa.config import PLANNED_ONLY, EngineConfig
from vidqa.errors import UsageError
from vidqa.types import Plan, Request, VideoInfo
from vidqa.utils.safe_text import safe_line

_LEAST_SEED, _LARGEST_SEED = -(2**63), 2**64 - 1  # as torch.Generator.manual_seed takes them
_SURROGATE = 0xDC00  # added to a byte of an argument that is not UTF-8 (PEP 383)


def check_request(request: Request) -> None:
    """Raise UsageError if the question is empty, or as `check_limits` does."""
    if not request.question.strip():
        raise UsageError("The question is empty.", 'Ask for example "what happens?".')
    check_limits(request)


def check_search(request: Request) -> None:
    """Raise UsageError if the text to find is empty, or as `check_limits` does."""
    if not request.question.strip():
        raise UsageError("The text to find is empty.", 'Give for example "a red circle".')
    check_text("The text to find", request.question)
    check_limits(request)


def check_limits(request: Request) -> None:
    """Raise UsageError if a value of a request is out of range, or a text is not valid Unicode."""
    seed, stream = request.seed, request.stream
    for is_wrong, what, remedy in (
        (request.max_tokens < 1, f"--max-tokens {request.max_tokens} leaves no room for an answer.", "Use 1 or more."),
        (
            not 0 <= request.temperature < float("inf"),
            f"--temperature {request.temperature} is not 0 or more.", "Use 0 for the likeliest words.",
        ),
        (not 0 < request.top_p <= 1, f"--top-p {request.top_p} is not above 0 and at most 1.", "Use for example 0.9."),
        (
            seed is not None and not _LEAST_SEED <= seed <= _LARGEST_SEED,
            f"--seed {seed} does not fit into 64 bits.", f"Use a number from 0 to {_LARGEST_SEED}.",
        ),
        (stream is not None and stream < 0, f"--stream {stream} is no number of a stream.", "They count from 0."),
    ):  # fmt: skip
        if is_wrong:
            raise UsageError(what, remedy)
    check_text("The question", request.question)
    check_text("The system prompt (--system)", request.system or "")


def check_searchable(video: VideoInfo, plan: Plan) -> None:
    """Raise UsageError for a single picture, or a range of one, which has no moments to find."""
    if video.frame_count < 2:
        name = safe_line(os.path.basename(video.path))
        raise UsageError(f"{name} is one picture: there are no moments to find in it.", "Ask a question about it.")
    if len(set(plan.candidates)) == 1:
        raise UsageError("The range is one frame: there are no moments to find in it.", "Search a longer range.")


def check_text(name: str, text: str) -> None:
    """Raise UsageError if a text has lone surrogates, as a command line in another encoding gives them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        shown = f"the byte 0x{code - _SURROGATE:02x}" if 0 <= code - _SURROGATE < 256 else f"U+{code:04X}"
        what = f"{name} has {shown}, which is no UTF-8, after {error.start} characters."
        raise UsageError(what, "Type it again.") from error


def check_config(config: EngineConfig) -> None:
    """Raise UsageError for weights that can be planned but not run, or a share of tokens that is none."""
    if config.weights in PLANNED_ONLY:
        raise UsageError(
            f"{config.weights} weights can be planned, but vidqa does not run them yet.", "Use --weights int8 or nf4."
        )
    if config.prune not in ("auto", "off") and not (isinstance(config.prune, int | float) and 0 < config.prune <= 1):
        raise UsageError(
            f"--prune {config.prune} is no share of the visual tokens.", "Use auto, off, or for example 0.25."
        )
