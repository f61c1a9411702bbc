"""What stays of an earlier question or search beside a plan, and whether it fits there. Arithmetic only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vidqa.planner.memory_model import KV_CACHE, KV_SCRATCH, MemoryPart, lines_of, margin_bytes, memory_parts
from vidqa.planner.problem import PlanningProblem
from vidqa.types import ELEMENT_BYTES, Plan

_PHASES = ("vision", "prefill", "decode")  # with caches there is a model: it is not loaded again


@dataclass(frozen=True, slots=True)
class KeptBytes:
    """Bytes of earlier caches: a KV cache on the device, and vision embeddings on the host. `owner` names them."""

    owner: str
    kv: int = 0
    embeddings: int = 0


def plan_beside(problem: PlanningProblem, plan: Plan, kept: KeptBytes, *, searches: bool = False) -> Plan | None:
    """Return the plan with what is kept counted; None if the problem's memory does not hold both.

    A search (`searches`) only scores slices, so a kept KV cache stands in the place of the one that its plan has.
    """
    on_host = 0 if problem.host_bytes is None else kept.embeddings
    if problem.host_bytes is not None and _host_bytes(problem, plan) + on_host > problem.host_bytes:
        return None
    parts = [*memory_parts(problem.spec, plan.run_config, problem.overhead.host_pixels)]
    if searches and kept.kv:
        parts = [part for part in parts if part.name not in (KV_CACHE, KV_SCRATCH)]
    parts += _kept_parts(kept, on_device=problem.host_bytes is None)
    phases, worst, lines = lines_of(parts, problem.overhead)
    if sum(line.bytes for line in lines) > problem.budget_bytes:
        return None
    return replace(
        plan, lines=lines, phase_bytes=phases, peak_phase=worst, margin_bytes=margin_bytes(phases[worst]),
        host_bytes=plan.host_bytes + on_host,
    )  # fmt: skip


def _kept_parts(kept: KeptBytes, *, on_device: bool) -> Iterator[MemoryPart]:
    yield MemoryPart(f"KV cache, {kept.owner}", _PHASES, kept.kv, lambda: "kept for the next question")
    size = kept.embeddings if on_device else 0
    yield MemoryPart(f"vision embeddings, {kept.owner}", _PHASES, size, lambda: "kept for the next question")


def _host_bytes(problem: PlanningProblem, plan: Plan) -> int:
    """Return the bytes of a plan's own embeddings on the host."""
    if plan.candidates:
        return plan.host_bytes
    return plan.visual_tokens * problem.spec.embedding_width * ELEMENT_BYTES[plan.run_config.dtype]
