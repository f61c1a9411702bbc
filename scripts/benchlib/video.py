"""Sections about whole videos: the vision tower, the first token, a follow-up question, and flat memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchlib.bench import Bench
from benchlib.models import prompt_around
from benchlib.rows import Row, Samples, seconds_row
from benchlib.runs import (
    Asked,
    Run,
    SyntheticReader,
    WholeCuda,
    WholeTensors,
    alternating,
    ask,
    follow_up,
    plan_for,
    run_transformers,
    seconds_of,
    synthetic_video,
)
from vidqa.memory.live_bytes import LiveBytes
from vidqa.memory.search import CHUNKS
from vidqa.models.loader import Loaded, release_cached_memory
from vidqa.models.qwen2_vl import embed_patches, encode_slices

_QUESTION = tuple(range(20, 52))  # token ids of a second question
_SPARE_TOKENS = 512


def vision(bench: Bench) -> Iterator[Row]:
    """The tower on patches that lie on the device: vidqa a group of slices at a time, transformers all at once."""
    loaded = bench.model("2b")
    for slices, (height, width) in bench.sizes.vision:
        rows, columns = height // 14, width // 14
        values = loaded.model.spec.vision.patch_values
        patches = torch.randn(slices, rows * columns, values, device=bench.device, dtype=bench.dtype)
        grid = torch.tensor([[slices, rows, columns]], device=bench.device)
        ours = lambda: _encode(loaded, patches, rows, columns)  # noqa: E731, B023
        theirs = lambda: _encode_plainly(loaded, patches, grid)  # noqa: E731, B023
        with torch.no_grad():
            difference = _difference(ours(), theirs())
        made = alternating(
            {"vidqa": lambda: seconds_of(ours, bench.device), "transformers": lambda: seconds_of(theirs, bench.device)},  # noqa: B023
            bench.sizes.repeats,
        )
        label = f"{slices} slices of {width}x{height}"
        yield from _beside("vision", label, made, f"results differ by {difference:.1e} (relative)")


@torch.no_grad()
def _encode(loaded: Loaded, patches: Tensor, rows: int, columns: int) -> Tensor:
    tower, group = loaded.model.visual, CHUNKS[0][0]
    encoded = [encode_slices(tower, embed_patches(tower, part), rows, columns) for part in patches.split(group)]
    return torch.cat(encoded).flatten(0, 1)


@torch.no_grad()
def _encode_plainly(loaded: Loaded, patches: Tensor, grid: Tensor) -> Tensor:
    output = loaded.model.model.model.visual(patches.flatten(0, 1), grid_thw=grid)
    encoded: Tensor = getattr(output, "pooler_output", output)  # older versions return the tensor itself
    return encoded


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _beside(section: str, label: str, made: dict[str, list[float]], note: str = "") -> Iterator[Row]:
    """Times of all sides, and how many times faster vidqa is than each other one."""
    for side, seconds in made.items():
        yield seconds_row(section, f"{label}, {side}", seconds)
    ours = Samples.of(made["vidqa"]).p50
    for side, seconds in made.items():
        if side != "vidqa":
            ratio = Samples.of(seconds).p50 / ours
            yield Row(section, f"{label}, times {side}", ratio, "×", "medians of alternating runs", note=note)


def first_token(name: str) -> Callable[[Bench], Iterator[Row]]:
    """The section about decoded frames to the first token, patches and all."""

    def measure(bench: Bench) -> Iterator[Row]:
        loaded, sizes = bench.model(name), bench.sizes
        height, width = sizes.frame_size
        task, plan = plan_for(loaded, sizes.frames, (height, width), 1)
        reader = SyntheticReader(synthetic_video(sizes.frames, width, height), 8)
        frames, told = reader.stacked(sizes.frames), list[Asked]()
        prompt = prompt_around(loaded.model.spec)

        def ours() -> Run:
            told.append(ask(loaded, task, plan, prompt, reader))
            return told[-1].run

        def theirs(**how: Any) -> Run:
            return run_transformers(loaded.model.model, loaded, frames, 1, **how)

        section, label = f"first-token-{name}", f"{sizes.frames} frames of {width}x{height}"
        runs = alternating({"vidqa": ours, "transformers": theirs}, min(sizes.repeats, 3))
        seconds = {side: [run.first_token_s for run in made] for side, made in runs.items()}
        clock = told[-1].clock
        stages = f"waiting for pictures {clock.video:.3f} s, vision {clock.vision:.3f} s, prefill {clock.prefill:.3f} s"
        yield from _beside(section, label, seconds, f"{plan.visual_tokens} visual tokens; last: {stages}")
        if bench.device.type == "cuda":  # as few users run it, and the fairest to their engine
            quicker = alternating({"": lambda: theirs(device=bench.device)}, min(sizes.repeats, 3))[""]
            others = {"transformers with patches made on the GPU": [run.first_token_s for run in quicker]}
            yield from list(_beside(section, label, {"vidqa": seconds["vidqa"], **others}))[1:]

    return measure


def following_up(bench: Bench) -> Iterator[Row]:
    """A second question about the same video, behind the first one's answer."""
    loaded, sizes = bench.model("2b"), bench.sizes
    height, width = sizes.frame_size
    task, plan = plan_for(loaded, sizes.follow_up_frames, (height, width), 16, _SPARE_TOKENS)
    reader = SyntheticReader(synthetic_video(sizes.follow_up_frames, width, height), 8)
    prompt = prompt_around(loaded.model.spec)
    first, second = list[float](), list[float]()
    for repeat in range(1 + min(sizes.repeats, 3)):
        one = ask(loaded, task, plan, prompt, reader)
        two = follow_up(loaded, task, one, _QUESTION)
        if repeat:
            first.append(one.run.first_token_s)
            second.append(two.run.first_token_s)
    yield seconds_row("follow-up", "first question", first, f"{plan.visual_tokens} visual tokens")
    yield seconds_row("follow-up", "second question", second, f"{len(_QUESTION)} new tokens behind a 16-token answer")
    ratio = Samples.of(second).p50 / Samples.of(first).p50
    yield Row("follow-up", "second / first", ratio, "share", "medians of the first token's time, alternating")


def flat_memory(bench: Bench) -> Iterator[Row]:
    """Peaks of a few and of many frames of one size: their difference beside the KV cache's."""
    loaded, sizes = bench.model("2b"), bench.sizes
    _peak(bench, loaded, sizes.flat_frames[0])  # libraries take their workspaces once, whatever is asked
    told = [_peak(bench, loaded, frames) for frames in sizes.flat_frames]
    (few, few_cached), (many, many_cached) = told
    for frames, (peak, cached) in zip(sizes.flat_frames, told, strict=True):
        yield Row("flat-memory", f"{frames} frames", peak / 2**20, "MiB", "peak of all tensors, weights included",
                  note=f"KV cache {cached / 2**20:.2f} MiB")  # fmt: skip
    off = abs((many - few) / (many_cached - few_cached) - 1)
    formula = f"|({many} - {few}) B / ({many_cached} - {few_cached}) B of KV cache - 1|"
    yield Row("flat-memory", "difference beside the KV cache's", off, "share", formula)


def _peak(bench: Bench, loaded: Loaded, frames: int) -> tuple[int, int]:
    """The peak of one question, and its cache's bytes. Chunks are small enough for the few frames to fill them too."""
    height, width = bench.sizes.flat_size
    task, plan = plan_for(loaded, frames, (height, width), 4, vision_chunk=2, prefill_chunk=64)
    reader, prompt = SyntheticReader(synthetic_video(frames, width, height), 8), prompt_around(loaded.model.spec)
    release_cached_memory()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        asked = ask(loaded, task, plan, prompt, reader, WholeCuda(task.device.index))
        peak = torch.cuda.max_memory_allocated()
    else:
        live = LiveBytes("cpu")
        live.count_model(loaded.model.model)
        with live:
            asked = ask(loaded, task, plan, prompt, reader, WholeTensors(live))
        peak = live.peak
    read: Any = asked.pipeline.read
    return peak, read.cache.bytes
