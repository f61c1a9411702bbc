"""The plan against the real modules: full-size models under fake tensors, every live byte counted.

Each replay runs the engine's own vision, prefill and decode steps. A plan may exceed what
the replay counts by 2 % and 2 MiB and never fall below it, and its slopes over slices,
tokens and chunk sizes must be the replay's: a constant cannot pass.
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

from tests.planner.plan_builders import SPEC_2B, SPEC_7B, made_device, made_draft, plan_of
from tests.replay import Replay, ReplayedKernels, replayed
from vidqa.devices.live_bytes import LiveBytes
from vidqa.devices.memory_tracker import TensorMeter, Tracker
from vidqa.engine.kv_cache import Storage, make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.sampler import Sampler
from vidqa.engine.static_decode_step import DecodeState, next_logits
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.engine.vision import GroupEncoder, PreparedFrame
from vidqa.models.attention import make_kernel
from vidqa.models.family import TextSegment, VisionSegment
from vidqa.models.fused_decoder import FusedDecoder, merging_bytes
from vidqa.models.spec import ModelSpec
from vidqa.models.vlm import SequenceChunk, VisionLanguageModel
from vidqa.planner.activation_memory import logits_bytes, prompt_tokens
from vidqa.planner.memory_model import kv_bytes, kv_capacity, tensor_bytes
from vidqa.planner.weight_memory import parameters, staging_bytes
from vidqa.types import Frame, Placement, RunConfig

MIB = 2**20
MODELS = {"2B": SPEC_2B, "7B": SPEC_7B}
SETUPS = (("2B", "bf16"), ("2B", "nf4"), ("7B", "bf16"), ("7B", "nf4"), ("7B", "int8"))
SHAPES = ((2, 560, 1008), (4, 560, 1008), (6, 252, 448), (8, 252, 448), (16, 252, 448), (32, 112, 140))
CHUNKS = ((1, 256), (2, 512), (8, 1024))
MOST_PASSES = 2  # a replayed prefill chunk takes a quarter of a second
HEAD = 25


class Frames:
    """Frames that are there at once, at the size that is asked for."""

    notes = ()

    def __init__(self, run_config: RunConfig) -> None:
        self._picture = np.zeros((run_config.height, run_config.width, 3), np.uint8)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            yield Frame(index, float(index), self._picture)

    def check_coverage(self, indices: Sequence[int]) -> None:
        """All were delivered."""


def run_phases(replay: Replay, run_config: RunConfig, spec: ModelSpec) -> dict[str, int]:
    """Replayed peaks per phase, by the engine's own tracker."""
    model, tracker = replay.model, Tracker(made_device(80), TensorMeter(replay.live))
    stages, kernel = (
        StageContext(tracker, Callbacks(lambda: False), PhaseTimer("replayed")),
        make_kernel(run_config.attention, torch.device("cuda")),
    )
    tail = TextSegment(tuple(range(run_config.text_tokens - HEAD)))
    layout = (TextSegment(tuple(range(HEAD))), VisionSegment(spec.slices(run_config.frames)), tail)
    prefill = Prefill(model, kernel, run_config.prefill_chunk)
    prompt = PromptRunner(model, plan_of(run_config, spec), layout, prefill, stages)
    with replay.vision_is_moved_by_hand():
        for _ in (run := prompt.run(Frames(run_config))):  # type: ignore[arg-type]
            pass
    del run
    assert prompt.cached_prompt is not None
    with tracker.phase("decode"):
        for _ in range(2):
            part = SequenceChunk(
                model.embed(torch.tensor([1])), torch.zeros(3, 1, dtype=torch.long), prompt.cached_prompt.cache
            )
            logits = model.score(model.run([part], kernel))
        del logits
    return {use.name: use.peak_bytes for use in tracker.phases}


@cache
def replayed_peaks(model: str, drafts: tuple[RunConfig, ...]) -> list[dict[str, int]]:
    """Peaks of every draft; all share the model's weights."""
    spec = MODELS[model]
    with replayed(spec, drafts[0].weights, drafts[0].placement, drafts[0].dtype) as replay:
        return [run_phases(replay, run_config, spec) for run_config in drafts]


def all_drafts(weights: str) -> tuple[RunConfig, ...]:
    """Frames, sizes and chunks across each other."""
    drafts = (
        made_draft(weights=weights, frames=frames, height=height, width=width, vision_chunk=vision, prefill_chunk=chunk)
        for frames, height, width in SHAPES
        for vision, chunk in CHUNKS
    )
    return tuple(
        run_config
        for run_config in drafts
        if prompt_tokens(SPEC_2B, run_config) <= MOST_PASSES * run_config.prefill_chunk
    )


@pytest.mark.parametrize(("model", "weights"), SETUPS)
def test_every_phase_is_planned_as_it_is_replayed(model: str, weights: str) -> None:
    drafts = all_drafts(weights)
    assert len(drafts) * len(SETUPS) >= 60
    for run_config, peaks in zip(drafts, replayed_peaks(model, drafts), strict=True):
        planned = tensor_bytes(MODELS[model], run_config)
        for phase, peak in peaks.items():
            assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, (phase, run_config)


@pytest.mark.parametrize(("model", "weights"), SETUPS)
def test_weights_are_counted_to_the_byte(model: str, weights: str) -> None:
    spec, run_config = MODELS[model], made_draft(weights=weights)
    with replayed(spec, weights) as replay:
        resting = replay.live.now
    planned = tensor_bytes(spec, run_config)["load"]
    assert planned - staging_bytes(spec, weights, "bf16", Placement()) == resting


def slope(model: str, phase: str, low: RunConfig, high: RunConfig) -> float:
    """Planned over replayed growth from one draft to another."""
    peaks = [replayed_peaks(model, (run_config,))[0][phase] for run_config in (low, high)]
    planned = [tensor_bytes(MODELS[model], run_config)[phase] for run_config in (low, high)]
    return (planned[1] - planned[0]) / (peaks[1] - peaks[0])


@pytest.mark.parametrize("model", ["2B", "7B"])
def test_slopes(model: str) -> None:
    base = made_draft(frames=48, height=252, width=448, vision_chunk=8, prefill_chunk=1024)
    pairs = {
        "slices in a group": (
            "vision",
            replace(base, vision_chunk=4, prefill_chunk=512),
            replace(base, vision_chunk=12, prefill_chunk=512),
        ),
        "pixels": ("vision", replace(base, frames=8), replace(base, frames=8, height=504, width=896)),
        "tokens": ("prefill", replace(base, frames=32), replace(base, frames=64)),  # one group needs no copy
        "prefill chunk": ("prefill", replace(base, prefill_chunk=512), base),
        "cached tokens": ("decode", replace(base, frames=16), base),
    }
    for name, (phase, low, high) in pairs.items():
        assert slope(model, phase, low, high) == pytest.approx(1, abs=0.02), name


LEVERS = (
    ("7B", "nf4", "bf16", Placement(embedding_on_host=True)),
    ("7B", "nf4", "bf16", Placement(embedding_on_host=True, vision_offloaded=True)),
    ("7B", "nf4", "bf16", Placement(vision_quantized=True, lm_head_quantized=True)),
    ("7B", "nf4", "int8", Placement()),
    ("7B", "nf4-dq", "bf16", Placement()),
    ("2B", "bf16", "int8", Placement(kv_on_host=True)),
    ("2B", "bf16", "bf16", Placement(kv_on_host=True)),
)


@pytest.mark.parametrize(("model", "weights", "kv", "placement"), LEVERS)
def test_every_lever_saves_what_the_plan_says(model: str, weights: str, kv: str, placement: Placement) -> None:
    run_config = made_draft(weights=weights, kv=kv, placement=placement, frames=6)
    (peaks,) = replayed_peaks(model, (run_config,))
    planned = tensor_bytes(MODELS[model], run_config)
    for phase, peak in peaks.items():
        assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, phase


@pytest.mark.parametrize("attention", ["efficient", "tiled"])
def test_every_rung_takes_what_the_plan_says(attention: str) -> None:
    for chunk in (64, 1024):
        run_config = made_draft(attention=attention, frames=4, prefill_chunk=chunk)
        (peaks,) = replayed_peaks("7B", (run_config,))
        planned = tensor_bytes(SPEC_7B, run_config)
        for phase, peak in peaks.items():
            assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, (phase, chunk)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    ("model", "weights", "kv", "batch"),
    [("2B", "bf16", "bf16", 1), ("7B", "bf16", "int8", 1), ("7B", "nf4", "bf16", 1), ("2B", "bf16", "int8", 4)],
)
def test_a_captured_step_takes_no_more_than_planned(model: str, weights: str, kv: str, batch: int, fused: bool) -> None:
    """An int8 cache is not copied to 16-bit as a whole: a layer's would be 16 MiB here."""
    spec, cuda = MODELS[model], torch.device("cuda")
    run_config = made_draft(weights=weights, kv=kv, batch=batch, frames=96, height=252, width=448)
    with replayed(spec, weights) as replay:
        decoder = replay.model.language_model
        merged = (
            replay.model.with_fused(FusedDecoder.of(decoder, ReplayedKernels, lambda: None)) if fused else replay.model
        )
        storage = Storage.allocate(
            spec, kv_capacity(spec, run_config), merged.dtype, cuda, sequences=batch, quantized=kv == "int8"
        )
        decode_state = DecodeState.of([1000] * batch, [1000] * batch, cuda)
        tokens = torch.zeros(batch, dtype=torch.long, device=cuda)
        for _ in range(2):
            replay.live.reset()
            logits = next_logits(merged, merged.embed(tokens), storage, decode_state, storage.capacity)
            tokens = Sampler(0, 1, 0).choose(logits, tokens)
            del logits
        planned = tensor_bytes(spec, run_config)["decode"]
        assert replay.live.peak <= planned
        assert fused or planned <= replay.live.peak * 1.02 + 2 * MIB + (8 * MIB if weights != "bf16" else 0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sampling_takes_no_more_than_planned(temperature: float) -> None:
    run_config = made_draft(batch=16, sampled=temperature > 0)
    live = LiveBytes("cuda")
    with FakeTensorMode(), live:
        logits = torch.empty(16, SPEC_2B.vocabulary, device="cuda")
        Sampler(temperature, 0.9, 0).choose(logits, torch.empty(16, device="cuda"))
    assert live.peak <= logits_bytes(SPEC_2B, run_config) + MIB


def test_merging_projections_takes_what_it_says() -> None:
    with replayed(SPEC_2B, "bf16") as replay:
        text, resting = replay.model.language_model, replay.live.now
        replay.live.reset()
        FusedDecoder.of(text, ReplayedKernels, lambda: None)
        assert replay.live.now == resting
        assert replay.live.peak - resting == 2 * 8960 * 1536 * 2  # gate and up
        assert merging_bytes(text) == (2 * 8960 + (12 + 2 * 2) * 128) * 1536 * 2  # what goes back to the allocator too


class Crossings(TorchDispatchMode):
    """What crosses between host and device: (type, values) of each copy. None of them may need a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        target, source = (
            (args[0], args[1]) if func is torch.ops.aten.copy_.default else (result, args[0] if args else 0)
        )
        copies = func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
        if copies and target.device != source.device:
            assert target.is_contiguous() and source.is_contiguous() and target.dtype == source.dtype
            self.seen.append((source.dtype, source.numel()))
        return result


def test_frames_cross_as_bytes() -> None:
    spec, cuda = SPEC_2B, torch.device("cuda")
    with FakeTensorMode(), Crossings() as crossings:
        encoder = GroupEncoder(VisionLanguageModel(None, spec, cuda, torch.bfloat16, 0), 2)
        for _ in range(4):
            encoder.push(PreparedFrame(torch.empty(3, 56, 84, dtype=torch.uint8), 0.0))
        patches = encoder._patches()
    assert patches.device.type == "cuda" and patches.shape == (2, 4 * 6, 1176)
    pixels = [count for dtype, count in crossings.seen if dtype == torch.uint8]
    assert pixels == [4 * 3 * 56 * 84]
    assert sum(count for dtype, count in crossings.seen if dtype != torch.uint8) == 2 * 3  # means and deviations


def test_a_cache_on_the_host_is_copied_without_buffers() -> None:
    """Each copy between host and device is one run of bytes of one type: CUDA needs no buffer for it."""
    cuda, seen = torch.device("cuda"), []
    for quantized in (False, True):
        with FakeTensorMode(), Crossings() as crossings:
            cache = make_cache(SPEC_2B, 600, torch.bfloat16, cuda, quantized=quantized, on_host=True)
            states = torch.empty(100, 2, 128, dtype=torch.bfloat16, device=cuda)
            for _ in range(2):
                cache.write(0, states, states)
                cache.advance(100)
        seen.append(crossings.seen)
    for crossed, dtype in zip(seen, (torch.bfloat16, torch.int8), strict=True):  # two parts of two heads out and in
        out, first, second = [(dtype, 100 * 128)] * 4, [(dtype, 100 * 128)] * 4, [(dtype, 200 * 128)] * 4
        assert crossed == [*out, *first, *out, *second]


@pytest.mark.parametrize("model", ["2B", "7B"])
def test_eight_and_768_frames_differ_by_the_cache_alone(model: str) -> None:
    """Neither pixels nor embeddings nor scores pile up; with few layers the cache is small, and the test strict."""
    spec = replace(MODELS[model], layers=4)
    few, many = (
        made_draft(frames=frames, height=168, width=168, vision_chunk=4, prefill_chunk=128) for frames in (8, 768)
    )
    with replayed(spec, "bf16") as replay:
        low, high = (max(run_phases(replay, run_config, spec).values()) for run_config in (few, many))
    assert high - low == pytest.approx(kv_bytes(spec, many) - kv_bytes(spec, few), rel=0.02)


@pytest.mark.parametrize(("model", "weights"), [("2B", "fp16"), ("7B", "nf4"), ("7B", "int8")])
def test_float16_is_planned_with_its_float32_residual_streams(model: str, weights: str) -> None:
    shapes = ((2, 560, 1008, 2, 512), (4, 560, 1008, 8, 1024), (6, 252, 448, 1, 256), (32, 112, 140, 8, 1024))
    drafts = tuple(
        made_draft(
            weights=weights, dtype="fp16", kv="fp16", frames=frames, height=height, width=width, vision_chunk=vision,
            prefill_chunk=chunk,
        )
        for frames, height, width, vision, chunk in shapes
    )  # fmt: skip
    for run_config, peaks in zip(drafts, replayed_peaks(model, drafts), strict=True):
        planned = tensor_bytes(MODELS[model], run_config)
        narrow = tensor_bytes(MODELS[model], replace(run_config, dtype="bf16", kv="bf16"))
        for phase, peak in peaks.items():
            assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, (phase, run_config)
        assert weights == "int8" or any(narrow[phase] < peak for phase, peak in peaks.items())  # float32 is seen


@pytest.mark.parametrize("chunk", [3, 7])
def test_a_tiny_chunk_is_less_than_its_logits(chunk: int) -> None:
    run_config = made_draft(frames=2, height=28, width=56, text_tokens=30, prefill_chunk=chunk)
    (peaks,) = replayed_peaks("2B", (run_config,))
    planned = tensor_bytes(SPEC_2B, run_config)
    for phase, peak in peaks.items():
        assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, phase


def test_parameters_are_those_of_the_paper() -> None:
    # 2B: 1.54 B language model and 665 M vision tower; 7B: 7.6 B and 676 M (Qwen2-VL's checkpoints).
    assert parameters(SPEC_2B) == 2_208_985_600
    assert parameters(SPEC_7B) == 8_291_375_616
