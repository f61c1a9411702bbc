"""A plan's memory in six words, for bars: what is weights, cache, activations, context, margin. Arithmetic only."""

from collections.abc import Mapping

from vidqa.types import Plan

SHARES = ("weights", "KV cache", "activations", "context", "margin")
_ACTIVATIONS = (
    "vision activations", "vision embeddings", "prefill chunk", "attention workspace", "decode step", "logits",
)  # fmt: skip


def memory_shares(plan: Plan) -> Mapping[str, int]:
    """Bytes of each of SHARES; they add up to the plan's `required_bytes`."""
    shares = dict.fromkeys(SHARES, 0)
    for line in plan.lines:
        shares[_share(line.name)] += line.bytes
    return shares


def _share(name: str) -> str:
    if name.startswith(("weights", "quantization")):
        return "weights"
    if name.startswith("KV"):
        return "KV cache"
    if name == "margin":
        return name
    return "activations" if name.startswith(_ACTIVATIONS) else "context"
