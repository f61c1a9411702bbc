"""Sections about prefill and the vision tower, relative to the device's matrix rate and transformers."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchlib.bench import Bench
from benchlib.models import short_name
from benchlib.rows import Row, Samples, comparison_rows, seconds_row
from benchlib.runs import alternating, seconds_of
from benchlib.steps import kernel_of
from vidqa.engine.kv_cache import make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import text_positions
from vidqa.errors import VidqaError
from vidqa.models.family import family_of
from vidqa.models.loader import Loaded
from vidqa.planner.latency import prefill_flops
from vidqa.planner.problem import CHUNKS
from vidqa.types import RunConfig

_SLOW_SECONDS = 2.0  # of a prefill: its figure needs no repeating


def prefilling(bench: Bench) -> Iterator[Row]:
    """Measure prefill of a 7B model with the engine's kernel and several chunk sizes, then with other kernels."""
    loaded, sizes = bench.model("7b"), bench.sizes
    chosen, default = kernel_of(loaded).name, _default_chunk(bench)
    shapes = [(chosen, chunk) for chunk in dict.fromkeys((default, *sizes.prefill_chunks))]
    shapes += [(kernel_name, default) for kernel_name in sizes.kernel_names if kernel_name != chosen]
    for kernel_name, chunk in shapes:
        yield from _prefill_rows(
            "prefill", bench, kernel_name, chunk, engines=(kernel_name, chunk) == (chosen, default)
        )


def compiled_prefilling(bench: Bench) -> Iterator[Row]:
    """Measure the same with compiled kernels."""
    for kernel_name in bench.sizes.compiled_kernel_names:
        yield from _prefill_rows("flex", bench, kernel_name, _default_chunk(bench), engines=False)


def _default_chunk(bench: Bench) -> int:
    """Return the planner's largest chunk, its choice where memory allows."""
    return min(CHUNKS[0][1], max(bench.sizes.prefill_chunks))


def _prefill_rows(section: str, bench: Bench, kernel_name: str, chunk: int, *, engines: bool) -> Iterator[Row]:
    loaded, tokens = bench.model("7b"), bench.sizes.prefill_tokens
    name = f"{kernel_name}, chunks of {chunk}"
    flops = prefill_flops(loaded.model.spec, _run_config(bench, tokens=tokens)).total
    try:
        seconds = _prefill_seconds(loaded, kernel_name, chunk, bench)
    except (VidqaError, RuntimeError, NotImplementedError) as error:
        if "CUDA error" in str(error):  # the device is lost to this process
            raise
        yield Row(section, name, None, "share", "", note=f"does not run: {str(error).splitlines()[0][:160]}")
        return
    middle = Samples.of(seconds).p50
    share, formula = flops / middle / bench.limits.matrix_rate, f"{flops / 1e12:.4g} TFLOP / seconds / matrix rate"
    if engines:
        yield Row(section, "the engine's choice", share, "share", formula, note=name)
    yield Row(section, name, share, "share", formula, note=f"{tokens} tokens")
    yield Row(section, f"{name}, speed", tokens / middle, "tokens/s", "tokens / median")
    yield seconds_row(section, f"{name}, time", seconds)


def _run_config(bench: Bench, *, frames: int = 0, size: tuple[int, int] = (28, 28), tokens: int = 0) -> RunConfig:
    """Return a configuration for FLOP counts: frames of size (height, width), or text only."""
    precision = short_name(bench.dtype)
    return RunConfig(precision, precision, precision, "flash", frames, *size, tokens, 1, 1, 1024)


@torch.no_grad()
def _prefill_seconds(loaded: Loaded, kernel_name: str, chunk: int, bench: Bench) -> list[float]:
    """Return seconds of the whole prompt, after a run that compiles its kernels."""
    model, tokens = loaded.model, bench.sizes.prefill_tokens
    embeddings = torch.randn(tokens, model.spec.hidden, device=model.device, dtype=model.dtype)
    cache, kernel = make_cache(model.spec, tokens, model.dtype, model.device), kernel_of(loaded, kernel_name)
    positions = text_positions(0, tokens)

    def run() -> None:
        cache.truncate(0)
        prefill = Prefill(model, kernel, chunk)
        for _ in (*prefill.push(cache, embeddings, positions), *prefill.flush(cache)):
            pass

    run()  # loads and compiles kernels
    seconds = [seconds_of(run, bench.accelerator)]
    more = min(bench.sizes.repeats, 3) - 1 if seconds[0] < _SLOW_SECONDS else 0
    return seconds + [seconds_of(run, bench.accelerator) for _ in range(more)]


def vision(bench: Bench) -> Iterator[Row]:
    """Measure the vision tower on patches on the device: vidqa by groups of slices, transformers all at once."""
    loaded = bench.model("2b")
    for label, slices, (height, width) in bench.sizes.vision:
        rows, columns = height // 14, width // 14
        values = loaded.model.spec.vision.patch_values
        patches = torch.randn(slices, rows * columns, values, device=bench.device, dtype=bench.dtype)
        grid = torch.tensor([[slices, rows, columns]], device=bench.device)
        sides = _sides(bench, loaded, patches, grid)
        with torch.no_grad():
            ours, theirs = sides["vidqa"](), sides["transformers"]()
        off = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        del ours, theirs
        timed = {side: lambda call=call: seconds_of(call, bench.accelerator) for side, call in sides.items()}
        made: dict[str, list[float]] = alternating(timed, bench.sizes.repeats)
        yield Row("vision", f"{label}: difference from transformers", off, "", "|difference| / |transformers'|")
        note = f"{slices} slices of {width}x{height}"
        yield from comparison_rows("vision", label, made, note)
        middle = Samples.of(made["vidqa"]).p50
        run_config = _run_config(bench, frames=2 * slices, size=(width, height))
        flops = family_of(loaded.model.spec).vision_flops(loaded.model.spec, run_config).total
        share, formula = flops / middle / bench.limits.matrix_rate, f"{flops / 1e12:.4g} TFLOP / seconds / matrix rate"
        yield Row("vision", f"{label}, vidqa, share of the matrix rate", share, "share", formula, note=note)
        tokens = slices * rows * columns // loaded.model.spec.vision.merge**2
        yield Row("vision", f"{label}, vidqa, speed", tokens / middle, "tokens/s", "visual tokens / median")


def _sides(bench: Bench, loaded: Loaded, patches: Tensor, grid: Tensor) -> dict[str, Callable[[], Tensor]]:
    rows, columns = (int(side) for side in grid[0, 1:])

    @torch.no_grad()
    def ours() -> Tensor:
        tower, group = loaded.model.visual, CHUNKS[0][0]
        encode = loaded.model.family.encode
        encoded = [encode(tower, part, rows, columns, lambda: None) for part in patches.split(group)]
        return torch.cat(encoded).flatten(0, 1)

    @torch.no_grad()
    def theirs() -> Tensor:
        output = loaded.model.model.model.visual(patches.flatten(0, 1), grid_thw=grid)
        encoded: Tensor = output.pooler_output
        return encoded

    return {"vidqa": ours, "transformers": theirs}
