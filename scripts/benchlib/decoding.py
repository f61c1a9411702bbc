"""Sections about the device's limits, and decode speed relative to them and to transformers."""

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch

from benchlib.bench import Bench
from benchlib.models import short_name
from benchlib.rows import Row, Samples, seconds_row
from benchlib.runs import TimedRun, alternating, generate_endlessly
from benchlib.sections import Skipped
from benchlib.steps import greedy_steps, greedy_tokens, make_step, random_caches
from vidqa.models.loader import Loaded, weights_bytes

BATCH = 16
_FIRST_TOKENS = 4  # of a decode run, which capture and warm up


def limits(bench: Bench) -> Iterator[Row]:
    """Measure copy bandwidth and matrix rate, to which the ratios are."""
    found, sizes = bench.limits, bench.sizes
    copied = f"2 · {sizes.copied_bytes / 2**20:g} MiB / seconds of a copy on the device"
    yield Row("limits", "copy bandwidth", found.bandwidth / 1e9, "GB/s", copied, _scaled(found.bytes_per_second, 1e9))
    product = f"2 · {sizes.matrix}³ / seconds of a product in {short_name(bench.dtype)}"
    rates = _scaled(found.flops_per_second, 1e12)
    yield Row("limits", "matrix rate", found.matrix_rate / 1e12, "TFLOP/s", product, rates)


def _scaled(values: list[float], unit: float) -> Samples:
    return Samples.of([value / unit for value in values])


def read_bytes(loaded: Loaded) -> int:
    """Return the bytes of weights that a decode step reads: layers, last norm, lm_head."""
    model = loaded.model.model
    text = model.model.language_model
    return sum(weights_bytes(part) for part in (text.layers, text.norm, model.lm_head))


def decoding(section: str, model: str, weights: str = "") -> Callable[[Bench], Iterator[Row]]:
    """Return the section about one model's decode speed. nf4 needs bitsandbytes."""

    def measure(bench: Bench) -> Iterator[Row]:
        if weights and find_spec("bitsandbytes") is None:
            raise Skipped("bitsandbytes is not installed")
        loaded, sizes = bench.model(model, weights), bench.sizes
        tokens = sizes.decode_context + sizes.decode_tokens // 2
        cached = loaded.model.spec.kv_bytes_per_token(bench.dtype.itemsize) * tokens
        bound = (read_bytes(loaded) + cached) / bench.limits.bandwidth
        formula = f"({read_bytes(loaded) / 1e9:.4g} GB weights + {cached / 1e9:.4g} GB KV) / copy bandwidth"
        yield Row(section, "bandwidth bound", bound, "s", formula, note=f"{tokens} tokens cached")
        sides: dict[str, Callable[[], list[float]]] = {
            "captured": lambda: _decode_run("captured", bench, loaded, sizes.decode_tokens),
            "plain": lambda: _decode_run("plain", bench, loaded, sizes.plain_tokens),
            "eager": lambda: _decode_run("eager", bench, loaded, sizes.plain_tokens),
            "transformers": lambda: _plain_run(bench, loaded),
        }
        made = alternating(sides, min(sizes.repeats, 2))
        yield from _speed_rows(section, made, bound)

    return measure


def _decode_run(kind: str, bench: Bench, loaded: Loaded, count: int) -> list[float]:
    """Return seconds per token after a cache of the section's context, without the first tokens."""
    context, times = bench.sizes.decode_context, list[float]()
    runner = make_step(kind, loaded, random_caches(loaded, [context], count), [context])
    for _ in greedy_tokens(runner, loaded, count):
        times.append(time.perf_counter())
    return TimedRun(times[0], times, []).token_seconds[_FIRST_TOKENS:]


def _plain_run(bench: Bench, loaded: Loaded) -> list[float]:
    """Return seconds per token, without the first, of transformers' `generate` after as many ids."""
    sizes = bench.sizes
    ids = torch.randint(0, 1000, (1, sizes.decode_context), device=bench.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return generate_endlessly(loaded.model.model, inputs, sizes.plain_tokens, time.perf_counter()).token_seconds


def _joined(runs: list[list[float]]) -> list[float]:
    return [seconds for run in runs for seconds in run]


def _speed_rows(section: str, made: dict[str, list[list[float]]], bound: float) -> Iterator[Row]:
    plain = Samples.of(_joined(made["transformers"])).p50
    for side, runs in made.items():
        row = seconds_row(section, f"{side}, a token", _joined(runs))
        yield row
        token = Samples.of(_joined(runs)).p50
        yield Row(section, f"{side}, speed", 1 / token, "tokens/s", "1 / median")
        yield Row(section, f"{side}, share of the bound", bound / token, "share", "bandwidth bound / median")
        if side != "transformers":
            yield Row(section, f"{side}, times transformers", plain / token, "×", "medians of alternating runs")


def batching(bench: Bench) -> Iterator[Row]:
    """Decode 1 and 16 sequences at once with the 2B model, captured: tokens per second of all."""
    loaded, sizes, rates = bench.model("2b"), bench.sizes, dict[int, float]()
    context = sizes.decode_context // 4  # captions of clips: 16 of them in the memory of a long video
    for batch in (1, BATCH):
        runs = [_together_seconds(loaded, batch, context, sizes.decode_tokens) for _ in range(min(sizes.repeats, 3))]
        yield seconds_row("batch", f"{batch} together, a step", _joined(runs))
        rates[batch] = batch / Samples.of(_joined(runs)).p50
        yield Row(
            "batch", f"{batch} together", rates[batch], "tokens/s", f"{batch} / median step, {context} cached each"
        )
    yield Row("batch", f"{BATCH} together, times one", rates[BATCH] / rates[1], "×", "tokens a second")


def _together_seconds(loaded: Loaded, batch: int, context: int, count: int) -> list[float]:
    """Return seconds per step of `batch` sequences after caches of random keys and values."""
    caches, times = random_caches(loaded, [context] * batch, count), list[float]()
    runner = make_step("captured", loaded, caches, [context] * batch)
    for _ in greedy_steps(runner, loaded, batch, count):
        times.append(time.perf_counter())
    return TimedRun(times[0], times, []).token_seconds[_FIRST_TOKENS:]
