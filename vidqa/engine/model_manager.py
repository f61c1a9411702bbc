"""The model of a session: which checkpoint it is, plans for it, and loading it in a thread while events are yielded."""

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from vidqa.config import EngineConfig
from vidqa.devices.device import find_device
from vidqa.engine.request_state import RequestState, video_cache_key
from vidqa.engine.timers import (
    Callbacks,
    CountedWork,
    Stopwatch,
    loading_weights,
    stage_events,
    starting_libraries,
)
from vidqa.errors import Interrupted
from vidqa.events import Event, Noted, StageProgress, StageStarted
from vidqa.models.family import ModelFamily, family_of
from vidqa.models.registry import Checkpoint, find_checkpoints
from vidqa.models.weight_files import tensor_sizes
from vidqa.planner.budget import with_measured_runtime
from vidqa.planner.calibration import Rates
from vidqa.planner.memory_model import with_runtime
from vidqa.planner.model_choice import forecast, plan_best
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import PlanningProblem, cpu_threads, planning_problems
from vidqa.planner.weight_memory import QUANTIZED, runs_on_cpu_layers
from vidqa.types import Device, Request, RunConfig, VideoInfo
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Meter, Tracker
    from vidqa.devices.tensor_counter import TensorCounter
    from vidqa.models.loader import Loaded

Result = TypeVar("Result")

_POLL_SECONDS = 0.1  # how often progress is yielded, and cancellation checked
_CLOSE_SECONDS = 5.0  # then a thread that reads from a dead disk is left behind
_WHEN = "while the model was loaded"


class ModelManager:
    """A session's model: nothing at first, then a checkpoint with its weights on a device."""

    def __init__(self, callbacks: Callbacks, meter: "Meter | None" = None) -> None:
        self.callbacks, self._meter = callbacks, meter
        self.loaded: Loaded | None = None
        self.runtime_bytes = 0  # of this process, beside its tensors
        self._checkpoint: Checkpoint | None = None
        self._config: EngineConfig | None = None
        self._live: TensorCounter | None = None
        self._known: dict[str, list[Checkpoint]] = {}
        self._task = BackgroundTask()

    def close(self) -> None:
        """Free the weights and stop loading."""
        self._task.close()
        self.unload()

    def unload(self) -> None:
        """Free the weights, and search for checkpoints again the next time: more may have been fetched."""
        self.loaded = self._checkpoint = self._config = self._live = None
        self._known.clear()

    def unload_unless(self, config: EngineConfig) -> None:
        """Free the weights unless they serve these settings too."""
        if self.loaded is not None and not self.matches(config):
            from vidqa.devices.torch_device import release_cached_memory

            self.unload()
            release_cached_memory()
        self._known.clear()

    def matches(self, config: EngineConfig) -> bool:
        """Return whether the loaded model has the model, device, weights and placement of these settings."""
        if self.loaded is None or self._config is None:
            return False
        weights = config.weights in (self._config.weights, self.loaded.weights)
        return weights and _location(config) == _location(self._config)

    def plan(
        self, reader: VideoReader, request: Request, config: EngineConfig, *, local: bool, parked_bytes: int = 0
    ) -> RequestState:
        """Return the state of a request with its best plan; `local` searches only checkpoints whose weights are here.

        `parked_bytes` as in `planning_problems`. Raises DoesNotFit, UsageError and ModelError.
        """
        there = self._checkpoint
        checkpoints = [there] if there else find_checkpoints(config.model, local=local)
        signal, device = _known_signal(request, config), find_device(config.device)
        problems = planning_problems(checkpoints, reader.info, request, config, device, signal, parked_bytes)
        problems = self._constrain_to_loaded(problems)
        place, plan = plan_best(problems)
        return RequestState(request, video_cache_key(request), reader.info, checkpoints[place], problems[place], plan)

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig, parked_bytes: int = 0) -> Forecast:
        """Return what `plan` would find for a probed video on the device as it is now."""
        matches = self.matches(config)
        if matches and self._checkpoint is not None:
            checkpoints = [self._checkpoint]
        else:  # found once: the interactive session calls this with every key
            if config.model not in self._known:
                self._known[config.model] = find_checkpoints(config.model, local=False)
            checkpoints = self._known[config.model]
        signal, device = _known_signal(request, config), find_device(config.device)
        problems = planning_problems(checkpoints, video, request, config, device, signal, parked_bytes)
        return forecast(
            self._constrain_to_loaded(problems) if matches else [self._with_runtime(problem) for problem in problems]
        )

    def _constrain_to_loaded(self, problems: list[PlanningProblem]) -> list[PlanningProblem]:
        """Fix weights and placement of problems to those of the loaded model, if there is one."""
        if (loaded := self.loaded) is None:
            return problems
        problems = [self._with_runtime(problem) for problem in problems]
        return [problem.constrained_to(loaded.weights, loaded.placement) for problem in problems]

    def _with_runtime(self, problem: PlanningProblem) -> PlanningProblem:
        """Return a CPU's problem with the memory that this process now holds beside its tensors, which are planned."""
        if self.loaded is None or problem.device.kind != "cpu":
            return problem
        live = self._live  # if tensors are not counted: what the process held before the weights
        held = self.runtime_bytes if live is None else max(problem.device.process_bytes - live.now, 0)
        return replace(problem, overhead=with_measured_runtime(problem.overhead, held))

    def ensure_loaded(
        self, state: RequestState, config: EngineConfig
    ) -> "Generator[Event, None, tuple[Loaded, Tracker]]":
        """Load the planned model if none is loaded; return it with a memory tracker, whose first phase is `load`."""
        if self.loaded is None:
            return (yield from self._load(state, config))
        from vidqa.devices.memory_tracker import Tracker, runtime_bytes

        set_threads(config)
        if self._live is not None:
            self._set_runtime(state, runtime_bytes(state.problem.device, self._live.now))
        return self.loaded, Tracker(state.problem.device, self._meter, self.runtime_bytes, self._live)

    def _set_runtime(self, state: RequestState, held_bytes: int) -> None:
        """Record what this process holds beside its tensors; on a CPU it counts in the plan."""
        self.runtime_bytes = held_bytes
        if state.problem.device.kind == "cpu":
            overhead = with_measured_runtime(state.problem.overhead, held_bytes)
            state.problem, state.plan = replace(state.problem, overhead=overhead), with_runtime(state.plan, overhead)

    def _load(self, state: RequestState, config: EngineConfig) -> "Generator[Event, None, tuple[Loaded, Tracker]]":
        watch, folder = Stopwatch(), state.checkpoint.local_folder()
        progress = CountedWork(sum(tensor_sizes(folder).values()))
        device, name, weights = state.problem.device, state.plan.device, state.plan.run_config.weights
        family, is_cancelled = family_of(state.checkpoint.spec), self.callbacks.is_cancelled
        bitsandbytes = weights in QUANTIZED and not runs_on_cpu_layers(state.checkpoint.spec, state.plan.run_config)
        prepared = self._task.run(
            lambda stop: _prepare(family, device, name, config, bitsandbytes=bitsandbytes), is_cancelled, _WHEN
        )
        self._set_runtime(state, (yield from starting_libraries(prepared, bitsandbytes=bitsandbytes)))
        from vidqa.devices.memory_tracker import Tracker

        set_threads(config)
        self.callbacks.inject_fault("load")
        yield from self._calibrate(state, config)
        state.replan_if_changed(config)
        yield StageStarted("load", progress.total)
        self._live = _counter(device, config) if self._meter is None else None
        tracker, plan = Tracker(state.problem.device, self._meter, self.runtime_bytes, self._live), state.plan
        spare_bytes = plan.predicted_peak_bytes - plan.phase_bytes["load"]
        with tracker.phase("load"):
            loading = self._task.run(
                lambda stop: _load_weights(state.checkpoint, name, plan.run_config, spare_bytes, progress, stop),
                is_cancelled, _WHEN,
            )  # fmt: skip
            self.loaded = yield from loading_weights(loading, progress, tracker)
            if self._live is not None:
                _count_weights(self._live, self.loaded)
        self._checkpoint, self._config = state.checkpoint, config
        yield StageProgress("load", progress.total, progress.total)
        if is_cancelled():
            raise _interrupted(_WHEN)
        state.load_seconds += watch.seconds()
        state.clock.watch.exclude(watch.seconds())
        return self.loaded, tracker

    def _calibrate(self, state: RequestState, config: EngineConfig) -> Generator[Event, None, None]:
        """Measure the speed of a device on which no model was loaded before, if the settings say so."""
        if not config.calibrate:
            return
        from vidqa.devices.memory_tracker import runtime_bytes
        from vidqa.engine.calibrator import MEASUREMENTS, calibrate, unmeasured_precisions

        problem, watch = state.problem, Stopwatch()
        if not (precisions := unmeasured_precisions(problem)):
            return

        steps = CountedWork(len(precisions) * MEASUREMENTS)

        def measure(stop: threading.Event) -> Mapping[str, Rates]:
            set_threads(config)
            return calibrate(problem, precisions, stop.is_set, steps)

        measuring = self._task.run(measure, self.callbacks.is_cancelled, _WHEN)
        rates = yield from stage_events("speed", measuring, steps.total, lambda: steps.done)
        if problem.device.kind == "cpu":
            self._set_runtime(state, runtime_bytes(problem.device))  # with what the kernels' libraries hold now
        if rates:
            text = f"measured this machine's speed, once, in {watch.seconds():.1f} s; `vidqa doctor` shows it"
            yield from state.note(Noted(text))


def _known_signal(request: Request, config: EngineConfig) -> ChangeSignal | None:
    """Return what an earlier scan of the video found, if the request's frames depend on it."""
    if request.sample == "uniform":
        return None
    from vidqa.video.signal_cache import SIGNALS

    return SIGNALS.find(request, on_disk=config.remember)


class BackgroundTask:
    """Runs one job at a time in a thread, while a generator yields.

    A job that was stopped is waited for before the next one begins.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def run(
        self, job: Callable[[threading.Event], Result], is_cancelled: Callable[[], bool], when: str
    ) -> Generator[None, None, Result]:
        """Yield ten times a second until `job` is done; return its result, or raise its error.

        Raises Interrupted within a tenth of a second of a cancellation, with `when` in its message; the job's event is
        set then, and its result dropped.
        """
        yield from self._wait(is_cancelled, when)
        if is_cancelled():
            raise _interrupted(when)
        future: Future[Result] = Future()
        self._stop = stop = threading.Event()
        thread = threading.Thread(target=_work, args=(job, stop, future), name="vidqa-load", daemon=True)
        thread.start()
        self._thread = thread
        try:
            yield from self._wait(is_cancelled, when)
            if not future.done():  # stopped by `close`
                raise _interrupted(when)
            return future.result()
        finally:
            stop.set()
            del future  # its error refers back to this frame, which would stay alive with it

    def _wait(self, is_cancelled: Callable[[], bool], when: str) -> Generator[None, None, None]:
        while (thread := self._thread) is not None:
            thread.join(_POLL_SECONDS)
            if not thread.is_alive():
                self._thread = None
                return
            if is_cancelled():
                raise _interrupted(when)
            yield

    def close(self) -> None:
        """Stop the job and wait a few seconds for it."""
        if (thread := self._thread) is not None:
            self._stop.set()
            thread.join(_CLOSE_SECONDS)


def _work(job: Callable[[threading.Event], Result], stop: threading.Event, future: "Future[Result]") -> None:
    try:
        result = job(stop)
    except BaseException as error:
        if not stop.is_set():  # else nothing reads it, and its traceback would keep the job's objects alive
            future.set_exception(error)
    else:
        if not stop.is_set():
            future.set_result(result)
    finally:
        del future  # an error refers back to this frame


def _interrupted(when: str) -> Interrupted:
    return Interrupted(f"Stopped {when}.", "Nothing was answered yet.")


def _prepare(family: ModelFamily, device: Device, name: str, config: EngineConfig, *, bitsandbytes: bool) -> int:
    """Import what takes seconds and open the device; return the bytes of this process there before any tensor."""
    if bitsandbytes:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels
        with suppress(ImportError, OSError, RuntimeError):  # loading reports a broken one
            import_module("bitsandbytes")  # with torch's compiler: 49 MiB that are no tensors
    from vidqa.devices.memory_tracker import runtime_bytes
    from vidqa.devices.torch_device import torch_device

    set_threads(config)
    family.load_runtime().hf_classes()  # with what loading a model imports
    held = runtime_bytes(device)  # the first to touch the device: it measures what its context takes
    torch_device(name)
    return held


def _counter(device: Device, config: EngineConfig) -> "TensorCounter | None":
    """Return a counter of living tensors, for a device whose allocator does not count them."""
    if device.kind == "cuda" or not config.count_tensors:
        return None
    from vidqa.devices.tensor_counter import TensorCounter

    return TensorCounter(device.kind)


def _count_weights(live: "TensorCounter", loaded: "Loaded") -> None:
    """Count a loaded model, with what quantized weights keep beside their numbers."""
    model = loaded.model
    live.count_model(model.model)
    plain = sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())
    live.count_bytes(max(model.weights_bytes - plain, 0))


def _load_weights(
    checkpoint: Checkpoint, name: str, run_config: RunConfig, spare_bytes: int, progress: CountedWork,
    stop: threading.Event,
) -> "Loaded":  # fmt: skip
    """Load in the calling thread; `spare_bytes` lie between the load phase and the plan's peak.

    Raises Interrupted after freeing the weights if `stop` is set.
    """
    from vidqa.devices.torch_device import release_cached_memory, torch_device
    from vidqa.engine.no_grad import no_grad_scope
    from vidqa.models.loader import DTYPES, load_model

    def on_progress(done_bytes: int) -> None:
        if stop.is_set():
            raise _interrupted(_WHEN)
        progress.done = done_bytes

    with suppress(Interrupted), no_grad_scope():  # grad mode belongs to a thread
        device, folder = torch_device(name), checkpoint.local_folder()
        if device.type != "cuda":
            return load_model(folder, device, run_config.weights, run_config.dtype, run_config.placement, on_progress)
        from vidqa.engine.decode_runners import why_not_captured
        from vidqa.engine.fused_decoder_selection import fuse, why_not_fused

        why_not_fused(checkpoint.spec, device, DTYPES[run_config.dtype])  # compared while the device is empty, cached
        loaded = load_model(folder, device, run_config.weights, run_config.dtype, run_config.placement, on_progress)
        return loaded if why_not_captured(loaded.model) else replace(loaded, model=fuse(loaded.model, spare_bytes))
    release_cached_memory()
    raise _interrupted(_WHEN)


def set_threads(config: EngineConfig) -> None:
    """Limit this thread's torch operations to the cores of the settings, or to those that this process may use."""
    import torch

    threads = cpu_threads(config)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _location(config: EngineConfig) -> tuple[object, ...]:
    return config.model, config.device, config.placement
