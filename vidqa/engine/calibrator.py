"""Measurement of a device's speed: about a second for each precision, once per device, precision and thread count."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidqa.devices.torch_device import release_cached_memory
from vidqa.engine.timers import CountedWork
from vidqa.models.cpu_linear import layer_class
from vidqa.models.loader import DTYPES
from vidqa.planner.calibration import Rates, device_key, store_rates, stored_precisions
from vidqa.planner.placement import compute_dtype, weight_choices
from vidqa.planner.problem import PlanningProblem, cpu_threads
from vidqa.types import CPU_WEIGHTS

# The MLP and the heads of a 2B model; its weights exceed the caches of a CPU.
_HIDDEN, _WIDE, _HEADS, _HEAD_DIM = 1536, 8960, 12, 128
_ROWS, _CACHED = 256, 4096
_ROUND_SECONDS = 0.15  # of repeating one measurement
_MOST_ROUNDS = 400
_MEASURED = (*DTYPES, *CPU_WEIGHTS)
MEASUREMENTS = 4  # of a precision
_OPERATIONS = 40  # short, so that some rounds are not interrupted


def unmeasured_precisions(problem: PlanningProblem) -> tuple[str, ...]:
    """Return the precisions that the planner may choose on a device and whose rates are not stored."""
    device, chosen = problem.device, problem.pinned_weights or problem.config.weights
    native = compute_dtype(device, problem.spec)
    wanted = {native}
    if device.kind == "cpu":  # where fp32 is the last resort, it is too slow to be worth a measurement
        wanted = {chosen} if chosen else wanted | {*weight_choices(device, problem.spec)} - {"fp32"}
    known = stored_precisions(device_key(device, cpu_threads(problem.config)), torch.__version__)
    return tuple(sorted(wanted.intersection(_MEASURED) - known))


def calibrate(
    problem: PlanningProblem, precisions: Sequence[str], stopped: Callable[[], bool], steps: CountedWork | None = None
) -> Mapping[str, Rates]:
    """Measure and store the rates of these precisions on the problem's device; stop between them if asked to.

    `steps` counts the `MEASUREMENTS` of each of them that are done.

    A precision that cannot be measured, for lack of memory or of a kernel, is left to estimates: loading the model says
    what is wrong.
    """
    device, found = torch.device(problem.device.torch_name), dict[str, Rates]()
    native, steps = DTYPES[compute_dtype(problem.device, problem.spec)], steps or CountedWork(0)
    with torch.inference_mode():
        for precision in precisions:
            if stopped():
                return {}
            with suppress(RuntimeError, MemoryError):
                found[precision] = _measure(device, precision, DTYPES.get(precision, native), steps)
            release_cached_memory()
    store_rates(device_key(problem.device, cpu_threads(problem.config)), found, torch.__version__, time.time())
    return found


def _measure(device: torch.device, precision: str, dtype: torch.dtype, steps: CountedWork) -> Rates:
    mlp, small = _Mlp(device, precision, dtype), _SmallOperations(device, dtype)
    row, rows = (torch.full((count, _HIDDEN), 0.1, device=device, dtype=dtype) for count in (1, _ROWS))
    query, key = (
        torch.full((1, _HEADS, count, _HEAD_DIM), 0.1, device=device, dtype=dtype) for count in (_ROWS, _CACHED)
    )
    seconds = []
    for work in (
        lambda: mlp(rows), lambda: functional.scaled_dot_product_attention(query, key, key), lambda: mlp(row), small,
    ):  # fmt: skip
        seconds.append(_best_seconds(device, work))
        steps.done += 1
    wide, attention, read, operations = seconds
    return Rates(
        matmul_flops_per_second=2 * _ROWS * mlp.weights / wide,
        attention_flops_per_second=4 * _ROWS * _CACHED * _HEADS * _HEAD_DIM / attention,
        weight_bytes_per_second=mlp.bytes / read,
        operation_seconds=operations / _OPERATIONS,
    )


class _Mlp:
    """A gated MLP, as decoder layers have it: three products with a norm and an activation."""

    def __init__(self, device: torch.device, precision: str, dtype: torch.dtype) -> None:
        shapes = ((_WIDE, _HIDDEN), (_WIDE, _HIDDEN), (_HIDDEN, _WIDE))
        self._gate, self._up, self._down = layers = [_linear(shape, device, precision, dtype) for shape in shapes]
        self.weights = 3 * _WIDE * _HIDDEN
        self.bytes = sum(part.nbytes for layer in layers for part in layer.parameters())

    def __call__(self, hidden: Tensor) -> Tensor:
        states = functional.rms_norm(hidden, (_HIDDEN,))
        out: Tensor = hidden + self._down(functional.silu(self._gate(states)) * self._up(states))
        return out


def _linear(shape: tuple[int, int], device: torch.device, precision: str, dtype: torch.dtype) -> nn.Module:
    """Return a linear layer (out, in) with weights of a precision."""
    outputs, inputs = shape
    with torch.device("meta"):
        linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight = nn.Parameter(torch.full(shape, 1e-3, device=device, dtype=dtype), requires_grad=False)
    if precision in DTYPES or (made := layer_class(precision, linear)) is None:
        return linear
    layer = made(linear)
    layer.weight.data, layer.scales.data = made.quantize(linear.weight)
    return layer


class _SmallOperations:
    """Operations on hardly any data, each of which needs the result of the one before."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._weight = torch.full((64, 64), 1e-3, device=device, dtype=dtype)
        self._states = torch.full((1, 64), 0.1, device=device, dtype=dtype)

    def __call__(self) -> Tensor:
        states = self._states
        for _ in range(_OPERATIONS // 4):
            states = functional.silu(functional.linear(states, self._weight)).mul(0.5).add(self._states)
        return states


def _best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the shortest time of repeated calls: other programs only ever make one longer.

    The first call prepares kernels; it counts only if it takes longer than all repetitions may.
    """
    best, end = float("inf"), time.perf_counter() + _ROUND_SECONDS
    for number in range(_MOST_ROUNDS):
        _wait_for(device)
        start = time.perf_counter()
        work()
        _wait_for(device)
        seconds = time.perf_counter() - start
        best = min(best, seconds) if number else float("inf")
        if time.perf_counter() > end:
            break
    return min(best, seconds)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
