#!/usr/bin/env python3
"""Precisions of the weights on this CPU: matrices of 2B's MLP, logits, and a random-weight Qwen2-VL-2B of full size.

Each precision loads the model in its own process, one after the other, and answers a question about the demo clip
several times: the first answer warms up, of the others the fastest counts, and the video is forgotten between them.
Peaks are those of the process. Results go to benchmarks/results/cpu-weights.json. Writes a checkpoint of 4.4 GB; fp32
takes 10 GB of memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import torch
from torch import nn

from benchlib.models import FULL, build, copy_of, write_random_model
from benchlib.rows import RESULTS, ROOT, Bar, Row, report
from vidqa import EngineConfig, Request, Session
from vidqa.engine.kv_cache import make_cache
from vidqa.events import Answered
from vidqa.models.attention.selector import make_kernel
from vidqa.models.cpu_linear import Int4Linear, Int8Linear
from vidqa.models.spec import ModelSpec
from vidqa.models.vlm import SequenceChunk, VisionLanguageModel
from vidqa.planner.weight_memory import part_bytes
from vidqa.types import ELEMENT_BYTES, Answer, Placement

WEIGHTS = ("fp32", "bf16", "int8", "int4", "nf4")
BARS = {
    "bf16: decode, times fp32": Bar(2.0),
    "bf16: first token, share of fp32": Bar(0.7, "<="),
    "bf16: peak of the process": Bar(5.0, "<="),
    "bf16: share of the copy bandwidth": Bar(0.4, goal=0.6),
}
MATRIX_ROWS = (1, 4, 64, 512)
_CPU = torch.device("cpu")
_MATRICES = 6
_TOKENS = 16
_ROUNDS = 3
_LOGIT_LAYERS, _LOGIT_ROWS = 4, 96
_SIZE, _FRAMES = (252, 140), 8


def fastest(run: Callable[[], Any], times: int = 4) -> float:
    """Return the fastest seconds of several runs after a first."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def copy_bandwidth() -> float:
    """Return the bytes per second that a copy of 512 MiB reads and writes."""
    source = torch.ones(2**27)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source))


def small(weights: str, whole: nn.Linear) -> Any:
    """Return a layer of the same weights in a precision."""
    if weights in ("fp32", "bf16"):
        return whole if weights == "fp32" else whole.bfloat16()
    if weights == "nf4":
        import bitsandbytes

        bnb: Any = bitsandbytes.nn
        made = bnb.Linear4bit(
            whole.in_features, whole.out_features, whole.bias is not None, torch.bfloat16, quant_type="nf4"
        )
        made.weight = bnb.Params4bit(whole.weight.bfloat16(), requires_grad=False, quant_type="nf4")
        made.bias = whole.bias
        return made.to("cpu").eval()  # else bitsandbytes does not use its packed kernel, which needs AVX512-BF16
    kind = Int8Linear if weights == "int8" else Int4Linear
    made = kind(whole)
    codes, scales = kind.quantize(whole.weight)
    made.weight, made.scales = nn.Parameter(codes, False), nn.Parameter(scales, False)
    return made


def _layers(weights: str, spec: ModelSpec) -> Iterator[Any]:
    """Yield random layers of an MLP's first half."""
    for _ in range(_MATRICES):
        yield small(weights, nn.Linear(spec.hidden, spec.intermediate, bias=False).requires_grad_(False))


def last_logits(model: Any, spec: ModelSpec) -> torch.Tensor:
    """Return the float32 logits of the last of some random tokens."""
    adapter = VisionLanguageModel(model, spec, _CPU, model.dtype, 0)
    ids = torch.randint(0, spec.vocabulary, (_LOGIT_ROWS,), generator=torch.Generator().manual_seed(1))
    cache = make_cache(spec, _LOGIT_ROWS, model.dtype, _CPU)
    chunk = SequenceChunk(adapter.embed(ids), torch.arange(_LOGIT_ROWS).repeat(3, 1), cache)
    return adapter.score(adapter.run([chunk], make_kernel("flash", _CPU)))[0]


def logit_rows() -> Iterator[Row]:
    """Yield how far the logits of a model with few layers of 2B's width are from float32's, by precision."""
    spec = replace(FULL["2b"], layers=_LOGIT_LAYERS, vision=replace(FULL["2b"].vision, depth=1))
    formula = f"|logits - fp32's| / deviation of fp32's; {_LOGIT_LAYERS} random layers, last of {_LOGIT_ROWS} tokens"
    with torch.no_grad():
        model = build(spec, _CPU, torch.float32)
        exact = last_logits(model, spec)
        for weights in WEIGHTS[1:]:
            other = copy_of(model, _CPU, torch.bfloat16)
            for name, module in list(other.model.language_model.named_modules()):
                if isinstance(module, nn.Linear) and weights != "bf16":
                    other.model.language_model.set_submodule(name, small(weights, module))
            off = (last_logits(other, spec) - exact).abs() / exact.std()
            yield Row("logits", f"{weights}, mean", float(off.mean()), "share", formula)
            yield Row("logits", f"{weights}, largest", float(off.max()), "share", formula)


def matrix_rows(spec: ModelSpec) -> Iterator[Row]:
    """Yield the milliseconds of six matrices by precision and number of rows."""
    formula = f"fastest of 4, {_MATRICES} matrices of {spec.intermediate}x{spec.hidden}"
    with torch.no_grad():
        for weights in WEIGHTS:
            layers = list(_layers(weights, spec))
            for count in MATRIX_ROWS:
                states = torch.randn(count, spec.hidden).to(torch.float32 if weights == "fp32" else torch.bfloat16)
                seconds = fastest(lambda: [layer(states) for layer in layers])  # noqa: B023
                yield Row("matrices", f"{weights}, {count} rows", 1e3 * seconds, "ms", formula)


def ask(weights: str, model: Path, clip: Path, threads: int) -> dict[str, Any]:
    """Load a model in one precision and answer; return times, tokens and the peak."""
    config = EngineConfig(
        model=str(model), device="cpu", weights=weights, remember=False, cpu_threads=threads, count_tensors=False
    )
    request = Request(str(clip), "what happens?", frames=_FRAMES, size=_SIZE, max_tokens=_TOKENS)
    answers: list[Answer] = []
    with Session(config) as session:
        for _ in range(_ROUNDS):
            *_, last = session.ask(request)
            assert isinstance(last, Answered)
            answers.append(last.answer)
            session.forget()
    measured = answers[1:]
    return {
        "load": answers[0].timing.load_seconds,
        "first": [one.timing.first_token_seconds for one in measured],
        "vision": [one.timing.vision_seconds for one in measured],
        "prefill": [one.timing.prefill_seconds for one in measured],
        "rate": [one.timing.tokens_per_second for one in measured],
        "prompt": answers[0].plan.prompt_tokens,
        "planned": answers[0].plan.predicted_peak_bytes,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "copy": copy_bandwidth(),
    }


def model_rows(weights: str, found: dict[str, Any], fp32: dict[str, Any], bandwidth: float) -> Iterator[Row]:
    """Yield the rows of one precision, compared with fp32 of the same run."""
    spec, dtype = FULL["2b"], weights if weights in ELEMENT_BYTES else "bf16"
    read = sum(part_bytes(spec, part, weights, dtype, Placement()) for part in ("layers", "embedding"))
    first, rate, how = min(found["first"]), max(found["rate"]), f"fastest of {_ROUNDS - 1}"
    note = f"{found['prompt']} tokens of prompt; vision {min(found['vision']):.2f} s"
    yield Row(weights, "first token", first, "s", f"from the question, model loaded, {how}", None, note)
    yield Row(weights, "decode", rate, "tokens/s", how, None, f"{_TOKENS} tokens")
    if weights != "fp32":
        yield Row(weights, "decode, times fp32", rate / max(fp32["rate"]), "×", how)
        yield Row(weights, "first token, share of fp32", first / min(fp32["first"]), "share", how)
    note = f"{found['planned'] / 1e9:.2f} GB planned; loaded in {found['load']:.0f} s"
    yield Row(
        weights,
        "peak of the process",
        found["peak"] / 1e9,
        "GB",
        "largest resident size, with mapped files",
        None,
        note,
    )
    formula = f"{read / 1e9:.2f} GB of weights a token · tokens/s / {bandwidth / 1e9:.0f} GB/s of a copy"
    yield Row(weights, "share of the copy bandwidth", read * rate / bandwidth, "share", formula)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows; fp32 first, with which the others are compared."""
    bandwidth = copy_bandwidth()
    yield Row("machine", "copy bandwidth", bandwidth / 1e9, "GB/s", "512 MiB read and written, fastest of 4")
    yield from matrix_rows(FULL["2b"])
    yield from logit_rows()
    with tempfile.TemporaryDirectory() as temporary:
        model = arguments.model or Path(temporary) / "model"
        if not model.exists():
            write_random_model(FULL["2b"], model)
        fp32: dict[str, Any] = {}
        for weights in arguments.weights.split(","):
            command = [sys.executable, __file__, "--child", weights, "--model", str(model)]
            command += ["--clip", str(arguments.clip), "--threads", str(arguments.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            bandwidth = max(bandwidth, found["copy"])
            fp32 = fp32 or found
            yield from model_rows(weights, found, fp32, bandwidth)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=",".join(WEIGHTS), help="precisions, fp32 first")
    parser.add_argument("--model", type=Path, help="folder of a random-weight 2B; written if it is not there")
    parser.add_argument("--clip", type=Path, default=ROOT / "assets" / "demo.mp4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu-weights.json")
    parser.add_argument("--child", metavar="WEIGHTS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(ask(arguments.child, arguments.model, arguments.clip, arguments.threads)))
        return 0
    return report("cpu-weights", measure(arguments), BARS, arguments.output)


if __name__ == "__main__":
    raise SystemExit(main())
