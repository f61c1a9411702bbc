"""From a request and a device to the planner's task: the budget, and what surrounds the tensors.

No weights, no frame, no torch. The search itself is `planner/planner.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vidqa.config import PLANNED_ONLY, EngineConfig
from vidqa.devices.host import usable_cores
from vidqa.devices.nvml import ASSUMED_CONTEXT_BYTES
from vidqa.errors import DoesNotFit, UsageError
from vidqa.models.registry import Checkpoint
from vidqa.planner.calibration import measured_runtime
from vidqa.planner.memory_model import RuntimeOverhead, rounding_bytes
from vidqa.planner.placement import weight_choices
from vidqa.planner.planner import Refused, plan_video, try_plan
from vidqa.planner.search import PlanningProblem, chunks_for
from vidqa.types import Device, Placement, Plan, Request, VideoInfo
from vidqa.utils.units import format_bytes, format_timestamp

_MIB = 2**20
# What the runtime takes before any tensor, until it was measured on this machine. CUDA: context
# and lazily loaded kernels of a PyTorch process; CPU: Python, torch and transformers imported
# (RSS 753 MiB here).
_RUNTIME_BYTES = {"cuda": ASSUMED_CONTEXT_BYTES, "mps": 256 * _MIB, "cpu": 752 * _MIB}
# What Python's libraries and the heap add beside tensors while a question runs: 36 MiB in the first one of the demo
# model, up to 21 MiB in later ones of other sizes, measured here.
_HOST_GROWTH_BYTES = 48 * _MIB
# aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize: 2 · 4096 + 8 · 16 KiB, and 32 MiB on Hopper and
# Blackwell, for each stream that cuBLAS sees: the current one, and a captured step's (engine/decode_runners.py).
_CUBLAS_BYTES = 8320 * 1024
_CUBLAS_LARGE_BYTES = 32 * _MIB
_CUBLAS_LARGE = (9, 10, 12)  # major compute capabilities
_CUBLAS_STREAMS = 2
_TURN_TOKENS = 16  # the template around one more question and answer
_TEMPLATE_TOKENS = 32  # the chat template around a question, with Qwen's default system prompt


_LEAST_SEED, _LARGEST_SEED = -(2**63), 2**64 - 1  # as torch.Generator.manual_seed takes them
_ESCAPED = 0xDC00  # a byte that is no UTF-8 in an argument is this much more (PEP 383)
_CLOSE_SECONDS = 1.0  # frames further apart than this can miss what happens between them
_FRAMES_PER_SECOND = 2


# What every face checks of a request before anything is opened: what may not be, what is said of it, and the remedy.
_LIMITS: tuple[tuple[Callable[[Request], bool], str, str], ...] = (
    (lambda asked: asked.max_tokens < 1, "--max-tokens {0.max_tokens} leaves no room for an answer.", "Use 1 or more."),
    (
        lambda asked: not 0 <= asked.temperature < float("inf"),
        "--temperature {0.temperature} is not 0 or more.", "Use 0 for the likeliest words.",
    ),
    (lambda asked: not 0 < asked.top_p <= 1, "--top-p {0.top_p} is not above 0 and at most 1.", "Use for example 0.9."),
    (
        lambda asked: asked.seed is not None and not _LEAST_SEED <= asked.seed <= _LARGEST_SEED,
        "--seed {0.seed} does not fit into 64 bits.", f"Use a number from 0 to {_LARGEST_SEED}.",
    ),
    (
        lambda asked: asked.stream is not None and asked.stream < 0,
        "--stream {0.stream} is no number of a stream.", "They count from 0.",
    ),
)  # fmt: skip


def check_request(request: Request) -> None:
    """Refuse what cannot be, before any file is opened; raises UsageError."""
    if not request.question.strip():
        raise UsageError("The question is empty.", 'Ask for example "what happens?".')
    check_limits(request)


def check_limits(request: Request) -> None:
    """Refuse what no answer can be made by; raises UsageError."""
    for breaks, what, remedy in _LIMITS:
        if breaks(request):
            raise UsageError(what.format(request), remedy)
    check_text("The question", request.question)
    check_text("The system prompt (--system)", request.system or "")


def check_text(name: str, text: str) -> None:
    """Refuse text that a tokenizer cannot take, as a command line in another encoding gives it; raises UsageError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = ord(text[error.start])
        what = f"the byte 0x{bad - _ESCAPED:02x}, which" if 0 <= bad - _ESCAPED < 256 else f"U+{bad:04X}, which"
        raise UsageError(f"{name} has {what} is no UTF-8, after {error.start} characters.", "Type it again.") from error


def check_config(config: EngineConfig) -> None:
    """Refuse to run what can only be planned; raises UsageError."""
    if config.weights in PLANNED_ONLY:
        raise UsageError(
            f"{config.weights} weights can be planned, but vidqa does not run them yet.", "Use --weights int8 or nf4."
        )


def most_text_tokens(request: Request) -> int:
    """Upper bound of the tokens around the video: byte-level BPE makes no more tokens than UTF-8 bytes."""
    said = [text for turn in request.history for text in (turn.question, turn.answer)]
    texts = (request.question, request.system or "", *said)
    return (
        _TEMPLATE_TOKENS
        + _TURN_TOKENS * len(request.history)
        + sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    )


def most_turn_tokens(request: Request) -> int:
    """Upper bound of what a later question and its answer add to a conversation."""
    return _TURN_TOKENS + len(request.question.encode("utf-8", "surrogatepass")) + request.max_tokens


def budget_bytes(device: Device, config: EngineConfig) -> int:
    """What this process may hold: what is free and what it holds already, or `--vram`, less `--reserve`.

    Raises UsageError where nothing is left.
    """
    there = device.free_bytes + device.process_bytes
    budget = (there if config.vram_bytes is None else min(config.vram_bytes, there)) - config.reserve_bytes
    if budget <= 0:
        raise UsageError(
            f"Nothing is left to plan with: {format_bytes(there)} free on {device.name}, "
            + (f"--vram {format_bytes(config.vram_bytes)}, " if config.vram_bytes is not None else "")
            + f"{format_bytes(config.reserve_bytes)} reserved.",
            "Lower --reserve, or raise --vram.",
        )
    return budget


def as_used(device: Device, config: EngineConfig) -> Device:
    """A processor at the rate of the cores that the settings leave for computing."""
    if device.kind != "cpu" or config.cpu_threads is None:
        return device
    share = min(config.cpu_threads / usable_cores(), 1.0)
    return replace(device, flops_per_second=device.flops_per_second * share)


def runtime_overhead(device: Device, video: VideoInfo) -> RuntimeOverhead:
    """The runtime's own memory on a device: as measured here before, else assumed."""
    measured = measured_runtime(device)
    context = measured or _RUNTIME_BYTES[device.kind]
    source = "measured on this machine" if measured else "assumed until measured here"
    if device.kind == "cpu":
        context, source = max(context, device.process_bytes) + _HOST_GROWTH_BYTES, _with_growth(source)
    return RuntimeOverhead(
        context_bytes=context,
        context_source=source,
        workspace_bytes=cublas_bytes(device) if device.kind == "cuda" else 0,
        allocator_bytes=rounding_bytes() if device.kind == "cuda" else 0,
        host_pixels=video.coded_width * video.coded_height if device.kind == "cpu" else 0,
    )


def cublas_bytes(device: Device) -> int:
    """What cuBLAS takes beside tensors on a GPU, in torch's allocator: a workspace for each stream that it sees."""
    large = device.compute_capability is not None and device.compute_capability[0] in _CUBLAS_LARGE
    return _CUBLAS_STREAMS * (_CUBLAS_LARGE_BYTES if large else _CUBLAS_BYTES)


def held_by_this_process(around: RuntimeOverhead, runtime_bytes: int) -> RuntimeOverhead:
    """Surroundings on a processor with what this process was just seen to hold beside its tensors."""
    source = _with_growth("measured in this process")
    return replace(around, context_bytes=runtime_bytes + _HOST_GROWTH_BYTES, context_source=source)


def _with_growth(source: str) -> str:
    return f"{source}; {format_bytes(_HOST_GROWTH_BYTES)} of it for what Python and its libraries still add"


def tasks_for(
    checkpoints: Sequence[Checkpoint], video: VideoInfo, request: Request, config: EngineConfig, device: Device
) -> list[PlanningProblem]:
    """One planner's task per model; raises UsageError for a budget of nothing, and for weights that a model has not."""
    if len(checkpoints) == 1:
        _check_stored(checkpoints[0], config)
    around, budget = runtime_overhead(device, video), budget_bytes(device, config)
    return [
        PlanningProblem(
            model=found.name,
            spec=found.spec,
            bounds=found.bounds,
            video=video,
            request=request,
            config=config,
            device=as_used(device, config),
            around=around,
            budget_bytes=budget,
            text_tokens=most_text_tokens(request),
            chunks=chunks_for(device),
            **_as_stored(found),
        )
        for found in checkpoints
    ]


def _check_stored(found: Checkpoint, config: EngineConfig) -> None:
    stored = found.spec.stored
    if stored is not None and config.weights not in (None, stored.weights):
        raise UsageError(
            f"{found.name} is stored in {stored.weights}: there are no {config.weights} weights in it.",
            "Leave --weights away, or name the unquantized checkpoint.",
        )


def _as_stored(found: Checkpoint) -> dict[str, Any]:
    """What a checkpoint that is stored quantized settles of its task: precision, and which parts have it."""
    stored = found.spec.stored
    if stored is None:
        return {}
    place = Placement(vision_quantized="vision" in stored.quantized, lm_head_quantized="lm_head" in stored.quantized)
    return {"pinned_weights": stored.weights, "pinned_placement": place}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would run now: `plan`, or why nothing fits (`refusal`, with `wanted` and `nearest` as `Refused` says).

    `task` is what was planned: of several models the chosen one's, or the first where none fits.
    """

    task: PlanningProblem
    plan: Plan | None = None
    refusal: DoesNotFit | None = None
    wanted: Plan | None = None
    nearest: Plan | None = None


def forecast(tasks: Sequence[PlanningProblem]) -> Forecast:
    """`plan_best` for a face that goes on where nothing fits. Opens no file and loads nothing."""
    found = [try_plan(task) for task in tasks]
    plans = [(place, plan) for place, plan in enumerate(found) if isinstance(plan, Plan)]
    refused = [plan for plan in found if isinstance(plan, Refused)]
    if not plans:
        first = refused[0]
        return Forecast(tasks[0], None, first.error, first.wanted, first.nearest)
    place, plan = max(plans, key=lambda planned: planned[1].score)
    if len(tasks) > 1:
        plan = replace(plan, limits=(_why_best(plan, [other for _, other in plans], refused), *plan.limits))
    return Forecast(tasks[place], plan)


def _why_best(best: Plan, plans: Sequence[Plan], refused: Sequence[Refused]) -> str:
    told = [f"{best.model} in {best.run_config.weights} is expected to answer best here ({best.score:.1f} points)"]
    told += [f"{other.model} in {other.run_config.weights}: {other.score:.1f}" for other in plans if other is not best]
    return "; ".join([*told, *(str(one.error.what) for one in refused)])


def plan_best(tasks: Sequence[PlanningProblem]) -> tuple[int, Plan]:
    """The task with the best plan, and that plan; raises the first DoesNotFit where none fits.

    Of several models the plan says why it is this one.
    """
    found = forecast(tasks)
    if found.plan is None:
        assert found.refusal is not None
        raise found.refusal
    return tasks.index(found.task), found.plan


def closer_look(plan: Plan, request: Request) -> Iterator[str]:
    """What the answer cannot have seen, and the options that look closer; nothing where frames are close enough."""
    if plan.interval_seconds <= _CLOSE_SECONDS:
        return
    start = request.start_seconds or 0.0
    end = start + plan.run_config.frames / _FRAMES_PER_SECOND
    yield (
        f"frames every {plan.interval_seconds:.1f} s: shorter events may be missed; look closer with "
        f"--start {format_timestamp(start)} --end {format_timestamp(end)}"
    )


def matrix(
    checkpoints: Sequence[Checkpoint],
    gpus: Sequence[Device],
    precisions: Sequence[str],
    video: VideoInfo,
    request: Request,
    config: EngineConfig,
) -> list[tuple[Device, list[tuple[str, str, Plan | None]]]]:
    """For every GPU the plan of each (model, weights), None where it does not fit or the card cannot run it."""
    table = []
    for device in gpus:
        row: list[tuple[str, str, Plan | None]] = []
        for found in checkpoints:
            for weights in precisions:
                row.append((found.name, weights, _cell(found, weights, video, request, config, device)))
        table.append((device, row))
    return table


def _cell(
    found: Checkpoint, weights: str, video: VideoInfo, request: Request, config: EngineConfig, device: Device
) -> Plan | None:
    """One field of the matrix; `native` weights are the card's own 16-bit type."""
    precision = weight_choices(device)[0] if weights == "native" else weights
    if precision not in weight_choices(device) or (found.spec.stored and found.spec.stored.weights != precision):
        return None
    try:
        return plan_video(*tasks_for([found], video, request, replace(config, weights=precision), device))
    except DoesNotFit:
        return None
