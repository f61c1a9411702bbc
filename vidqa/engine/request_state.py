"""The state of one request from its plan to its answer, and what the next request can reuse of it."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from vidqa.config import EngineConfig
from vidqa.devices.device import reread
from vidqa.engine.timers import Clock, flat_mapped
from vidqa.errors import UsageError, VideoNotFound
from vidqa.events import Degraded, Event, Noted
from vidqa.models.registry import Checkpoint
from vidqa.planner import calibration
from vidqa.planner.budget import budget_bytes
from vidqa.planner.candidate_frames import may_focus
from vidqa.planner.explain import sampling_gap_note, subtitle_note
from vidqa.planner.fallback import MAX_STEPS, gave_up, lower
from vidqa.planner.latency import estimate_seconds
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import PlanningProblem, cpu_threads, speed_of, with_cpu_threads
from vidqa.planner.question_scope import asks_about_whole
from vidqa.planner.subtitle_budget import cues_in_range
from vidqa.types import Answer, FinishReason, Plan, Request, VideoInfo
from vidqa.utils.metrics import MemoryUse, Timing
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.picture_folder import file_identity
from vidqa.video.reader import check_file, never
from vidqa.video.subtitle_files import subtitle_identity

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker
    from vidqa.engine.attempt import Attempt
    from vidqa.engine.detokenizer import AnswerState
    from vidqa.engine.frame_focus import QuestionTokens
    from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
    from vidqa.engine.prompt import PromptTokens
    from vidqa.models.loader import Loaded

_FEWEST_DECODED = 4  # fewer tokens say little about the speed of decoding
Result = TypeVar("Result")
VideoKey = tuple[object, ...]


def video_cache_key(request: Request) -> VideoKey:
    """Return the identities of file and subtitles and the sampling options: equal for requests that see the same.

    The first item alone is equal for requests about the same part of the same pictures.
    """
    sampling = (request.frames, request.fps, request.size, request.sample, request.focus)
    return (_part_key(request), *sampling, *subtitle_identity(request.video, request.subs))


def _part_key(request: Request) -> VideoKey:
    """Return the identity of a request's pictures, and the part of them that it is about; raises VideoNotFound."""
    try:
        identity = file_identity(request.video)
    except OSError as error:  # its frames may have been decoded before
        raise VideoNotFound(f"There is no video {request.video}: {error.strerror}.", "Check the path.") from error
    if request.timestamps and os.path.isfile(request.timestamps):  # if it is gone, opening the video says so
        identity += file_identity(request.timestamps)
    part = (request.start_seconds, request.end_seconds, request.stream, request.picture_fps)
    return os.path.realpath(request.video), *identity, *part


@dataclass(slots=True)
class RequestState:
    """One request: its plan, what is cached of its video, its answer so far, and what was degraded."""

    request: Request
    video_key: VideoKey
    video: VideoInfo
    checkpoint: Checkpoint
    problem: PlanningProblem
    plan: Plan
    vision_embeddings: "VisionEmbeddings | None" = None
    cached_prompt: "CachedPrompt | None" = None
    dropped_turns: int = 0
    phase: str = "load"
    answer: "AnswerState | None" = None
    load_seconds: float = 0.0
    open_seconds: float = 0.0  # of opening the video and planning
    clock: Clock = field(default_factory=Clock)
    degraded: list[str] = field(default_factory=list)
    notes: list[Noted] = field(default_factory=list)  # that still hold
    shown_notes: set[str] = field(default_factory=set)
    out_of_domain: bool = False  # whether the warning of it was given

    def set_phase(self, phase: str) -> None:
        """Record the current phase, for the message if it fails."""
        self.phase = phase

    def take_caches(self, attempt: "Attempt") -> None:
        """Take over the embeddings and the cached prompt that an attempt left."""
        self.vision_embeddings, self.cached_prompt = attempt.vision_embeddings, attempt.cached_prompt

    def note(self, *notes: Noted) -> Iterator[Event]:
        """Record notes and yield them; the same text once only."""
        for note in notes:
            if all(note.text != one.text for one in self.notes):
                self.notes.append(note)
            if note.text not in self.shown_notes:
                self.shown_notes.add(note.text)
                yield note

    def with_each_note_once(self, events: Generator[Event, None, Result]) -> Generator[Event, None, Result]:
        """Pass an attempt's events on without the notes that were given before; return what the attempt returns."""
        return flat_mapped(events, lambda event: self.note(event) if isinstance(event, Noted) else (event,))

    def first_notes(self) -> Iterator[Noted]:
        """Yield what the user should know before the answer: dropped turns, the device's notes, sparse frames."""
        return (Noted(text, "plan") for text in self._first_texts())

    def _first_texts(self) -> Iterator[str]:
        if self.dropped_turns:
            yield (
                f"the conversation outgrew its {self.plan.kv_capacity_tokens:,} planned tokens: the oldest "
                f"{self.dropped_turns} of its questions and answers are no longer remembered"
            )
        if self.cached_prompt is None and not self.plan.candidates:  # else they follow the selection
            yield from subtitle_note(self.plan)
        yield from self.problem.device.notes
        yield from sampling_gap_note(self.plan, self.request)

    def use_signal(self, signal: ChangeSignal, scan_seconds: float) -> None:
        """Plan again with what a scan of the video found, and the time that it took. Raises DoesNotFit."""
        self._replan(replace(self.problem, signal=signal, scan_seconds=scan_seconds))

    def replan_if_changed(self, config: EngineConfig) -> None:
        """Make a new plan if the old one no longer fits, or if the device's speed was measured. Raises DoesNotFit.

        Other processes may have taken memory since the plan was made.
        """
        device = with_cpu_threads(reread(self.problem.device), config)
        budget, speed = budget_bytes(device, config), speed_of(device, config, self.problem.model)
        if budget < self.plan.required_bytes or speed.measured != self.problem.speed.measured:
            self._replan(replace(self.problem, device=device, budget_bytes=budget, speed=speed))

    def replan_attention(self, loaded: "Loaded", config: EngineConfig) -> Iterator[Event]:
        """Plan with the fastest attention kernel that runs on the device, if it is not the expected one."""
        if config.attention != "auto" or self.cached_prompt is not None:
            return
        from vidqa.models.attention.selector import HeadLayout, select_kernel

        model = loaded.model
        *failed, kernel = select_kernel(HeadLayout.of(model.spec), str(model.device), model.dtype)
        if kernel.name != self.plan.run_config.attention:
            why = "; ".join(f"{one.name}: {one.reason}" for one in failed)
            yield from self.note(Noted(f"attention runs by the {kernel.name} kernel ({why})"))
            problem = replace(self.problem, config=replace(self.problem.config, attention=kernel.name))
            self._replan(problem.constrained_to(loaded.weights, loaded.placement))

    def plan_for(self, prompt: "PromptTokens", loaded: "Loaded") -> Plan:
        """Return the plan with the prompt's exact length; plan anew if its template is longer than expected."""
        prompt_tokens = len(prompt.head) + len(prompt.tail)
        run_config = self.plan.run_config
        if self.cached_prompt is None and prompt_tokens > run_config.text_tokens - run_config.subtitle_tokens:
            problem = replace(self.problem, text_tokens=prompt_tokens)
            self._replan(problem.constrained_to(loaded.weights, loaded.placement))
        return self.plan_with(prompt, loaded)

    def plan_with(self, prompt: "PromptTokens", loaded: "Loaded") -> Plan:
        """Return the plan with the prompt's exact length, and with the subtitles that fit it."""
        from vidqa.engine.prompt import fit_subtitles, with_prompt_length

        if self.cached_prompt is None and self.plan.subtitles is not None:
            self.plan = fit_subtitles(prompt, self.plan, cues_in_range(self.video, self.request), loaded)
        return with_prompt_length(prompt, self.plan, loaded)

    def _replan(self, problem: PlanningProblem) -> None:
        self.problem, self.plan = problem, plan_video(problem)

    def lower_plan(self, config: EngineConfig) -> Degraded:
        """Take the next smaller plan after the current phase ran out of memory; raises DoesNotFit if there is none.

        Vision embeddings, and notes on the frames, are retained if the new plan has the same frames, size and
        precision.
        """
        from vidqa.devices.torch_device import release_cached_memory

        self.cached_prompt = None
        release_cached_memory()
        device, budget = with_cpu_threads(reread(self.problem.device), config), self.problem.budget_bytes
        with suppress(UsageError):  # nothing is free: the smaller plan is still worth a try
            budget = min(budget, budget_bytes(device, config))
        problem = replace(self.problem, device=device, budget_bytes=budget)
        if len(self.degraded) == MAX_STEPS:
            raise gave_up(problem, self.plan, self.phase)
        lowered = lower(problem, self.plan, self.phase)
        complete = self.vision_embeddings is not None and self.vision_embeddings.complete
        if not complete or frames_of(self.plan) != frames_of(lowered.plan):
            self.vision_embeddings = None
        kept = ("request", "frames") if self.vision_embeddings else ("request",)
        self.notes = [note for note in self.notes if note.about in kept]
        self.problem, self.plan = lowered.problem, lowered.plan
        self.degraded.append(f"{self.phase} ran out of memory: {lowered.step}")
        return Degraded(self.phase, lowered.step, lowered.plan)

    def memory_use(self, loaded: "Loaded", tracker: "Tracker", kv_bytes: int, runtime_bytes: int) -> MemoryUse:
        """Return the memory that the request took; `runtime_bytes` is the process's where the tracker has none."""
        return MemoryUse(
            weights_bytes=loaded.model.weights_bytes,
            kv_bytes=kv_bytes,
            runtime_bytes=tracker.runtime_bytes or runtime_bytes,
            measured_peak_bytes=tracker.process_peak_bytes(),
            host_peak_bytes=tracker.host_peak_bytes(),
            other_bytes=reread(self.problem.device).other_bytes,
            phases=tracker.phases,
            tensor_peak_bytes=tracker.tensor_peak_bytes,
        )

    def remember_peaks(self, plan: Plan, memory: MemoryUse) -> None:
        """Store the memory that a plan predicted and what was measured, for the next plan on this machine.

        On CUDA it is the process's memory on the device; elsewhere its tensors, which alone are predicted there.
        """
        device = self.problem.device
        planned, measured, runtime = plan.predicted_peak_bytes, memory.measured_peak_bytes, memory.runtime_bytes or None
        if device.kind != "cuda":
            if memory.tensor_peak_bytes is None:
                return
            planned, measured = plan.tensor_bytes, memory.tensor_peak_bytes
            runtime = runtime if self.load_seconds else None  # later it includes what earlier questions left
        calibration.remember_peaks(device, plan.model, plan.run_config.weights, planned, measured, runtime)

    def remember_times(self, plan: Plan) -> None:
        """Store the predicted and measured seconds of the stages, for the next plan of this model on this machine.

        `plan` is the one that ran: a damaged video has fewer frames than were planned.
        """
        problem, run_config, clock = self.problem, plan.run_config, self.clock
        assert self.answer is not None
        if plan.kept_tokens:  # the prefill read fewer than planned
            run_config = replace(run_config, visual_share=plan.visual_tokens / plan.video_tokens)
        predicted = estimate_seconds(replace(problem, speed=replace(problem.speed, corrections={})), run_config)
        stages = clock.video + clock.vision + clock.prefill
        measured = {
            "start": clock.first_token - stages - plan.seconds.scan_seconds,
            "video": clock.video,
            "vision": clock.vision,
            "prefill": clock.prefill,
        }
        decoded = len(self.answer.tokens) - 1  # the first token belongs to the prefill
        if decoded >= _FEWEST_DECODED:
            measured["decode"] = clock.decode / decoded * run_config.max_tokens
        key = calibration.device_key(problem.device, cpu_threads(problem.config))
        calibration.remember_times(
            key, problem.speed.measured_at, problem.model, run_config.weights,
            {stage: getattr(predicted, f"{stage}_seconds") for stage in measured}, measured,
        )  # fmt: skip

    def finished_answer(self, plan: Plan, reason: FinishReason, memory: MemoryUse) -> Answer:
        """Return the answer, with the plan that ran."""
        assert self.answer is not None
        clock = self.clock
        return Answer(
            text=self.answer.text,
            finish_reason=reason,
            question=self.request.question,
            video=self.video,
            plan=plan,
            timing=Timing(
                load_seconds=self.load_seconds,
                video_seconds=clock.video,
                vision_seconds=clock.vision,
                prefill_seconds=clock.prefill,
                first_token_seconds=clock.first_token,
                decode_seconds=clock.decode,
                tokens=len(self.answer.tokens),
                open_seconds=self.open_seconds,
            ),
            memory=memory,
            notes=tuple(note.text for note in self.notes),
            degraded=tuple(self.degraded),
            out_of_domain=self.vision_embeddings.out_of_domain if self.vision_embeddings else None,
        )


def frames_of(plan: Plan) -> tuple[object, ...]:
    """Return what a plan's vision embeddings follow from, within one part of a video."""
    run_config = plan.run_config
    pruning = (run_config.visual_share, run_config.drop_repeats)
    return plan.candidates or plan.indices, run_config.height, run_config.width, run_config.dtype, *pruning


def ran_out_of_memory(state: RequestState, attempt: Generator[Event, None, object]) -> Generator[Event, None, bool]:
    """Run an attempt; return whether it ran out of memory. What it held is free then."""
    state.set_phase("load")
    try:
        yield from attempt
    except Exception as error:
        from vidqa.devices.torch_device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return True
    return False


@dataclass(slots=True)
class RequestCaches:
    """The last question and the last search, with what they left in memory; all frames of both are encoded."""

    question: RequestState | None = None
    search: RequestState | None = None

    def keep(self, state: RequestState, *, searched: bool) -> None:
        """Keep what a question, or a search (`searched`), left, if it encoded all frames."""
        if state.vision_embeddings is None or not state.vision_embeddings.complete:
            return
        if searched:
            self.search = state
        else:
            self.question = state

    def embedding_bytes(self, *others: RequestState) -> int:
        """Return the bytes of all vision embeddings on the host, also of `others`; shared ones count once."""
        states = (*others, *filter(None, (self.question, self.search)))
        found = {id(one): one.rows.nbytes for state in states if (one := state.vision_embeddings) is not None}
        return sum(found.values())


def resume_from(last: RequestState | None, request: Request, loaded: "Loaded | None") -> RequestState | None:
    """Return a state that reuses the last request's caches; None if the frames differ or the cache is too small.

    The oldest turns of the conversation are dropped where it outgrew the cache. Raises VideoError children if the file
    is gone.
    """

    if last is None or loaded is None:
        return None
    check_file(request.video)
    if video_cache_key(request) != last.video_key or last.cached_prompt is None or last.vision_embeddings is None:
        return None
    if not last.plan.candidates and may_focus(request) and not may_focus(last.request):
        return None  # this question may select frames, for which that one encoded no candidates
    filled = min(last.vision_embeddings.filled, last.plan.visual_tokens)  # there may be more candidates
    room = last.cached_prompt.cache.capacity - filled - request.max_tokens
    shorter = request
    while (tokens := _text_tokens(shorter, last.plan, loaded)) > room and shorter.history:
        shorter = replace(shorter, history=shorter.history[1:])
    if tokens > room:
        return None
    run_config = replace(last.plan.run_config, max_tokens=request.max_tokens)
    plan = replace(last.plan, run_config=run_config, prompt_tokens=last.plan.visual_tokens + tokens)
    return RequestState(
        shorter, last.video_key, last.video, last.checkpoint, replace(last.problem, request=shorter), plan,
        last.vision_embeddings, last.cached_prompt, len(request.history) - len(shorter.history),
    )  # fmt: skip


def prompt_of(request: Request, loaded: "Loaded", stopped: Callable[[], bool] = never) -> "PromptTokens":
    """Return a request's token ids around the video; raises Interrupted soon after `stopped` returns true."""
    from vidqa.engine.prompt import build_prompt

    return build_prompt(loaded, request.question, request.system, request.history, stopped)


def asked_tokens(
    request: Request, plan: Plan, loaded: "Loaded", stopped: Callable[[], bool] = never
) -> "QuestionTokens | None":
    """Return the tokens of a question that selects among a plan's candidates; None if there are none, or evenly."""
    if not plan.candidates or asks_about_whole(request.question):
        return None
    from vidqa.engine.frame_focus import question_tokens

    return question_tokens(loaded, request, stopped)


def _text_tokens(request: Request, plan: Plan, loaded: "Loaded") -> int:
    """Return the text tokens of a request's prompt; where its question selects frames, the most that there can be."""
    from vidqa.engine.prompt import layout_of, text_tokens

    prompt, spec = prompt_of(request, loaded), loaded.model.spec
    if plan.candidates:
        between = spec.slices(plan.run_config.frames) * spec.slice_text_tokens + plan.run_config.subtitle_tokens
        return len(prompt.head) + len(prompt.tail) + between
    return text_tokens(layout_of(prompt, plan, loaded))
