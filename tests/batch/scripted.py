"""A session without a model: captions depend on the clip's frames only, read at the indices of the real plan."""

import threading
from collections.abc import Callable, Iterator, Sequence

from vidqa.batch.captioner import Opener
from vidqa.config import EngineConfig
from vidqa.errors import Interrupted, VideoError
from vidqa.events import Answered, Event, Failed, Planned
from vidqa.models.registry import find_checkpoints
from vidqa.planner.model_choice import forecast
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import planning_problems
from vidqa.types import Answer, Device, Plan, Request, VideoInfo
from vidqa.utils.metrics import MemoryUse, Timing

MODEL = "Qwen/Qwen2-VL-2B-Instruct"
_GIB = 2**30
CARD = Device(
    kind="cuda", index=0, name="NVIDIA GeForce RTX 4060", total_bytes=8 * _GIB, free_bytes=7 * _GIB,
    process_bytes=0, other_bytes=0, compute_capability=(8, 9), bf16=True,
    bandwidth_bytes_per_second=272e9, flops_per_second=60e12,
)  # fmt: skip
CONFIG = EngineConfig(model=MODEL, remember=False, isolate_decoder=False)


class ScriptedEngine:
    """A BatchEngine; `before` is called with the requests of every group, to fail, wait or count."""

    def __init__(
        self, config: EngineConfig, opener: Opener, before: Callable[[Sequence[Request]], object] = lambda group: None
    ) -> None:
        self._config, self._opener, self._before = config, opener, before
        self._checkpoints = find_checkpoints(config.model, local=False)
        self._cancelled = threading.Event()
        self.groups: list[list[Request]] = []

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        return forecast(planning_problems(self._checkpoints, video, request, config or self._config, CARD))

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        self.groups.append(list(requests))
        self._before(requests)
        for number, request in enumerate(requests):
            if self._cancelled.is_set():
                raise Interrupted("Stopped.")
            try:
                yield from self._answered(number, request, len(requests))
            except VideoError as error:
                yield number, Failed(error)

    def _answered(self, number: int, request: Request, batch: int) -> Iterator[tuple[int, Event]]:
        with self._opener(request, self._cancelled.is_set) as reader:
            plan = self.forecast(reader.info, request).plan
            assert plan is not None
            yield number, Planned(reader.info, plan)
            means = [frame.rgb.mean() for frame in reader.frames(plan.indices)]
            reader.check_coverage(plan.indices)
            text = f"{len(means)} frames, {sum(means) / len(means):.3f} bright, {request.question}"
            yield number, Answered(answer_of(request, plan, reader.info, text))

    def cancel(self) -> None:
        self._cancelled.set()

    def forget(self) -> None:
        """Forget a cancel, as a session does at the start of a question."""
        self._cancelled.clear()

    def close(self) -> None:
        pass


def answer_of(request: Request, plan: Plan, video: VideoInfo, text: str) -> Answer:
    timing = Timing(0.0, 0.1, 0.2, 0.3, 0.6, 1.0, 51)
    memory = MemoryUse(4 * _GIB, _GIB // 64, _GIB // 2, 5 * _GIB, _GIB, 0, ())
    return Answer(text, "stop", request.question, video, plan, timing, memory)
