"""What was measured of a request: seconds by stage, and memory. Imports no torch, av or numpy."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per stage. `first_token_seconds` counts from the plan, without loading.

    `open_seconds` are those before: opening the video and planning.
    """

    load_seconds: float
    video_seconds: float
    vision_seconds: float
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    tokens: int
    open_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """Return the time from the request to the end of the answer, with opening the video and loading."""
        return self.open_seconds + self.load_seconds + self.first_token_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        """Return the decode rate; the first token belongs to the prefill."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class PhaseMemory:
    """Measured bytes of one phase: of tensors, and reserved by the allocator, where there is one."""

    name: str
    start_bytes: int
    peak_bytes: int
    end_bytes: int
    reserved_start_bytes: int | None
    reserved_peak_bytes: int | None
    reserved_end_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Measured bytes of a request; `measured_peak_bytes` is the process's peak on the plan's device.

    `runtime_bytes` is what the process held there before this request's tensors. `tensor_peak_bytes` is the peak of
    all tensors, where it was counted.
    """

    weights_bytes: int
    kv_bytes: int
    runtime_bytes: int
    measured_peak_bytes: int
    host_peak_bytes: int
    other_bytes: int
    phases: tuple[PhaseMemory, ...]
    tensor_peak_bytes: int | None = None
