"""A question as token ids around the video, and the segments that a prompt is made of."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidqa.errors import ModelError
from vidqa.models.family import Segment, TextSegment
from vidqa.models.spec import ModelSpec
from vidqa.types import Plan, Turn
from vidqa.video.reader import never

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Token ids before and after the video's own tokens."""

    head: tuple[int, ...]
    tail: tuple[int, ...]


def build_prompt(
    loaded: "Loaded",
    question: str,
    system: str | None,
    history: Sequence[Turn] = (),
    stopped: Callable[[], bool] = never,
) -> PromptTokens:
    """Render the checkpoint's chat template for one video, the turns so far and one question.

    Special tokens that a text spells out are broken up, so that text stays text. Raises ModelError where the template
    fails or shows no video, Interrupted soon after `stopped` says so.
    """
    plain = _Plain(loaded.tokenizer.get_added_vocab())
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": plain(system)})
    for turn in history:
        messages.append({"role": "user", "content": _text(plain(turn.question))})
        messages.append({"role": "assistant", "content": _text(plain(turn.answer))})
    messages.append({"role": "user", "content": _text(plain(question))})
    messages[system is not None]["content"].insert(0, {"type": "video"})  # the first thing that the user shows
    rendered = loaded.template.render(messages, stopped)
    ids: list[int] = loaded.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    video_token = loaded.model.spec.video_token
    if ids.count(video_token) != 1:
        raise ModelError(
            f"The model's chat template places {ids.count(video_token)} videos in the prompt instead of 1.",
            "Use an instruct checkpoint.",
        )
    where = ids.index(video_token)
    return PromptTokens(head=tuple(ids[:where]), tail=tuple(ids[where + 1 :]))


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


class _Plain:
    """Breaks up special tokens in a text by a blank behind their first character, in one pass: it at most doubles."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def __call__(self, text: str) -> str:
        return self._pattern.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)


def text_positions(start: int, count: int) -> Tensor:
    """M-RoPE positions (3, count) of text: all three components count on together."""
    return torch.arange(start, start + count).expand(3, count)


def layout_of(prompt: PromptTokens, plan: Plan, loaded: "Loaded") -> tuple[Segment, ...]:
    """Return a prompt's segments for the slices of a plan, as the model's family arranges them."""
    model = loaded.model
    return model.family.layout(prompt.head, prompt.tail, slice_times(plan, model.spec), loaded.tokenizer)


def slice_times(plan: Plan, spec: ModelSpec) -> list[float]:
    """Return the mean time in seconds of each temporal slice; an odd last frame is doubled."""
    depth, times = spec.vision.temporal_patch, list(plan.timestamps_seconds)
    times += times[-1:] * (-len(times) % depth)
    return [sum(times[place : place + depth]) / depth for place in range(0, len(times), depth)]


def text_tokens(layout: Sequence[Segment]) -> int:
    """Return how many text tokens a prompt has."""
    return sum(len(one.ids) for one in layout if isinstance(one, TextSegment))
