"""The ways in which a model can lie on a device, from the simplest to the last resort.

Knows precisions and placements; whether one fits is the planner's question.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vidqa.types import ELEMENT_BYTES, Device, Placement, RunConfig

if TYPE_CHECKING:
    from vidqa.models.spec import ModelSpec
    from vidqa.planner.search import PlanningProblem


def compute_dtype(device: Device) -> str:
    """The precision to compute in: bf16 where the device has it, fp16 on older GPUs, fp32 on a CPU."""
    if device.kind == "cpu":
        return "fp32"
    return "bf16" if device.bf16 else "fp16"


def weight_choices(device: Device) -> tuple[str, ...]:
    """Precisions that are tried, the largest first; 8- and 4-bit weights on CUDA (nf4 on a CPU as a last resort)."""
    if device.kind == "cpu":
        return ("fp32", "bf16", "nf4")
    native = compute_dtype(device)
    return (native,) if device.kind == "mps" else (native, "int8", "nf4", "nf4-dq")


def usual_attention(device: Device) -> str:
    """The rung of the attention ladder that a device is expected to have.

    PyTorch's flash kernel needs compute capability 8.0, the memory-efficient one 5.0; on a CPU
    its flash kernel runs everywhere (aten/native/transformers/cuda/sdp_utils.cpp).
    """
    if device.kind == "mps":
        return "tiled"
    return "efficient" if device.compute_capability and device.compute_capability < (8, 0) else "flash"


def placements(spec: "ModelSpec", weights: str, device: Device) -> tuple[Placement, ...]:
    """Levers in the order of what they cost, each with all before it."""
    place = Placement()
    if device.kind != "cuda":
        return (place,)  # one memory for all
    steps = [place]
    if not spec.tied:
        steps.append(place := replace(place, embedding_on_host=True))
    steps.append(place := replace(place, vision_offloaded=True))
    if weights.startswith("nf4"):  # int8's layers do not move with the tower, and take more while they run
        steps.append(place := replace(place, vision_quantized=True, lm_head_quantized=not spec.tied))
    steps.append(replace(place, kv_on_host=True))
    return tuple(steps)


def _as_loaded(place: Placement, loaded: Placement | None) -> Placement:
    """A placement with what loading has settled: where the table lies, and what is quantized."""
    if loaded is None:
        return place
    return replace(
        place,
        embedding_on_host=loaded.embedding_on_host,
        vision_quantized=loaded.vision_quantized,
        lm_head_quantized=loaded.lm_head_quantized,
    )


# bitsandbytes 0.45 at batch 1: NF4 30, nested NF4 24, int8 19 tokens/s (Llama-3.1-8B, H100): where the
# scores are equal, the fastest is taken.
_LATER = ("int8", "nf4-dq")


def setups(task: "PlanningProblem") -> Iterator[RunConfig]:
    """Every allowed combination of weights, KV precision and placement, without frames yet."""
    config, device = task.config, task.device
    chosen = task.pinned_weights or config.weights
    for weights in (chosen,) if chosen else sorted(weight_choices(device), key=_LATER.__contains__):
        dtype = weights if weights in ELEMENT_BYTES else compute_dtype(device)
        places = (config.placement,) if config.placement else placements(task.spec, weights, device)
        for place in dict.fromkeys(_as_loaded(place, task.pinned_placement) for place in places):
            for kv in (config.kv,) if config.kv else (dtype, "int8"):
                yield RunConfig(
                    weights=weights,
                    kv=dtype if kv == "native" else kv,
                    dtype=dtype,
                    attention=config.attention if config.attention != "auto" else usual_attention(device),
                    frames=2,
                    height=task.spec.pixel_factor,
                    width=task.spec.pixel_factor,
                    text_tokens=task.text_tokens,
                    max_tokens=task.request.max_tokens,
                    vision_chunk=1,
                    prefill_chunk=1,
                    placement=place,
                    batch=config.batch,
                    spare_tokens=config.conversation_tokens,
                    sampled=task.request.temperature > 0,
                )
