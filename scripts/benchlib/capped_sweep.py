"""The section about a published sweep: frames under a T4's memory, with vidqa and transformers.

The published run (Qwen2-VL-2B in 16 bits, a 720p clip, 14.56 GiB) ended out of memory at 30 frames, on a card
without a fused kernel for its attention. So transformers runs twice: as it is here, and with unfused attention.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from benchlib.bench import Bench
from benchlib.models import some_prompt
from benchlib.planned import GIB
from benchlib.rows import Row
from benchlib.runs import SyntheticReader, ask, plan_for, run_transformers, synthetic_video
from benchlib.sections import run_limited
from vidqa.errors import DoesNotFit
from vidqa.models.loader import Loaded

_ANSWER_TOKENS = 16
_RUN_SECONDS = 20.0


def capped_sweep(bench: Bench) -> Iterator[Row]:
    """Measure peaks and first tokens over frame counts of all sides, and where each runs out of memory."""
    loaded, cap = bench.model("2b"), int(bench.sizes.sweep_cap_gib * GIB)
    bench.accelerator.cap(cap)
    least: dict[str, int] = {}  # first frame count out of memory, by side
    stopped: set[str] = set()
    most, shares = 0, list[float]()
    try:
        for frames in bench.sizes.sweep_frames:
            for side, run in _sides(bench, loaded, frames, cap).items():
                if side in least or side in stopped or (side != "vidqa" and frames > bench.sizes.sweep_plain_frames):
                    continue  # more frames than those that were too many or took too long
                row, share = _run(bench, loaded, f"{frames} frames, {side}", run)
                yield row
                if share is None and row.note == "stopped":
                    stopped.add(side)
                elif share is None:
                    least[side] = frames
                elif side == "vidqa":
                    most, shares = frames, [*shares, share]
    finally:
        bench.accelerator.cap(None)
    formula = f"under {bench.sizes.sweep_cap_gib} GiB"
    yield Row("sweep", "vidqa, most frames", most, "", formula)
    yield Row("sweep", "vidqa, largest share of the cap", max(shares, default=None), "share", "peak / cap")
    for side in ("transformers", "transformers, unfused attention"):
        note = "" if side in least else f"none of up to {bench.sizes.sweep_plain_frames} was too many"
        yield Row("sweep", f"{side}: out of memory from", least.get(side), "frames", formula, note=note)


def _sides(bench: Bench, loaded: Loaded, frames: int, cap: int) -> dict[str, Callable[[Any], float]]:
    """Return a call per side that returns seconds to the first token."""
    height, width = bench.sizes.sweep_size
    reader = SyntheticReader(synthetic_video(frames, width, height), 8)

    def ours(meter: Any) -> float:
        runtime = bench.accelerator.runtime_bytes()
        problem, plan = plan_for(loaded, frames, (height, width), _ANSWER_TOKENS, 0, runtime, vram_bytes=cap)
        return ask(loaded, problem, plan, some_prompt(), reader, meter).run.first_token_s

    def theirs(_: Any) -> float:
        return run_transformers(loaded.model.model, loaded, reader.stacked(frames), _ANSWER_TOKENS).first_token_s

    def unfused(meter: Any) -> float:
        with sdpa_kernel(SDPBackend.MATH):
            return theirs(meter)

    return {"vidqa": ours, "transformers": theirs, "transformers, unfused attention": unfused}


def _run(bench: Bench, loaded: Loaded, name: str, run: Callable[[Any], float]) -> tuple[Row, float | None]:
    """Return a run's row, and its peak as a share of the cap, None if it did not finish."""
    seconds, end = list[float](), ""
    with bench.accelerator.peak(loaded.model.model) as peak:
        try:
            end = run_limited(lambda: seconds.append(run(peak.meter)), _RUN_SECONDS)
        except DoesNotFit as error:
            end = f"does not fit: {error.what}"
    if not seconds:
        return Row("sweep", name, None, "GiB", "runtime + reserved", note=end), None
    runtime = bench.accelerator.runtime_bytes()
    taken, note = runtime + peak.reserved, f"first token {seconds[0]:.2f} s; runtime {runtime / GIB:.3f} GiB"
    return Row("sweep", name, taken / GIB, "GiB", "runtime + reserved", note=note), taken / (
        bench.sizes.sweep_cap_gib * GIB
    )
