"""Precisions and placements of a model on a device, from the fastest to the last resort."""

from collections.abc import Iterator
from dataclasses import replace

from vidqa.models.spec import ModelSpec
from vidqa.planner.problem import PlanningProblem
from vidqa.types import CPU_WEIGHTS, ELEMENT_BYTES, Device, Placement, RunConfig

# bitsandbytes 0.45 at batch 1: NF4 30, nested NF4 24, int8 19 tokens/s (Llama-3.1-8B, H100): of equal scores the first
# candidate is chosen, so the slow ones come last.
_SLOW_WEIGHTS = ("int8", "nf4-dq")


def compute_dtype(device: Device, spec: ModelSpec) -> str:
    """Return the precision to compute in: bf16 where the device has it, else fp16 on a GPU and fp32 on a CPU.

    On a CPU a checkpoint that is stored in float32 is computed in it.
    """
    if device.kind == "cpu":
        return "bf16" if device.bf16 and spec.stored_dtype != "fp32" else "fp32"
    return "bf16" if device.bf16 else "fp16"


def weight_choices(device: Device, spec: ModelSpec) -> tuple[str, ...]:
    """Return the weight precisions to try, the best first.

    A CPU that computes in bf16 has fp32 last: it is slower and larger, and no more exact than the stored weights.
    """
    native = compute_dtype(device, spec)
    if device.kind == "cpu":
        return (native, *CPU_WEIGHTS, "fp32") if native == "bf16" else (native, "bf16", *CPU_WEIGHTS)
    return (native,) if device.kind == "mps" else (native, "int8", "nf4", "nf4-dq")


def usual_attention(device: Device) -> str:
    """Return the attention kernel that a device is expected to have.

    PyTorch's flash kernel needs compute capability 8.0, the memory-efficient one 5.0; on a CPU
    its flash kernel runs everywhere (aten/native/transformers/cuda/sdp_utils.cpp).
    """
    if device.kind == "mps":
        return "tiled"
    return "efficient" if device.compute_capability and device.compute_capability < (8, 0) else "flash"


def placements(spec: ModelSpec, weights: str, device: Device) -> tuple[Placement, ...]:
    """Return the placements to try: each saves more memory and costs more than the one before."""
    place = Placement()
    if device.kind != "cuda":
        return (place,)  # host and device share one memory
    steps = [place]
    if not spec.tied:
        steps.append(place := replace(place, embedding_on_host=True))
    steps.append(place := replace(place, vision_offloaded=True))
    if weights.startswith("nf4"):  # int8 layers cannot be offloaded with the tower, and take more while they run
        steps.append(place := replace(place, vision_quantized=True, lm_head_quantized=not spec.tied))
    steps.append(replace(place, kv_on_host=True))
    return tuple(steps)


def _as_loaded(place: Placement, loaded: Placement | None) -> Placement:
    """Return a placement with what a loaded model has fixed: where the embedding table is, and what is quantized."""
    if loaded is None:
        return place
    return replace(loaded, vision_offloaded=place.vision_offloaded, kv_on_host=place.kv_on_host)


def candidates(problem: PlanningProblem) -> Iterator[RunConfig]:
    """Yield every allowed combination of weights, KV precision and placement, with the smallest frames and chunks."""
    config, device = problem.config, problem.device
    chosen = problem.pinned_weights or config.weights
    choices = (chosen,) if chosen else weight_choices(device, problem.spec)
    slow = _SLOW_WEIGHTS if device.kind == "cuda" else ()
    for weights in sorted(choices, key=slow.__contains__):
        dtype = weights if weights in ELEMENT_BYTES else compute_dtype(device, problem.spec)
        places = (config.placement,) if config.placement else placements(problem.spec, weights, device)
        for place in dict.fromkeys(_as_loaded(place, problem.pinned_placement) for place in places):
            for kv in (config.kv,) if config.kv else (dtype, "int8"):
                yield RunConfig(
                    weights=weights,
                    kv=dtype if kv == "native" else kv,
                    dtype=dtype,
                    attention=config.attention if config.attention != "auto" else usual_attention(device),
                    frames=2,
                    height=problem.spec.pixel_factor,
                    width=problem.spec.pixel_factor,
                    text_tokens=problem.text_tokens + problem.subtitle_tokens,
                    max_tokens=problem.request.max_tokens,
                    vision_chunk=1,
                    prefill_chunk=1,
                    placement=place,
                    batch=config.batch,
                    spare_tokens=config.conversation_tokens,
                    sampled=problem.request.temperature > 0,
                    device=device.kind,
                    subtitle_tokens=problem.subtitle_tokens,
                    drop_repeats=config.prune == "auto",
                )
