"""Sections about the language model: the device's limits, exactness, decode, prefill and 4-bit weights."""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchlib.bench import Bench
from benchlib.models import build, copy_of, load, reduced, short_name
from benchlib.rows import Row, Samples, seconds_row
from benchlib.runs import (
    Run,
    SyntheticReader,
    alternating,
    generate,
    plan_for,
    run_transformers,
    run_vidqa,
    seconds_of,
    synthetic_video,
)
from benchlib.sections import Skipped
from vidqa.config import ATTENTION_CHOICES
from vidqa.engine.compiling import compiled_layer
from vidqa.engine.decode import decode, decode_together
from vidqa.engine.kv_cache import KVCache, Storage, make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.static_step import Layer, run_layer
from vidqa.engine.writers import CapturedWriter, EagerWriter, Writer
from vidqa.errors import VidqaError
from vidqa.memory.search import CHUNKS
from vidqa.memory.seconds import prefill_flops
from vidqa.models.attention import Kernel, make_kernel
from vidqa.models.ladder import HeadLayout, climb
from vidqa.models.loader import Loaded
from vidqa.types import Draft

BATCH = 16
_SLOW_SECONDS = 5.0  # of a prefill: its figure needs no repeating
_FIRST_TOKENS = 4  # of a decode run, which capture and warm up
_TIES = {torch.float32: 1e-4, torch.bfloat16: 0.01}  # of the logits' spread: closer than this, either may win


def limits(bench: Bench) -> Iterator[Row]:
    """The device's own copy bandwidth and matrix rate: what the ratios are to."""
    found, sizes = bench.limits, bench.sizes
    told = f"2 · {sizes.copied_bytes / 2**20:g} MiB / seconds of a copy on the device"
    yield Row("limits", "copy bandwidth", found.bandwidth / 1e9, "GB/s", told, _scaled(found.bytes_per_second, 1e9))
    told = f"2 · {sizes.matrix}³ / seconds of a product in {short_name(bench.dtype)}"
    yield Row("limits", "matrix rate", found.matrix_rate / 1e12, "TFLOP/s", told, _scaled(found.flops_per_second, 1e12))


def _scaled(values: list[float], unit: float) -> Samples:
    return Samples.of([value / unit for value in values])


def exactness(bench: Bench) -> Iterator[Row]:
    """Greedy tokens of a small model against transformers' in float32, and the captured step against the eager one."""
    sizes, device = bench.sizes, bench.device
    spec = replace(reduced("2b", 2, 1536), vocabulary=4096)
    spec = bench.spec("2b") if bench.tiny else spec
    torch.backends.cudnn.allow_tf32 = False  # transformers' patches are a convolution: it rounds them else
    oracle = build(spec, device, torch.bfloat16)  # weights that both precisions hold exactly
    for parameter in oracle.parameters():  # near zero all logits would be alike
        if parameter.dim() > 1:
            parameter.mul_(3)
    oracle = copy_of(oracle, device, torch.float32)
    reader = SyntheticReader(synthetic_video(sizes.exact_frames, 112, 112), sizes.exact_frames)
    frames, plain = reader.stacked(sizes.exact_frames), load(oracle, device, torch.float32)
    wanted = run_transformers(oracle, plain, frames, sizes.exact_tokens).tokens
    for dtype in (torch.float32, torch.bfloat16):
        ours = load(copy_of(oracle, device, dtype), device, dtype)
        task, plan = plan_for(ours, sizes.exact_frames, (112, 112), sizes.exact_tokens)
        tokens = run_vidqa(ours, task, plan, reader).tokens
        name = f"vidqa in {short_name(dtype)} against transformers in fp32"
        gap = _gap_where_they_part(plain, frames, wanted, tokens)
        yield _agreement(name, wanted, tokens, gap, _TIES[dtype])
        written = {kind: list(_tokens(_writer(kind, ours, 64), ours, sizes.exact_tokens)) for kind in _WRITERS}
        name = f"captured step against eager one in {short_name(dtype)}"
        yield _agreement(name, written["eager"], written["captured"], None, 0.0)


def _gap_where_they_part(plain: Loaded, frames: Tensor, wanted: list[int], tokens: list[int]) -> float | None:
    """How far apart the oracle's logits of both choices are where they first differ, as a share of their spread."""
    from transformers import Qwen2VLVideoProcessor

    from benchlib.runs import video_inputs

    place = next((place for place, pair in enumerate(zip(wanted, tokens, strict=True)) if pair[0] != pair[1]), None)
    if place is None:
        return None
    processor: Any = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    inputs = video_inputs(plain, processor(videos=[frames], return_tensors="pt", do_sample_frames=False))
    said = torch.tensor([wanted[:place]], dtype=torch.int64, device=plain.model.device)
    for name, fill in (("input_ids", said), ("attention_mask", said * 0 + 1), ("mm_token_type_ids", said * 0)):
        inputs[name] = torch.cat((inputs[name], fill.to(inputs[name].dtype)), dim=1)
    logits = plain.model.model(**inputs).logits[0, -1].float()
    return float((logits[wanted[place]] - logits[tokens[place]]) / (logits.max() - logits.min()))


def _agreement(name: str, wanted: list[int], tokens: list[int], gap: float | None, tie: float) -> Row:
    same = next((place for place, pair in enumerate(zip(wanted, tokens, strict=True)) if pair[0] != pair[1]), None)
    formula = "share of greedy tokens equal up to the first difference; a near tie counts as none"
    if same is None:
        return Row("exactness", name, 1.0, "", formula, note=f"{len(wanted)} tokens equal")
    note = f"{same} of {len(wanted)} tokens equal"
    if gap is None:
        return Row("exactness", name, same / len(wanted), "", formula, note=note)
    note += f", then the reference prefers its own by {gap:.2e} of the logits' spread (undecided below {tie:g})"
    return Row("exactness", name, float(gap < tie), "", formula, note=note)


_WRITERS = ("eager", "captured")


def _writer(kind: str, loaded: Loaded, context: int, room: int = 256) -> Writer:
    """A writer behind a cache that random keys and values fill: the same for every kind."""
    model = loaded.model
    cache = make_cache(model.spec, context + room, model.dtype, model.device)
    torch.manual_seed(0)
    cache.storage.store.normal_()
    cache.length = context
    return _written_by(kind, loaded, cache, context)


def _written_by(kind: str, loaded: Loaded, cache: KVCache, position: int) -> Writer:
    model, sampler = loaded.model, Sampler(0, 1, 0)
    if kind == "eager":
        return EagerWriter(model, cache, _kernel(loaded), position, sampler)
    return CapturedWriter(model, [cache], [position], [sampler], compiled() if kind == "compiled" else run_layer)


@functools.cache
def compiled() -> Layer:
    """The engine's own compiled layer; on a CPU its graph is only traced, which takes a second and not a minute."""
    if torch.cuda.is_available():
        return compiled_layer
    layer: Layer = torch.compile(run_layer, dynamic=False, fullgraph=True, backend="eager")
    return layer


def _kernel(loaded: Loaded, name: str | None = None) -> Kernel:
    """A rung by name, or the first of the ladder that runs here."""
    model = loaded.model
    layout = HeadLayout.of(model.spec)
    return make_kernel(name or climb(layout, str(model.device), model.dtype)[-1].name, model.device)


@torch.no_grad()
def _first_logits(loaded: Loaded) -> Tensor:
    return loaded.model.score(
        torch.ones(1, loaded.model.spec.hidden, device=loaded.model.device, dtype=loaded.model.dtype)
    )


def _tokens(writer: Writer, loaded: Loaded, count: int) -> Iterator[int]:
    """Greedy tokens as the engine writes them."""
    yield from decode(writer, _first_logits(loaded), frozenset(), count)


def _decode_run(kind: str, bench: Bench, loaded: Loaded) -> list[float]:
    """Seconds of each token behind a cache of the section's context, the first ones left out."""
    sizes, times = bench.sizes, list[float]()
    for _ in _tokens(_writer(kind, loaded, sizes.decode_context, sizes.decode_tokens), loaded, sizes.decode_tokens):
        times.append(time.perf_counter())
    return Run(times[0], times, []).token_seconds[_FIRST_TOKENS:]


def _plain_run(bench: Bench, loaded: Loaded) -> list[float]:
    """Seconds of each token but the first of transformers' `generate` behind as many ids."""
    sizes = bench.sizes
    ids = torch.randint(0, 1000, (1, sizes.decode_context), device=bench.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return generate(loaded.model.model, inputs, sizes.plain_tokens, time.perf_counter()).token_seconds


def read_bytes(loaded: Loaded) -> int:
    """Bytes of all weights that a decoded token reads: the layers, the last norm, lm_head."""
    model = loaded.model.model
    text = model.model.language_model
    parameters = (*text.layers.parameters(), *text.norm.parameters(), *model.lm_head.parameters())
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def decoding(name: str) -> Callable[[Bench], Iterator[Row]]:
    """The section about one model's decode speed."""
    section = f"decode-{name}"

    def measure(bench: Bench) -> Iterator[Row]:
        loaded, sizes = bench.model(name), bench.sizes
        tokens = sizes.decode_context + sizes.decode_tokens // 2
        cached = loaded.model.spec.kv_bytes_per_token(bench.dtype.itemsize) * tokens
        bound = (read_bytes(loaded) + cached) / bench.limits.bandwidth
        formula = f"({read_bytes(loaded) / 1e9:.4g} GB weights + {cached / 1e9:.4g} GB KV) / copy bandwidth"
        yield Row(section, "bandwidth bound", bound, "s", formula, note=f"{tokens} tokens cached")
        kinds = ("captured", "eager", "compiled")
        sides: dict[str, Callable[[], list[float]]] = {"transformers": lambda: _plain_run(bench, loaded)}
        sides |= {kind: lambda kind=kind: _decode_run(kind, bench, loaded) for kind in kinds}  # type: ignore[misc]
        # In two groups: what a compilation takes, or breaks, leaves the others their figures.
        made = alternating({side: run for side, run in sides.items() if side != "compiled"}, min(sizes.repeats, 3))
        yield from _speed_rows(section, made, bound, _joined(made["transformers"]))
        again = alternating({side: sides[side] for side in ("compiled", "transformers")}, min(sizes.repeats, 3))
        plain = _joined(again.pop("transformers"))
        yield from _speed_rows(section, again, bound, plain)

    return measure


def _joined(runs: list[list[float]]) -> list[float]:
    return [seconds for run in runs for seconds in run]


def _speed_rows(section: str, made: dict[str, list[list[float]]], bound: float, plain: list[float]) -> Iterator[Row]:
    for side, runs in made.items():
        row = seconds_row(section, f"{side}, a token", _joined(runs))
        yield row
        assert row.value is not None
        yield Row(section, f"{side}, share of the bound", bound / row.value, "share", "bandwidth bound / median")
        if side != "transformers":
            ratio = Samples.of(plain).p50 / row.value
            yield Row(section, f"{side}, times transformers", ratio, "×", "medians of alternating runs")


def batching(bench: Bench) -> Iterator[Row]:
    """Decode of 1 and of 16 sequences together on the 2B, captured: tokens a second of all."""
    loaded, sizes, rates = bench.model("2b"), bench.sizes, dict[int, float]()
    context = sizes.decode_context // 4  # captions of clips: 16 of them in the memory of a long video
    for batch in (1, BATCH):
        seconds = [_together_seconds(loaded, batch, context, sizes.decode_tokens) for _ in range(min(sizes.repeats, 3))]
        row = seconds_row("batch", f"{batch} together, a step", _joined(seconds))
        yield row
        assert row.value is not None
        rates[batch] = batch / row.value
        yield Row(
            "batch", f"{batch} together", rates[batch], "tokens/s", f"{batch} / median step, {context} cached each"
        )
    yield Row("batch", f"{BATCH} together, times one", rates[BATCH] / rates[1], "×", "tokens a second")


def _together_seconds(loaded: Loaded, batch: int, context: int, count: int) -> list[float]:
    """Seconds of each step of `batch` sequences behind caches that random keys and values fill."""
    model, times = loaded.model, list[float]()
    storage = Storage.allocate(model.spec, context + count, model.dtype, model.device, sequences=batch)
    storage.store.normal_()
    caches = [KVCache(storage, sequence) for sequence in range(batch)]
    for cache in caches:
        cache.length = context
    writer = CapturedWriter(model, caches, [context] * batch, [Sampler(0, 1, 0)] * batch, run_layer)
    logits = _first_logits(loaded).expand(batch, -1)
    for sequence, _ in decode_together(writer, logits, frozenset(), [count] * batch):
        if sequence == 0:
            times.append(time.perf_counter())
    return Run(times[0], times[:count], []).token_seconds[_FIRST_TOKENS:]


def prefilling(bench: Bench) -> Iterator[Row]:
    """Prefill of a 7B, of every rung and by chunk size, beside the matrix rate."""
    loaded, sizes = bench.model("7b"), bench.sizes
    flops = prefill_flops(loaded.model.spec, _text_draft(sizes.prefill_tokens, bench))
    chosen, default = _kernel(loaded).name, min(CHUNKS[0][1], max(sizes.prefill_chunks))
    # The engine's own choice first, then the other rungs; what compiles, and what is slow, last.
    rungs = [chosen, *(name for name in ("flash", "cudnn", "efficient", "flex", "tiled") if name != chosen)]
    assert set(rungs) == set(ATTENTION_CHOICES) - {"auto"}
    shapes = [(chosen, chunk) for chunk in sizes.prefill_chunks] + [(rung, default) for rung in rungs[1:]]
    for rung, chunk in shapes:
        name = f"{rung}, chunks of {chunk}"
        if rung == "flex" and bench.device.type == "cpu":
            yield Row("prefill-7b", name, None, "share", "", note="not run: it compiles for half a minute on a CPU")
            continue
        try:
            seconds = _prefill_seconds(loaded, rung, chunk, bench)
        except (VidqaError, RuntimeError, NotImplementedError) as error:
            if "CUDA error" in str(error):  # the device is lost to this process
                raise
            yield Row("prefill-7b", name, None, "share", "", note=f"does not run: {str(error).splitlines()[0][:160]}")
            continue
        formula = f"{flops / 1e12:.4g} TFLOP / seconds / matrix rate"
        samples, label = Samples.of(seconds), "engine's choice, " if (rung, chunk) == (chosen, default) else ""
        share = flops / samples.p50 / bench.limits.matrix_rate
        if label:
            yield Row("prefill-7b", "the engine's choice", share, "share", formula, note=name)
        yield Row("prefill-7b", name, share, "share", formula, note=f"{sizes.prefill_tokens} tokens")
        yield seconds_row("prefill-7b", f"{name}, time", seconds)


def _text_draft(tokens: int, bench: Bench) -> Draft:
    """A prompt of text alone, for the arithmetic."""
    precision = short_name(bench.dtype)
    return Draft(precision, precision, precision, "flash", 0, 28, 28, tokens, 1, 1, 1024)


@torch.no_grad()
def _prefill_seconds(loaded: Loaded, rung: str, chunk: int, bench: Bench) -> list[float]:
    """Seconds of the whole prompt, after a run that warms (and compiles) its kernels."""
    model, tokens = loaded.model, bench.sizes.prefill_tokens
    embeddings = torch.randn(tokens, model.spec.hidden, device=model.device, dtype=model.dtype)
    cache, kernel = make_cache(model.spec, tokens, model.dtype, model.device), _kernel(loaded, rung)
    positions = text_positions(0, tokens)

    def run() -> None:
        cache.truncate(0)
        prefill = Prefill(model, kernel, chunk)
        for _ in (*prefill.push(cache, embeddings, positions), *prefill.flush(cache)):
            pass

    run()  # loads and compiles kernels
    seconds = [seconds_of(run, model.device)]
    more = min(bench.sizes.repeats, 3) - 1 if seconds[0] < _SLOW_SECONDS else 0
    return seconds + [seconds_of(run, model.device) for _ in range(more)]


def four_bit(bench: Bench) -> Iterator[Row]:
    """nf4 against 16-bit decode, both captured. Needs bitsandbytes; the model is spent afterwards."""
    if find_spec("bitsandbytes") is None:
        raise Skipped("bitsandbytes is not installed")
    for name in ("2b",) if bench.tiny else ("2b", "7b"):
        loaded = bench.model(name)
        native = _joined(alternating({"native": lambda: _decode_run("captured", bench, loaded)}, 2)["native"])  # noqa: B023
        quantize(loaded.model.model.model.language_model.layers, bench.dtype)
        nf4 = _joined(alternating({"nf4": lambda: _decode_run("captured", bench, loaded)}, 2)["nf4"])  # noqa: B023
        bench.drop_model()
        yield seconds_row("nf4", f"{name}: native, a token", native)
        row = seconds_row("nf4", f"{name}: nf4, a token", nf4)
        yield row
        assert row.value is not None
        ratio = Samples.of(native).p50 / row.value
        yield Row("nf4", f"{name}: nf4, times native speed", ratio, "×", "medians, captured step")


def quantize(layers: nn.Module, dtype: torch.dtype) -> None:
    """Replace every linear layer by bitsandbytes' 4-bit one with the same weights."""
    import bitsandbytes

    bnb: Any = bitsandbytes
    for parent in list(layers.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                small = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, layer.bias is not None, dtype, False, "nf4"
                )
                small.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
                small.bias = layer.bias
                setattr(parent, name, small.to(layer.weight.device))
