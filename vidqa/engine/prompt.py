"""The prompt: token ids around the video, its segments, and their M-RoPE positions."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidqa.errors import ModelError
from vidqa.models.family import Segment, TextSegment, VisionGrid
from vidqa.models.spec import ModelSpec
from vidqa.planner.subtitle_budget import choose_cues, most_cue_tokens
from vidqa.types import Plan, Turn
from vidqa.utils.cues import Cue
from vidqa.video.reader import never

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded
    from vidqa.models.vlm import VisionLanguageModel


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
    """Render the checkpoint's chat template for one video, the earlier turns and one question.

    Special tokens that a text spells out are broken up, so that text stays text. Raises ModelError if the template
    fails or places no video, Interrupted soon after `stopped` returns true.
    """
    plain = _SpecialTokenBreaker(loaded.tokenizer.get_added_vocab())
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": plain(system)})
    for turn in history:
        messages.append({"role": "user", "content": _text_content(plain(turn.question))})
        messages.append({"role": "assistant", "content": _text_content(plain(turn.answer))})
    messages.append({"role": "user", "content": _text_content(plain(question))})
    messages[system is not None]["content"].insert(0, {"type": "video"})  # first in the user's first message
    rendered = loaded.template.render(messages, stopped)
    ids: list[int] = loaded.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    video_token = loaded.model.spec.video_token
    if ids.count(video_token) != 1:
        raise ModelError(
            f"The model's chat template places {ids.count(video_token)} videos in the prompt instead of 1.",
            "Use an instruct checkpoint.",
        )
    place = ids.index(video_token)
    return PromptTokens(head=tuple(ids[:place]), tail=tuple(ids[place + 1 :]))


def _text_content(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


class _SpecialTokenBreaker:
    """Inserts a space after the first character of special tokens in a text, in one pass: it at most doubles."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def __call__(self, text: str) -> str:
        return self._pattern.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)


def text_positions(start: int, count: int) -> Tensor:
    """Return M-RoPE positions (3, count) of text, whose three components are equal."""
    return torch.arange(start, start + count).expand(3, count)


def layout_of(prompt: PromptTokens, plan: Plan, loaded: "Loaded") -> tuple[Segment, ...]:
    """Return a prompt's segments for the slices of a plan, as the model's family arranges them, with its subtitles."""
    return _layout(prompt, plan, loaded, plan.subtitles.cues if plan.subtitles else ())


def _layout(prompt: PromptTokens, plan: Plan, loaded: "Loaded", cues: Sequence[Cue]) -> tuple[Segment, ...]:
    model, times = loaded.model, slice_times(plan, loaded.model.spec)
    if not cues:
        return model.family.layout(prompt.head, prompt.tail, times, loaded.tokenizer)
    plain = _SpecialTokenBreaker(loaded.tokenizer.get_added_vocab())
    subtitles = [replace(cue, text=plain(cue.text)) for cue in cues]
    return model.family.layout(prompt.head, prompt.tail, times, loaded.tokenizer, subtitles)


def fit_subtitles(prompt: PromptTokens, plan: Plan, cues: Sequence[Cue], loaded: "Loaded") -> Plan:
    """Return the plan with as many of `cues` as fit the tokens planned for subtitles.

    Plans are made without a tokenizer, so the lines that they chose may take more or fewer tokens than estimated.
    """
    if plan.subtitles is None or not plan.subtitles.cues:
        return plan
    kept, most, left_out = plan.subtitles.cues, plan.run_config.subtitle_tokens, plan.subtitles.left_out
    counted = {cue: most_cue_tokens(cue, loaded.model.spec) for cue in cues}
    without = text_tokens(_layout(prompt, plan, loaded, ()))
    while True:
        tokens = text_tokens(_layout(prompt, plan, loaded, kept)) - without
        if not kept or (tokens <= most and not left_out):
            return replace(plan, subtitles=replace(plan.subtitles, cues=kept, left_out=len(cues) - len(kept)))
        estimated = sum(map(counted.__getitem__, kept))
        room = int(estimated * most / tokens)
        fewer = room if tokens <= most else min(room, estimated - 1)
        kept = choose_cues(cues, plan.timestamps_seconds, fewer, counted.__getitem__)
        left_out = 0  # more were tried once


def slice_times(plan: Plan, spec: ModelSpec) -> list[float]:
    """Return the mean time in seconds of each temporal slice of a plan."""
    return means_of_slices(plan.timestamps_seconds, spec)


def _uneven_times(plan: Plan, spec: ModelSpec) -> tuple[float, ...]:
    """Return the times of slices that positions follow, if these are uneven: of all candidates from the first read."""
    if plan.sampling is None or plan.sampling.kind != "change":
        return ()
    if not plan.frame_places:
        return tuple(slice_times(plan, spec))
    return tuple(means_of_slices(plan.candidate_seconds, spec)[plan.frame_places[0] // spec.vision.temporal_patch :])


def means_of_slices(times: Sequence[float], spec: ModelSpec) -> list[float]:
    """Return the mean of the frames' times for each temporal slice; an odd last frame counts twice."""
    depth = spec.vision.temporal_patch
    whole = [*times, *[times[-1]] * (-len(times) % depth)]
    return [sum(whole[place : place + depth]) / depth for place in range(0, len(whole), depth)]


def with_prompt_length(prompt: PromptTokens, plan: Plan, loaded: "Loaded") -> Plan:
    """Return the plan with the prompt's exact length."""
    return replace(plan, prompt_tokens=plan.visual_tokens + text_tokens(layout_of(prompt, plan, loaded)))


def text_tokens(layout: Sequence[Segment]) -> int:
    """Return the number of text tokens of a prompt."""
    return sum(len(one.ids) for one in layout if isinstance(one, TextSegment))


@dataclass(frozen=True, slots=True)
class VisionPart:
    """Slices of one vision segment: ids and position of the text before them, their number, positions (3, tokens)."""

    text: tuple[tuple[int, ...], int]
    slices: int
    positions: Tensor


class PromptCursor:
    """Walks through a prompt's segments up to the text after the video, and counts M-RoPE positions.

    Slices that a question selected have the positions that they would have between all candidates from the segment's
    first slice to its last.
    """

    def __init__(self, model: "VisionLanguageModel", prefix: Sequence[Segment], plan: Plan) -> None:
        self._model, spec, run_config = model, model.spec, plan.run_config
        rows, columns = run_config.height // spec.pixel_factor, run_config.width // spec.pixel_factor
        self._grid = VisionGrid(  # of one slice
            1, rows, columns, plan.interval_seconds * spec.vision.temporal_patch, _uneven_times(plan, spec)
        )  # fmt: skip
        self._segments, self._depth = deque(prefix), spec.vision.temporal_patch
        self._selected = deque(plan.frame_places[:: self._depth])  # first frames of slices; none if all are read
        self._position = self._start = 0
        self._places: Sequence[int] = range(0)  # of the current segment's slices, from its first one on
        self._done = 0  # of these slices

    def text(self) -> tuple[tuple[int, ...], int]:
        """Return the ids of the text that comes next, if any, and their position."""
        ids: tuple[int, ...] = ()
        while self._segments and isinstance(segment := self._segments[0], TextSegment):
            ids += segment.ids
            self._segments.popleft()
        position, self._position = self._position, self._position + len(ids)
        return ids, position

    def take(self, slices: int) -> Iterator[VisionPart]:
        """Yield the next slices, split where text stands between them."""
        while slices:
            text: tuple[tuple[int, ...], int] = ((), 0)
            if self._done == len(self._places):
                text = self._next_segment()
            places = self._places[self._done : self._done + slices]
            yield VisionPart(text, len(places), self._positions(places))
            self._done, slices = self._done + len(places), slices - len(places)

    def _positions(self, places: Sequence[int]) -> Tensor:
        """Return the positions (3, tokens) of slices of the segment."""
        family, spec = self._model.family, self._model.spec
        if isinstance(places, range):
            return family.vision_positions(spec, self._start, replace(self._grid, slices=len(places)), places.start)
        return torch.cat([family.vision_positions(spec, self._start, self._grid, place) for place in places], dim=1)

    def _next_segment(self) -> tuple[tuple[int, ...], int]:
        """Begin the next vision segment; return the text before it."""
        self._end_segment()
        text = self.text()
        segment = self._segments.popleft()
        assert not isinstance(segment, TextSegment)
        self._start, self._places = self._position, range(segment.slices)
        if self._selected:
            frames = [self._selected.popleft() for _ in self._places]
            self._places = [(frame - frames[0]) // self._depth for frame in frames]
        return text

    def finish(self) -> int:
        """Return the position after the slices that were read; a damaged video gives fewer than planned."""
        self._end_segment()
        return self._position

    def _end_segment(self) -> None:
        if self._done:
            grid = replace(self._grid, slices=self._places[self._done - 1] + 1)
            self._position = self._model.family.position_after(self._model.spec, self._start, grid)
        self._places, self._done = range(0), 0
