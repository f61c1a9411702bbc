"""Planned memory against the real modules under fake tensors, with every live byte counted.

Each replay runs the engine's vision, prefill and decode steps on modules of full width. A plan may exceed the replayed
bytes by 2 % and 2 MiB and never fall below them, and both must grow alike with slices, tokens and chunks. Most replays
have 4 layers: what a plan may exceed is less then, so they are the stricter test and take a seventh of the time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.planner.plan_builders import SPEC_2B, SPEC_7B, made_device, made_run_config, plan_of
from tests.replay import Replay, ReplayedKernels, replayed
from vidqa.devices.memory_tracker import TensorMeter, Tracker
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.engine.kv_cache import Storage, make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.sampler import Sampler
from vidqa.engine.static_decode_step import DecodeState, next_logits
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.engine.vision import GroupEncoder, PreparedFrame
from vidqa.models.attention.selector import make_kernel
from vidqa.models.family import Segment, TextSegment, VisionSegment
from vidqa.models.fused_decoder import FusedDecoder, merging_bytes
from vidqa.models.spec import ModelSpec
from vidqa.models.vlm import SequenceChunk, VisionLanguageModel
from vidqa.planner.activation_memory import logits_bytes, prompt_tokens
from vidqa.planner.memory_model import kv_bytes, kv_capacity, tensor_bytes
from vidqa.planner.weight_memory import parameters, staging_bytes
from vidqa.types import Frame, Placement, RunConfig

MIB = 2**20
CUDA = torch.device("cuda")
FULL = {"2B": SPEC_2B, "7B": SPEC_7B}
SHALLOW = {name: replace(spec, layers=4, vision=replace(spec.vision, depth=4)) for name, spec in FULL.items()}
PRECISIONS = (("2B", "bf16"), ("2B", "nf4"), ("7B", "bf16"), ("7B", "nf4"), ("7B", "int8"))
SHAPES = ((2, 560, 1008), (4, 560, 1008), (6, 252, 448), (8, 252, 448), (16, 252, 448), (32, 112, 140))
CHUNKS = ((1, 256), (2, 512), (8, 1024))
MOST_PASSES = 2  # of prefill
HEAD = 25  # text tokens before the video


class BlankFrames:
    """Black frames of a run's size."""

    notes = ()

    def __init__(self, run_config: RunConfig) -> None:
        self._rgb = np.zeros((run_config.height, run_config.width, 3), np.uint8)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            yield Frame(index, float(index), self._rgb)

    def check_coverage(self, indices: Sequence[int]) -> None:
        """All were delivered."""


def segments(spec: ModelSpec, run_config: RunConfig) -> tuple[Segment, ...]:
    """Return a prompt's segments, with as much text between slices as a plan allows for; subtitles in the middle."""
    subtitles = run_config.subtitle_tokens if spec.slice_text_tokens else 0
    head, tail, lines = (
        TextSegment(tuple(range(count))) for count in (HEAD, run_config.text_tokens - HEAD - subtitles, subtitles)
    )
    slices = spec.slices(run_config.frames)
    if not spec.slice_text_tokens:
        return head, VisionSegment(slices), tail
    text = TextSegment(tuple(range(spec.slice_text_tokens)))
    rest = slices // 2
    return head, *(text, VisionSegment(1)) * (slices - rest), lines, *(text, VisionSegment(1)) * rest, tail


def run_phases(replay: Replay, run_config: RunConfig, spec: ModelSpec) -> dict[str, int]:
    """Return the replayed peaks by phase, as the engine's tracker counts them."""
    model, tracker = replay.model, Tracker(made_device(80), TensorMeter(replay.live))
    stages, kernel = (
        StageContext(tracker, Callbacks(lambda: False), PhaseTimer("replayed")),
        make_kernel(run_config.attention, CUDA),
    )
    layout = segments(spec, run_config)
    prefill = Prefill(model, kernel, run_config.prefill_chunk)
    runner = PromptRunner(model, plan_of(run_config, spec), layout, prefill, stages)
    with replay.vision_can_be_offloaded():
        for _ in (steps := runner.run(BlankFrames(run_config))):  # type: ignore[arg-type]
            pass
    del steps
    assert runner.cached_prompt is not None
    with tracker.phase("decode"):
        for _ in range(2):
            positions = torch.zeros(3, 1, dtype=torch.long)
            token = SequenceChunk(model.embed(torch.tensor([1])), positions, runner.cached_prompt.cache)
            logits = model.score(model.run([token], kernel))
        del logits
    return {use.name: use.peak_bytes for use in tracker.phases}


@cache
def replayed_peaks(spec: ModelSpec, run_configs: tuple[RunConfig, ...]) -> list[dict[str, int]]:
    """Return the peaks of every run; all use the weights of the first."""
    first = run_configs[0]
    with replayed(spec, first.weights, first.placement, first.dtype, first.device) as replay:
        return [run_phases(replay, run_config, spec) for run_config in run_configs]


def check_plans(spec: ModelSpec, run_configs: tuple[RunConfig, ...]) -> None:
    """Assert that the plan of every run holds its replay, and exceeds it by at most 2 % and 2 MiB."""
    for run_config, peaks in zip(run_configs, replayed_peaks(spec, run_configs), strict=True):
        planned = tensor_bytes(spec, run_config)
        assert set(peaks) == {"vision", "prefill", "decode"}
        for phase, peak in peaks.items():
            assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, (phase, run_config)


def grid(weights: str) -> tuple[RunConfig, ...]:
    """Return every combination of frames, sizes and chunks of few prefill passes."""
    run_configs = (
        made_run_config(
            weights=weights, frames=frames, height=height, width=width, vision_chunk=vision, prefill_chunk=chunk
        )
        for frames, height, width in SHAPES
        for vision, chunk in CHUNKS
    )
    return tuple(one for one in run_configs if prompt_tokens(SPEC_2B, one) <= MOST_PASSES * one.prefill_chunk)


@pytest.mark.parametrize("depth", ["4 layers", pytest.param("all layers", marks=pytest.mark.long)])
@pytest.mark.parametrize(("model", "weights"), PRECISIONS)
def test_every_phase_is_planned_as_it_is_replayed(model: str, weights: str, depth: str) -> None:
    run_configs = grid(weights)
    assert len(run_configs) * len(PRECISIONS) >= 60
    check_plans((SHALLOW if depth == "4 layers" else FULL)[model], run_configs)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("model", "weights"), [("2B", "int8"), ("2B", "int4"), ("7B", "int4")])
def test_small_weights_of_a_cpu_are_planned_as_they_are_replayed(model: str, weights: str, dtype: str) -> None:
    shapes = ((2, 560, 1008, 2, 512), (4, 560, 1008, 8, 1024), (6, 252, 448, 1, 256), (32, 112, 140, 8, 64))
    run_configs = tuple(
        made_run_config(
            weights=weights, dtype=dtype, kv=dtype, device="cpu", frames=frames, height=height, width=width,
            vision_chunk=vision, prefill_chunk=chunk,
        )
        for frames, height, width, vision, chunk in shapes
    )  # fmt: skip
    check_plans(SHALLOW[model], run_configs)


@pytest.mark.parametrize(("model", "weights"), [("2B", "int8"), ("7B", "int4")])
def test_small_weights_of_a_cpu_to_the_byte(model: str, weights: str) -> None:
    with replayed(FULL[model], weights, kind="cpu") as replay:
        resting = replay.live.now
    planned = tensor_bytes(FULL[model], made_run_config(weights=weights, device="cpu"))["load"]
    assert planned - staging_bytes(FULL[model], weights, "bf16", Placement()) == resting


@pytest.mark.parametrize(("model", "weights"), PRECISIONS)
def test_all_layers_are_planned_and_weights_to_the_byte(model: str, weights: str) -> None:
    spec = FULL[model]
    run_config = made_run_config(weights=weights, frames=6, height=252, width=448, vision_chunk=2)
    with replayed(spec, weights) as replay:
        resting = replay.live.now
    planned = tensor_bytes(spec, run_config)["load"]
    assert planned - staging_bytes(spec, weights, "bf16", Placement()) == resting
    check_plans(spec, (run_config,))


@pytest.mark.parametrize("model", ["2B", "7B"])
def test_slopes(model: str) -> None:
    base = made_run_config(frames=48, height=252, width=448, vision_chunk=8, prefill_chunk=1024)
    small = replace(base, prefill_chunk=512)
    pairs = {
        "slices in a group": ("vision", replace(small, vision_chunk=4), replace(small, vision_chunk=12)),
        "pixels": ("vision", replace(base, frames=8), replace(base, frames=8, height=504, width=896)),
        "tokens": ("prefill", replace(base, frames=32), replace(base, frames=64)),  # one group needs no copy
        "prefill chunk": ("prefill", small, base),
    }
    check_slopes(SHALLOW[model], pairs)
    all_layers = replace(SHALLOW[model], layers=FULL[model].layers)  # with few layers scores outgrow the cache
    check_slopes(all_layers, {"cached tokens": ("decode", replace(base, frames=16), replace(base, frames=32))})


def check_slopes(spec: ModelSpec, pairs: dict[str, tuple[str, RunConfig, RunConfig]]) -> None:
    """Assert that the planned growth of a phase from one run to another is the replayed one within 2 %."""
    run_configs = tuple(dict.fromkeys(one for _, *pair in pairs.values() for one in pair))
    peaks = dict(zip(run_configs, replayed_peaks(spec, run_configs), strict=True))
    for name, (phase, low, high) in pairs.items():
        grown = tensor_bytes(spec, high)[phase] - tensor_bytes(spec, low)[phase]
        assert grown / (peaks[high][phase] - peaks[low][phase]) == pytest.approx(1, abs=0.02), name


PLACEMENTS = (
    ("7B", "nf4", "bf16", Placement(embedding_on_host=True)),
    ("7B", "nf4", "bf16", Placement(embedding_on_host=True, vision_offloaded=True)),
    ("7B", "nf4", "bf16", Placement(vision_quantized=True, lm_head_quantized=True)),
    ("7B", "nf4", "int8", Placement()),
    ("7B", "nf4-dq", "bf16", Placement()),
    ("2B", "bf16", "int8", Placement(kv_on_host=True)),
    ("2B", "bf16", "bf16", Placement(kv_on_host=True)),
)


@pytest.mark.parametrize(("model", "weights", "kv", "placement"), PLACEMENTS)
def test_every_placement_saves_what_is_planned(model: str, weights: str, kv: str, placement: Placement) -> None:
    specs = FULL if placement.vision_quantized else SHALLOW  # the copy of its largest matrix is an upper bound
    check_plans(specs[model], (made_run_config(weights=weights, kv=kv, placement=placement, frames=6),))


@pytest.mark.parametrize("attention", ["efficient", "tiled"])
def test_every_attention_kernel_takes_what_is_planned(attention: str) -> None:
    few = made_run_config(attention=attention, frames=2, prefill_chunk=64)
    check_plans(SHALLOW["7B"], (few, replace(few, frames=4, prefill_chunk=1024)))


@pytest.mark.parametrize("chunk", [3, 7])
def test_a_tiny_chunk_takes_less_than_its_logits(chunk: int) -> None:
    run_config = made_run_config(frames=2, height=28, width=56, text_tokens=30, prefill_chunk=chunk)
    check_plans(SHALLOW["2B"], (run_config,))


@pytest.mark.parametrize(("model", "weights"), [("2B", "fp16"), ("7B", "nf4"), ("7B", "int8")])
def test_float16_is_planned_with_its_float32_residual_streams(model: str, weights: str) -> None:
    shapes = ((2, 560, 1008, 2, 512), (4, 560, 1008, 8, 1024), (6, 252, 448, 1, 256), (32, 112, 140, 8, 1024))
    run_configs = tuple(
        made_run_config(
            weights=weights, dtype="fp16", kv="fp16", frames=frames, height=height, width=width, vision_chunk=vision,
            prefill_chunk=chunk,
        )
        for frames, height, width, vision, chunk in shapes
    )  # fmt: skip
    spec = SHALLOW[model]
    check_plans(spec, run_configs)
    for run_config, peaks in zip(run_configs, replayed_peaks(spec, run_configs), strict=True):
        narrow = tensor_bytes(spec, replace(run_config, dtype="bf16", kv="bf16"))
        assert weights == "int8" or any(narrow[phase] < peak for phase, peak in peaks.items())  # float32 is counted


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    ("model", "weights", "kv", "batch"),
    [("2B", "bf16", "bf16", 1), ("7B", "bf16", "int8", 1), ("7B", "nf4", "bf16", 1), ("2B", "bf16", "int8", 4)],
)
def test_a_captured_step_takes_no_more_than_planned(model: str, weights: str, kv: str, batch: int, fused: bool) -> None:
    """An int8 cache is not copied to 16-bit as a whole: a layer's would be 16 MiB here."""
    spec = (FULL if batch > 1 else SHALLOW)[model]  # a batch's scores are an upper bound
    run_config = made_run_config(weights=weights, kv=kv, batch=batch, frames=96, height=252, width=448)
    with replayed(spec, weights) as replay:
        decoder = replay.model
        if fused:
            decoder = decoder.with_fused(FusedDecoder.of(decoder.language_model, ReplayedKernels, merge=True))
        capacity = kv_capacity(spec, run_config)
        storage = Storage.allocate(spec, capacity, decoder.dtype, CUDA, sequences=batch, quantized=kv == "int8")
        state = DecodeState.of([1000] * batch, [1000] * batch, CUDA)
        tokens = torch.zeros(batch, dtype=torch.long, device=CUDA)
        for _ in range(2):
            replay.live.reset()
            logits = next_logits(decoder, decoder.embed(tokens), storage, state, storage.capacity)
            tokens = Sampler(0, 1, 0).choose(logits, tokens)
            del logits
        planned = tensor_bytes(spec, run_config)["decode"]
        assert replay.live.peak <= planned
        assert fused or planned <= replay.live.peak * 1.02 + 2 * MIB + (8 * MIB if weights != "bf16" else 0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sampling_takes_no_more_than_planned(temperature: float) -> None:
    run_config = made_run_config(batch=16, sampled=temperature > 0)
    live = TensorCounter("cuda")
    with FakeTensorMode(), live:
        logits = torch.empty(16, SPEC_2B.vocabulary, device=CUDA)
        Sampler(temperature, 0.9, 0).choose(logits, torch.empty(16, device=CUDA))
    assert live.peak <= logits_bytes(SPEC_2B, run_config) + MIB


def test_merging_projections_takes_what_it_says() -> None:
    with replayed(SHALLOW["2B"], "bf16") as replay:
        text, resting = replay.model.language_model, replay.live.now
        replay.live.reset()
        FusedDecoder.of(text, ReplayedKernels, merge=True)
        assert replay.live.now == resting
        assert replay.live.peak - resting == 2 * 8960 * 1536 * 2  # gate and up
        assert merging_bytes(text) == (2 * 8960 + (12 + 2 * 2) * 128) * 1536 * 2  # what goes back to the allocator too


@pytest.mark.parametrize("model", ["2B", "7B"])
def test_eight_and_768_frames_differ_by_the_cache_alone(model: str) -> None:
    """Neither pixels nor embeddings nor scores pile up; with few layers the cache is small, and the test strict."""
    spec = replace(SHALLOW[model], layers=2, vision=replace(SHALLOW[model].vision, depth=1))
    few, many = (
        made_run_config(frames=frames, height=168, width=168, vision_chunk=4, prefill_chunk=128) for frames in (8, 768)
    )
    low, high = (max(peaks.values()) for peaks in replayed_peaks(spec, (few, many)))
    assert high - low == pytest.approx(kv_bytes(spec, many) - kv_bytes(spec, few), rel=0.02)


def test_parameters_are_those_of_the_paper() -> None:
    # 2B: 1.54 B language model and 665 M vision tower; 7B: 7.6 B and 676 M (Qwen2-VL's checkpoints).
    assert parameters(SPEC_2B) == 2_208_985_600
    assert parameters(SPEC_7B) == 8_291_375_616


class DeviceCopies(TorchDispatchMode):
    """Record (type, values) of each copy between host and device, and assert that none needs a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        in_place = func is torch.ops.aten.copy_.default
        if in_place or func is torch.ops.aten._to_copy.default:
            target, source = (args[0], args[1]) if in_place else (result, args[0])
            if target.device != source.device:
                assert target.is_contiguous() and source.is_contiguous() and target.dtype == source.dtype
                self.seen.append((source.dtype, source.numel()))
        return result


def test_frames_are_copied_to_the_device_as_bytes() -> None:
    with FakeTensorMode(), DeviceCopies() as copies:
        encoder = GroupEncoder(VisionLanguageModel(None, SPEC_2B, CUDA, torch.bfloat16, 0), 2)
        for _ in range(4):
            encoder.push(PreparedFrame(torch.empty(3, 56, 84, dtype=torch.uint8), 0.0))
        patches = encoder._patches()
    assert patches.device.type == "cuda" and patches.shape == (2, 4 * 6, 1176)
    pixels = [count for dtype, count in copies.seen if dtype == torch.uint8]
    assert pixels == [4 * 3 * 56 * 84]
    assert sum(count for dtype, count in copies.seen if dtype != torch.uint8) == 2 * 3  # means and deviations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_cache_on_the_host_is_copied_without_buffers(dtype: torch.dtype) -> None:
    """Each copy between host and device is contiguous bytes of one type: CUDA needs no buffer for it."""
    with FakeTensorMode(), DeviceCopies() as copies:
        cache = make_cache(SPEC_2B, 600, torch.bfloat16, CUDA, quantized=dtype == torch.int8, on_host=True)
        states = torch.empty(100, 2, 128, dtype=torch.bfloat16, device=CUDA)
        for _ in range(2):
            cache.write(0, states, states)
            cache.advance(100)
    written, first, second = ([(dtype, tokens * 128)] * 4 for tokens in (100, 100, 200))  # keys and values of two heads
    assert copies.seen == [*written, *first, *written, *second]
