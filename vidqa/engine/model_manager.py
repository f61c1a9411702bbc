"""The model of a session: which checkpoint it is, how it is loaded, and what a plan may no longer choose then.

Loads in a thread beside the events. Knows which settings are settled by loading; answers nothing.
"""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from vidqa.config import EngineConfig
from vidqa.devices.device import find_device
from vidqa.engine.background_task import BackgroundTask
from vidqa.engine.request_state import RequestState
from vidqa.engine.timers import Stopwatch
from vidqa.errors import Interrupted
from vidqa.events import Event, StageProgress, StageStarted
from vidqa.models.family import ModelFamily, family_of
from vidqa.models.registry import Checkpoint, find_checkpoints
from vidqa.models.weight_files import tensor_sizes
from vidqa.planner.budget import with_measured_runtime
from vidqa.planner.memory_model import with_runtime
from vidqa.planner.model_choice import forecast
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.planner.weight_memory import QUANTIZED
from vidqa.types import Device, Request, RunConfig, VideoInfo

if TYPE_CHECKING:
    from vidqa.devices.live_bytes import LiveBytes
    from vidqa.devices.memory_tracker import Meter, Tracker
    from vidqa.models.loader import Loaded


class ModelManager:
    """A session's model: nothing at first, then a checkpoint with its weights on a device."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.checkpoint: Checkpoint | None = None
        self.config: EngineConfig | None = None
        self.runtime_bytes = 0
        self._live: LiveBytes | None = None
        self._known: dict[str, list[Checkpoint]] = {}
        self._beside = BackgroundTask()

    def close(self) -> None:
        """Let go of the weights, and of what is being loaded."""
        self._beside.close()
        self.drop()

    def drop(self) -> None:
        """Let go of the weights."""
        self.loaded = self.checkpoint = self.config = self._live = None
        self.forget_names()

    def forget_names(self) -> None:
        """Look anew for checkpoints: more may have been fetched."""
        self._known.clear()

    def serves(self, config: EngineConfig) -> bool:
        """Whether what is loaded is what these settings ask for: model, device, weights and placement."""
        if self.loaded is None or self.config is None:
            return False
        weights = config.weights in (self.config.weights, self.loaded.weights)
        return weights and _place(config) == _place(self.config)

    def checkpoints(self, config: EngineConfig) -> list[Checkpoint]:
        """What may be planned by these settings, read once: for a face that asks with every key."""
        if self.checkpoint is not None and self.serves(config):
            return [self.checkpoint]
        if config.model not in self._known:
            self._known[config.model] = find_checkpoints(config.model, local=False)
        return self._known[config.model]

    def pin(self, tasks: list[PlanningProblem]) -> list[PlanningProblem]:
        """Tasks of the loaded checkpoint alone: what is loaded stays as it is."""
        if (loaded := self.loaded) is None:
            return tasks
        tasks = [self._beside_tensors(task) for task in tasks]
        return [replace(task, pinned_weights=loaded.weights, pinned_placement=loaded.placement) for task in tasks]

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig) -> Forecast:
        """What a question would run by these settings, on the device as it is now."""
        checkpoints, served = self.checkpoints(config), self.serves(config)
        tasks = planning_problems(checkpoints, video, request, config, find_device(config.device))
        return forecast(self.pin(tasks) if served else [self._beside_tensors(task) for task in tasks])

    def _beside_tensors(self, task: PlanningProblem) -> PlanningProblem:
        """A task for the processor, with what this process holds by now: without its tensors, which are planned."""
        if self.loaded is None or task.device.kind != "cpu":
            return task
        live = self._live  # where tensors are not counted, what the process held before the weights stands
        held = self.runtime_bytes if live is None else max(task.device.process_bytes - live.now, 0)
        return replace(task, overhead=with_measured_runtime(task.overhead, held))

    def get(
        self, run: RequestState, config: EngineConfig, hooks: "LoadHooks", meter: "Meter | None"
    ) -> "Generator[Event, None, tuple[Loaded, Tracker]]":
        """The model as planned, loaded if it is not there; its phase is the first that the tracker measures."""
        if self.loaded is None:
            return (yield from self._load(run, config, hooks, meter))
        from vidqa.devices.memory_tracker import Tracker, runtime_bytes

        use_threads(config)
        if self._live is not None:
            self._settle_runtime(run, runtime_bytes(run.task.device, self._live.now))
        return self.loaded, Tracker(run.task.device, meter, self.runtime_bytes, self._live)

    def _settle_runtime(self, run: RequestState, held_bytes: int) -> None:
        """Plan with what this process holds beside its tensors, as it was just measured: on the processor alone."""
        self.runtime_bytes = held_bytes
        if run.task.device.kind == "cpu":
            overhead = with_measured_runtime(run.task.overhead, held_bytes)
            run.task, run.plan = replace(run.task, overhead=overhead), with_runtime(run.plan, overhead)

    def _load(
        self, run: RequestState, config: EngineConfig, hooks: "LoadHooks", meter: "Meter | None"
    ) -> "Generator[Event, None, tuple[Loaded, Tracker]]":
        watch, folder = Stopwatch(), run.checkpoint.local_folder()
        read = _OpenedVideo(sum(tensor_sizes(folder).values()))
        yield StageStarted("load", read.total_bytes)
        device, name, weights = run.task.device, run.plan.device, run.plan.run_config.weights
        family = family_of(run.checkpoint.spec)
        ready = self._beside.run(lambda stop: _prepare(family, device, name, weights, config), hooks.cancelled, _WHEN)
        self._settle_runtime(run, (yield from _telling(ready, read, None)))
        from vidqa.devices.memory_tracker import Tracker

        use_threads(config)
        hooks.fault("load")
        hooks.look_again()
        self._live = _counter(device, config) if meter is None else None
        tracker, run_config = Tracker(run.task.device, meter, self.runtime_bytes, self._live), run.plan.run_config
        room = run.plan.predicted_peak_bytes - run.plan.phase_bytes["load"]
        with tracker.phase("load"):
            loading = self._beside.run(
                lambda stop: _work(run.checkpoint, name, run_config, room, read, stop), hooks.cancelled, _WHEN
            )
            self.loaded = yield from _telling(loading, read, tracker)
            if self._live is not None:
                _count_weights(self._live, self.loaded)
        self.checkpoint, self.config = run.checkpoint, config
        yield StageProgress("load", read.total_bytes, read.total_bytes)
        if hooks.cancelled():
            raise Interrupted(f"Stopped {_WHEN}.", "Nothing was answered yet.")
        run.load_seconds += watch.seconds()
        run.clock.watch.exclude(watch.seconds())
        return self.loaded, tracker


_WHEN = "while the model was loaded"
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LoadHooks:
    """What loading asks around it: whether to stop, (in tests) whether it fails now, and for a plan of this moment."""

    cancelled: Callable[[], bool]
    fault: Callable[[str], None]
    look_again: Callable[[], None]


@dataclass(slots=True)
class _OpenedVideo:
    """Bytes of the stored weights, and how many of them are in the model."""

    total_bytes: int
    done_bytes: int = 0


def _telling(
    work: Generator[None, None, Result], read: _OpenedVideo, tracker: "Tracker | None"
) -> Generator[Event, None, Result]:
    """Tell how far the loading is, and how memory stands, while the work goes on."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            result: Result = finished.value
            return result
        yield StageProgress("load", read.done_bytes, read.total_bytes)
        if tracker and (sample := tracker.sample()):
            yield sample


def _prepare(family: ModelFamily, device: Device, name: str, weights: str, config: EngineConfig) -> int:
    """Import what takes seconds, and try the device; what the process takes there before any tensor."""
    if weights in QUANTIZED:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels
        with suppress(ImportError, OSError, RuntimeError):  # loading reports a broken one
            import_module("bitsandbytes")  # with torch's compiler: 49 MiB that are no tensors
    from vidqa.devices.memory_tracker import runtime_bytes
    from vidqa.devices.torch_device import torch_device

    use_threads(config)
    family.load_runtime().hf_classes()  # with what loading a model imports
    held = runtime_bytes(device)  # the first to touch the device: it measures what its context takes
    torch_device(name)
    return held


def _counter(device: Device, config: EngineConfig) -> "LiveBytes | None":
    """What counts living tensors, where the device does not."""
    if device.kind == "cuda" or not config.count_tensors:
        return None
    from vidqa.devices.live_bytes import LiveBytes

    return LiveBytes(device.kind)


def _count_weights(live: "LiveBytes", loaded: "Loaded") -> None:
    """Count a loaded model, with what quantized weights keep beside their numbers."""
    model = loaded.model
    live.count_model(model.model)
    plain = sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())
    live.count_bytes(max(model.weights_bytes - plain, 0))


def _work(
    checkpoint: Checkpoint, name: str, run_config: RunConfig, room: int, read: _OpenedVideo, stop: threading.Event
) -> "Loaded":
    """Load, in its thread; what was read is given back where it is to stop.

    `room`: bytes between the load phase and the plan's peak.
    """
    from vidqa.devices.torch_device import release_cached_memory, torch_device
    from vidqa.engine.decode_runners import why_not_captured
    from vidqa.engine.fused_decode import fuse, why_not_fused
    from vidqa.engine.no_grad import no_grad_scope
    from vidqa.models.loader import DTYPES, load_model

    def told(done_bytes: int) -> None:
        if stop.is_set():
            raise Interrupted(f"Stopped {_WHEN}.")
        read.done_bytes = done_bytes

    with suppress(Interrupted), no_grad_scope():  # grad mode belongs to a thread
        device = torch_device(name)
        if device.type == "cuda":  # compared while the device is empty; remembered for `fuse`
            why_not_fused(checkpoint.spec, device, DTYPES[run_config.dtype])
        loaded = load_model(
            checkpoint.local_folder(), device, run_config.weights, run_config.dtype, run_config.placement, told
        )
        return loaded if why_not_captured(loaded.model) else replace(loaded, model=fuse(loaded.model, room))
    release_cached_memory()
    raise Interrupted(f"Stopped {_WHEN}.")


def use_threads(config: EngineConfig) -> None:
    """Let this thread compute on as many cores as the settings say."""
    if config.cpu_threads is not None:
        import torch

        if torch.get_num_threads() != config.cpu_threads:
            torch.set_num_threads(config.cpu_threads)


def _place(config: EngineConfig) -> tuple[object, ...]:
    return config.model, config.device, config.placement
