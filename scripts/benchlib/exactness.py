"""Sections about exact results: attention kernels, the captured decode step, whole answers, and concurrent sessions.

Each is compared with float32: kernels with plain products, a step with the eager step, answers with transformers. Two
sessions that decode in turns are compared with each session alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product, zip_longest
from typing import Any

import torch
from torch import Tensor

from benchlib.bench import Bench
from benchlib.drawn import DRAWN, drawn_reader
from benchlib.models import FULL, build, copy_of, load, reduced, short_name, some_prompt
from benchlib.prefilling import compiled_prefilling
from benchlib.rows import ROOT, Row
from benchlib.runs import SyntheticReader, plan_for, run_transformers, run_vidqa, synthetic_video
from benchlib.sections import Skipped
from benchlib.steps import Recorder, filled, logits_after, make_step
from vidqa import EngineConfig, Session
from vidqa.engine.fused_decoder_selection import why_not_fused
from vidqa.engine.kv_cache import Storage
from vidqa.events import TextDelta
from vidqa.models.attention.selector import HeadLayout, probe_kernel
from vidqa.models.loader import Loaded
from vidqa.profiling.hf_baseline import model_inputs, process_video
from vidqa.types import Request

_TIES = {torch.float32: 1e-4, torch.bfloat16: 0.01}  # of the logits' spread: closer than this, either may win


def kernel_names(section: str, names: Callable[[Bench], Sequence[str]]) -> Callable[[Bench], Iterator[Row]]:
    """Return the section about attention kernels, in the head layouts of both models."""

    def measure(bench: Bench) -> Iterator[Row]:
        for model in ("2b", "7b"):
            layout = HeadLayout.of(bench.spec(model) if bench.tiny else FULL[model])
            for name in names(bench):
                kernel_name = probe_kernel(name, layout, str(bench.device), bench.dtype, timed=False)
                formula = "largest difference from float32, of a chunk and of a token"
                value = None if kernel_name.reason and not kernel_name.difference else kernel_name.difference
                yield Row(section, f"{model} heads, {name}", value, "", formula, note=kernel_name.reason)

    return measure


def flex(bench: Bench) -> Iterator[Row]:
    """Measure compiled kernels: their results, then the speed of a prefill."""
    yield from kernel_names("flex", lambda bench: bench.sizes.compiled_kernel_names)(bench)
    yield from compiled_prefilling(bench)


def oracle_of(bench: Bench) -> Any:
    """Return a small float32 model with weights that bf16 represents exactly, and with clear preferences."""
    spec = bench.spec("2b") if bench.tiny else replace(reduced("2b", 2, 1536), vocabulary=4096)
    torch.backends.cudnn.allow_tf32 = False  # transformers' patches are a convolution: it rounds them else
    oracle = build(spec, bench.device, torch.bfloat16)
    for parameter in oracle.parameters():  # near zero all logits would be alike
        if parameter.dim() > 1:
            parameter.mul_(3)
    return copy_of(oracle, bench.device, torch.float32)


def answers(bench: Bench) -> Iterator[Row]:
    """Compare greedy tokens of a small model with transformers' in float32."""
    sizes, device, oracle = bench.sizes, bench.device, oracle_of(bench)
    reader = SyntheticReader(synthetic_video(sizes.exact_frames, 112, 112), sizes.exact_frames)
    frames, plain = reader.stacked(sizes.exact_frames), load(oracle, device, torch.float32)
    wanted = run_transformers(oracle, plain, frames, sizes.exact_tokens).tokens
    for dtype in (torch.float32, torch.bfloat16):
        ours = load(copy_of(oracle, device, dtype), device, dtype)
        problem, plan = plan_for(ours, sizes.exact_frames, (112, 112), sizes.exact_tokens)
        tokens = run_vidqa(ours, problem, plan, reader).tokens
        name = f"vidqa in {short_name(dtype)} against transformers in fp32"
        yield _agreement(name, wanted, tokens, _TIES[dtype], lambda place, tokens=tokens: _gap(  # type: ignore[misc]
            plain, frames, wanted, tokens, place
        ))  # fmt: skip


def _agreement(name: str, wanted: list[int], tokens: list[int], tie: float, gap: Callable[[int], float]) -> Row:
    """1 where nothing differs, or the first difference is one that the reference itself holds undecided."""
    places = [place for place, pair in enumerate(zip(wanted, tokens, strict=True)) if pair[0] != pair[1]]
    first = places[0] if places else len(wanted) - 1
    preferred = gap(first)  # 0 where the tokens are equal
    note = f"{len(wanted) - len(places)} of {len(wanted)} tokens equal"
    if places:
        note += f"; at the first other one, {first}, the reference prefers its own by {preferred:.1e} of the spread"
    formula = f"1 where all greedy tokens are equal, or the reference is undecided (below {tie:g}) where they part"
    return Row("answers", name, float(preferred < tie), "", formula, note=note)


def _gap(plain: Loaded, frames: Tensor, wanted: list[int], tokens: list[int], place: int) -> float:
    """Return the difference of the reference's logits of both first differing tokens, as a share of their spread."""
    inputs = model_inputs(plain, some_prompt(), process_video(plain, frames))
    said = torch.tensor([wanted[:place]], dtype=torch.int64, device=plain.model.device)
    for name, fill in (("input_ids", said), ("attention_mask", said * 0 + 1), ("mm_token_type_ids", said * 0)):
        inputs[name] = torch.cat((inputs[name], fill.to(inputs[name].dtype)), dim=1)
    logits = plain.model.model(**inputs).logits[0, -1].float()
    return float((logits[wanted[place]] - logits[tokens[place]]) / (logits.max() - logits.min()))


def captured_step(bench: Bench) -> Iterator[Row]:
    """Compare logits of the captured step (fused and plain layers) with the eager float32 step on equal caches."""
    oracle = oracle_of(bench)
    reference = load(oracle, bench.device, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        ours = load(copy_of(oracle, bench.device, dtype), bench.device, dtype)
        why = why_not_fused(ours.model.spec, bench.device, dtype)
        yield Row(
            "captured-step", f"{short_name(dtype)}, fused layers", float(not why), "", "1 where they run", note=why
        )
        for kind, kv, batch in product(("captured", "plain"), ("native", "int8"), (1, 4)):
            error = _step_error(bench, reference, ours, kind, kv, batch)
            formula = "|logits - eager fp32's| / |eager fp32's|, the same tokens given to both"
            name = f"{short_name(dtype)}, {kind}, {kv} KV, batch {batch}"
            yield Row("captured-step", name, error, "", formula, note=f"{bench.sizes.exact_steps} steps")


@torch.no_grad()
def _step_error(bench: Bench, reference: Loaded, ours: Loaded, kind: str, kv: str, batch: int) -> float:
    spec, steps, device = ours.model.spec, bench.sizes.exact_steps, bench.device
    lengths = [bench.sizes.exact_context - 3 * sequence for sequence in range(batch)]  # no two end in one place
    tokens = torch.randint(0, spec.vocabulary, (steps, batch), generator=torch.Generator().manual_seed(0)).to(device)
    stores = [
        Storage.allocate(
            spec, max(lengths) + steps, side.model.dtype, device, sequences=batch, quantized=kv == "int8"
        )
        for side in (reference, ours)
    ]  # fmt: skip
    _fill(stores[0])
    for one, other in ((stores[0].store, stores[1].store), (stores[0].scales, stores[1].scales)):
        if one is not None and other is not None:
            other.copy_(one)
    wanted = []
    for sequence, cache in enumerate(filled(stores[0], lengths)):
        recorder = Recorder(reference, 1)
        runner = make_step("tiled", reference, [cache], [lengths[sequence]], recorder)
        wanted.append(logits_after(runner, recorder, tokens[:, sequence, None])[:, 0])
    recorder = Recorder(ours, batch)
    runner = make_step(kind, ours, filled(stores[1], lengths), lengths, recorder)
    made, exact = logits_after(runner, recorder, tokens), torch.stack(wanted, dim=1)
    return float((made - exact).norm() / exact.norm())


def _fill(storage: Storage) -> None:
    """Fill with random keys and values that bf16 and float32 represent exactly; integers and scales for int8."""
    torch.manual_seed(1)
    if storage.scales is None:
        storage.store.copy_(torch.randn_like(storage.store).bfloat16())
    else:
        storage.store.copy_(torch.randint(-127, 128, storage.store.shape, device=storage.store.device))
        storage.scales.copy_(torch.rand_like(storage.scales) * 0.02 + 0.005)


def sessions(bench: Bench) -> Iterator[Row]:
    """Run two demo model sessions in turns, of which one ends and closes while the other goes on."""
    if find_spec("accelerate") is None:
        raise Skipped("accelerate is not installed, without which transformers loads no model")
    alone = ["".join(_words(_session(bench, name), name)) for name in DRAWN]
    pair = [_session(bench, name) for name in DRAWN]
    texts = ["", ""]
    running = [_closing(session, name) for session, name in zip(pair, DRAWN, strict=True)]
    for words in zip_longest(*running, fillvalue=""):
        texts = [text + word for text, word in zip(texts, words, strict=True)]
    same = sum(one == other for one, other in zip(alone, texts, strict=True)) / len(alone)
    note = "; ".join(repr(text) for text in alone)
    yield Row("sessions", "two in turns, answers as alone", same, "", "equal answers / answers", note=note)
    right = sum(DRAWN[name] in text for name, text in zip(DRAWN, alone, strict=True)) / len(alone)
    yield Row("sessions", "right answers about drawn clips", right, "", "right answers / answers")


def _session(bench: Bench, name: str) -> Session:
    config = EngineConfig(model="demo", device=str(bench.device), remember=False)
    return Session(config, opener=lambda request, stopped: drawn_reader(name))


def _words(session: Session, name: str) -> Iterator[str]:
    """Yield the answer's text, one item per event, so that two sessions can take turns."""
    clip = str(ROOT / "assets" / "demo.mp4")  # is not opened; its name and date say whether it is the same video
    for event in session.ask(Request(clip, "what happens?", max_tokens=24)):
        yield event.text if isinstance(event, TextDelta) else ""


def _closing(session: Session, name: str) -> Iterator[str]:
    yield from _words(session, name)
    session.close()
