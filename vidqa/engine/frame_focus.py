"""Selects the frames that a question points to (`--focus`): encode many once, score by attention, read few.

All candidates are encoded, and their embeddings are parked on the host. Parts of them, each spread over the video, run
with the question behind them through the first layers of the language model. A slice's score is the attention of the
question's tokens to it in the reference layer, mean over heads and tokens (FlexSelect, arXiv 2506.00993, section 3).
"""

from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from vidqa.engine.kv_cache import make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prefix_cache import VisionEmbeddings, common_length
from vidqa.engine.prompt import PromptTokens, build_prompt, layout_of, means_of_slices
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.slice_selection import find_moments, interleaved, select_slices
from vidqa.engine.timers import StageContext, Stopwatch
from vidqa.engine.token_pruning import on_host
from vidqa.events import Event, Noted, StageProgress, StageStarted
from vidqa.models.attention.selector import Kernel
from vidqa.models.attention_probe import AttentionProbe, ProbedStates
from vidqa.models.family import Segment, TextSegment
from vidqa.planner.focus_memory import reference_layer, scored_slices, scoring_tokens
from vidqa.types import Plan, Request
from vidqa.utils.frame_choice import SliceSelection
from vidqa.utils.units import format_timestamp
from vidqa.video.reader import VideoReader, never

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded

_NAMED = 3  # moments of the video that a note names


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """A prompt that ends with a question, and the number of the question's tokens: without those of the template."""

    prompt: PromptTokens
    count: int


def question_tokens(loaded: "Loaded", request: Request, stopped: Callable[[], bool] = never) -> QuestionTokens:
    """Return a question's tokens after the video, without the turns before it.

    They are where the prompts of this question and of an empty one differ. Raises as `build_prompt`.
    """
    asked, empty = (build_prompt(loaded, text, request.system, (), stopped) for text in (request.question, ""))
    before = common_length(asked.tail, empty.tail)
    after = common_length(asked.tail[before:][::-1], empty.tail[before:][::-1])
    end = len(asked.tail) - after
    return QuestionTokens(PromptTokens(asked.head, asked.tail[:end]), max(end - before, 1))


class FrameFocus:
    """Encodes a plan's candidates and selects those that a question points to.

    If `asked` is None, it selects those nearest to the plan's own frames. `embeddings` are those of all candidates,
    from an earlier question or this one. `layer` replaces the family's reference layer.
    """

    def __init__(
        self,
        loaded: "Loaded",
        plan: Plan,
        asked: QuestionTokens | None,
        kernel: Kernel,
        stages: StageContext,
        embeddings: VisionEmbeddings | None = None,
        layer: int | None = None,
    ) -> None:
        self._loaded, self._plan, self._asked, self._kernel, self._stages = loaded, plan, asked, kernel, stages
        self._model = stages.with_cancel_check(loaded.model)
        self._depth = self._model.spec.vision.temporal_patch
        self._layer = reference_layer(self._model.spec) if layer is None else layer
        self.embeddings = embeddings
        self.video_seconds = 0.0

    def run(self, reader: VideoReader | None) -> Generator[Event, None, Plan]:
        """Encode the candidates if that was not done yet, and return the plan of the selected frames."""
        yield from self.encode(reader)
        selection = yield from self.select()
        plan = replace(self._plan_of(selection.chosen), selection=selection)
        yield Noted(selection_note(selection, self._depth, self._parked().times[-1]), "plan")
        return plan

    def select(self) -> Generator[Event, None, SliceSelection]:
        """Score the candidates' slices and select; without a question, those nearest to the plan's own frames."""
        embeddings, spec = self._parked(), self._model.spec
        seconds = tuple(means_of_slices(embeddings.times, spec))
        if self._asked is None:
            own = means_of_slices(self._plan.timestamps_seconds, spec)
            return SliceSelection(seconds, (), nearest_slices(seconds, own))
        count = min(spec.slices(self._plan.run_config.frames), embeddings.slices)
        watch = Stopwatch()
        if self._plan.run_config.placement.vision_offloaded:
            self._model.visual.to("cpu")
        scores = yield from self._scores(self._asked)
        return SliceSelection(seconds, tuple(scores), select_slices(scores, seconds, count), watch.seconds())

    def selected(self, plan: Plan) -> VisionEmbeddings:
        """Return the embeddings of a plan's frames."""
        places = [place // self._depth for place in plan.frame_places[:: self._depth]]
        return self._parked().select(places, self._depth)

    def _parked(self) -> VisionEmbeddings:
        assert self.embeddings is not None
        return self.embeddings

    def encode(self, reader: VideoReader | None) -> Generator[Event, None, None]:
        """Decode and encode the candidates unless that was done; their embeddings are parked on the host."""
        if self.embeddings is not None and self.embeddings.complete:
            return
        assert reader is not None
        plan, spec = self._plan, self._model.spec
        run_config = replace(plan.run_config, frames=plan.run_config.candidate_frames)
        tokens = spec.visual_tokens(run_config.frames, run_config.height, run_config.width)
        all_frames = replace(
            plan, run_config=run_config, indices=plan.candidates, timestamps_seconds=plan.candidate_seconds,
            visual_tokens=tokens,
        )  # fmt: skip
        no_text = TextSegment(())
        prefill = Prefill(self._model, self._kernel, run_config.prefill_chunk)
        runner = PromptRunner(self._model, all_frames, (no_text, no_text), prefill, self._stages)
        self.embeddings = VisionEmbeddings.park(tokens, self._model)
        yield from runner.encode_video(reader, streaming=False, parked=self.embeddings)
        self.video_seconds = runner.video_seconds

    def _plan_of(self, slices: Sequence[int]) -> Plan:
        """Return the plan with the frames of some slices."""
        plan, times = self._plan, self._parked().times
        places = [place * self._depth + number for place in slices for number in range(self._depth)]
        last = len(plan.candidates) - 1
        run_config = replace(plan.run_config, frames=len(places))
        visual = self._model.spec.visual_tokens(len(places), run_config.height, run_config.width)
        return replace(
            plan,
            run_config=run_config,
            indices=tuple(plan.candidates[min(place, last)] for place in places),
            timestamps_seconds=tuple(times[place] for place in places),
            candidate_seconds=tuple(times),
            frame_places=tuple(places),
            visual_tokens=visual,
            prompt_tokens=plan.prompt_tokens - plan.visual_tokens + visual,
        )

    def _scores(self, asked: QuestionTokens) -> Generator[Event, None, list[float]]:
        """Return the score of every slice; only the states of one part at a time are on the device."""
        model, run_config, slices = self._model, self._plan.run_config, self._parked().slices
        layer, spec = self._layer, model.spec
        scores, done = [0.0] * slices, 0
        tokens = scoring_tokens(spec, run_config, len(asked.prompt.head) + len(asked.prompt.tail))
        with self._stages.phase("prefill"):
            cache = make_cache(replace(spec, layers=layer), tokens, model.dtype, model.device)
            shape = (cache.capacity, spec.kv_heads, spec.head_dim)
            states = ProbedStates(torch.empty(shape, dtype=model.dtype, device=model.device), asked.count)
        probe = AttentionProbe.of(model, layer, states)
        prefill = Prefill(probe, self._kernel, run_config.prefill_chunk)
        yield StageStarted("focus", slices)
        for part in interleaved(slices, scored_slices(spec, run_config)):
            cache.truncate(0)
            states.begin(asked.count)
            plan = replace(self._plan_of(part), subtitles=None)  # the question alone ranks pictures
            layout = layout_of(asked.prompt, plan, self._loaded)
            runner = PromptRunner(probe, plan, layout, prefill, self._stages, self.selected(plan), row=cache)
            for _ in runner.push_prompt(None):
                self._stages.stop_if_cancelled("while frames were selected")
            with self._stages.phase("prefill"):
                for _ in prefill.flush(cache):
                    pass
                attention = on_host(states.attention())
            for place, rows in zip(part, slice_rows(layout, plan.visual_tokens // len(part)), strict=True):
                scores[place] = sum(attention[rows]) * len(part)
            done += len(part)
            yield StageProgress("focus", done, slices)
        return scores


def nearest_slices(seconds: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Return a slice for each of the `wanted` times, all different and ascending, as near as that allows.

    Both are mean times, ascending. Where more are wanted than there are slices, all of these are returned.
    """
    chosen, count = list[int](), min(len(wanted), len(seconds))
    for number, moment in enumerate(wanted[:count]):
        low = chosen[-1] + 1 if chosen else 0
        high = len(seconds) - (count - number)  # those after it need a slice each
        after = bisect_left(seconds, moment, low, high)
        is_before = after > low and moment - seconds[after - 1] <= seconds[after] - moment
        chosen.append(after - 1 if is_before else after)
    return tuple(chosen)


def slice_rows(layout: Sequence[Segment], slice_tokens: int) -> list[slice]:
    """Return the rows of each temporal slice in a prompt."""
    rows, start = list[slice](), 0
    for segment in layout:
        if isinstance(segment, TextSegment):
            start += len(segment.ids)
            continue
        bounds = range(start, start + (segment.slices + 1) * slice_tokens, slice_tokens)
        rows += [slice(*pair) for pair in pairwise(bounds)]
        start = bounds[-1]
    return rows


def selection_note(selection: SliceSelection, frames_per_slice: int, last_seconds: float) -> str:
    """Return what was looked at and what is read, with the parts of the video that the question points to.

    The last frame is at `last_seconds`.
    """
    all_frames, read = (len(many) * frames_per_slice for many in (selection.seconds, selection.chosen))
    if not selection.scores:
        own = f"read the {read} nearest to the plan's own frames"
        return f"looked at {all_frames} frames, {own}: the question is about the whole"
    found = find_moments(selection.scores, selection.seconds, _NAMED, last_seconds)
    moments = sorted(found, key=lambda one: one.start_seconds)
    times = [f"{format_timestamp(one.start_seconds)}-{format_timestamp(one.end_seconds)}" for one in moments]
    return f"looked at {all_frames} frames, read the {read} that the question points to (most to {', '.join(times)})"
