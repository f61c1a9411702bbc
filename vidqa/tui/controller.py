"""The state behind the screen: the open video, plan overrides, the forecast, the conversation and the workers."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from textual.message import Message

from vidqa.config import EngineConfig
from vidqa.devices.device import reread
from vidqa.errors import DoesNotFit, HistoryError, Interrupted, UsageError, VidqaError
from vidqa.history.conversation import Conversation
from vidqa.history.store import FILE_NAME, History
from vidqa.models.download import DownloadProgress
from vidqa.models.hub import demo_folder
from vidqa.planner.planner import Forecast, sufficient_wait
from vidqa.planner.request_checks import check_search
from vidqa.tui.found_moments import FoundMoments
from vidqa.tui.launch_options import LaunchOptions
from vidqa.tui.plan_overrides import PLANNED_QUESTION, PlanOverrides, interactive_config
from vidqa.tui.session_worker import SessionFactory, SessionWorker
from vidqa.tui.thumbnail_loader import ThumbnailLoader
from vidqa.tui.worker_messages import DeviceMemoryRead, DownloadEnded, DownloadProgressed, PlanForecast, SessionJob
from vidqa.types import NO_TIMES, Device, PictureTimes, Request, VideoInfo
from vidqa.video.subtitle_files import AUTO, CHOICES

_REGENERATE_TEMPERATURE = 0.7  # greedy decoding would give the same answer again


class Controller:
    """Holds what the screen draws and the threads that work for it; draws nothing itself."""

    def __init__(self, factory: SessionFactory, options: LaunchOptions) -> None:
        self.options = options
        self.model = options.model
        self.model_missing = options.model is not None and not options.models.has_model(options.model)
        self.fetching: str | None = None  # the model that is downloaded
        self.overrides = PlanOverrides()
        self.video: VideoInfo | None = None
        self.opening: str | None = None  # the path of another video, until it is open or has failed
        self.forecast: Forecast | None = None
        self.history = History(options.state / FILE_NAME if options.state and options.keep_history else None)
        self.job: SessionJob | None = None  # the question or search that the screen shows
        self.search: SessionJob | None = None  # the search that is running
        self.found: FoundMoments | None = None  # the moments that are marked on the time line
        self.moment: int | None = None  # the one of them that the next question is about
        self._factory = factory
        self._config = interactive_config(options.engine, os.cpu_count() or 1)
        self._plan_number = 0
        self._threads: list[threading.Thread] = []
        self._loading_for: tuple[str, str, str] | None = None

    def start(
        self,
        post: Callable[[Message], object],
        run_thread: Callable[[Callable[[], None], str], object],
        warn: Callable[[str], None],
    ) -> None:
        """Start the workers. `post` sends a message to the screen; `run_thread` runs a function as an app's worker."""
        self._send, self._run_thread = post, run_thread
        self.session_worker = SessionWorker(self._factory, self.config(), self._post)
        self.thumbnail_loader = ThumbnailLoader(self._post)
        self.conversation = Conversation(self.history, warn)
        # Plain threads: asyncio would wait for an app's worker without a time limit when the app ends.
        bodies = {"engine": self.session_worker.run, "video": self.thumbnail_loader.run}
        self._threads = [threading.Thread(target=body, name=name, daemon=True) for name, body in bodies.items()]
        for thread in self._threads:
            thread.start()

    def close(self, wait_seconds: float = 0.0) -> None:
        """End the workers, wait for each up to `wait_seconds`, and close the history."""
        if self._threads:
            self.session_worker.close()
            self.thumbnail_loader.close()
        for thread in self._threads:
            thread.join(wait_seconds)
        with suppress(HistoryError):  # on a full disk the session ends too
            self.history.close()

    def _post(self, message: Message) -> None:
        with suppress(RuntimeError):  # the app has ended and its loop is closed
            self._send(message)

    def config(self) -> EngineConfig:
        """Return the settings for the next question."""
        return self.overrides.config(replace(self._config, model=self.model or self._config.model))

    def request(self, question: str) -> Request:
        """Return a request about the open video that includes the conversation so far."""
        assert self.video is not None
        times = self.picture_times(self.video.path)
        base = replace(
            self.options.request, video=self.video.path, picture_fps=times.fps, timestamps=times.file,
            subs=self.subtitles(self.video.path),
        )  # fmt: skip
        return self.overrides.request(base, question, self.conversation.turns())

    # The video

    def example_videos(self) -> list[str]:
        """Return what to offer where no video was opened before: the demo's clip."""
        clip = demo_folder().parent / "demo.mp4"
        return [str(clip)] if clip.is_file() else []

    def picture_times(self, path: str) -> PictureTimes:
        """Return the times of a folder's pictures: the options are about the video that the session began with."""
        return self.options.request.picture_times if path == self.options.video else NO_TIMES

    def subtitles(self, path: str) -> str:
        """Return the choice of subtitles for a video; a file is about one video, as the option's is about the first."""
        chosen = self.overrides.subs
        if chosen in CHOICES or (chosen is not None and self.video is not None and path == self.video.path):
            return chosen
        subs = self.options.request.subs
        return subs if subs in CHOICES or path == self.options.video else AUTO

    def open_video(self, path: str) -> None:
        """Open a video in the loader's thread; it comes as a `VideoOpened` or `VideoFailed`."""
        self.opening = path
        self.thumbnail_loader.open(path, self.picture_times(path), self.subtitles(path))

    def set_video(self, video: VideoInfo) -> None:
        """Use another video, all of it; frames and size are again the planner's choice."""
        if self.opening == video.path:
            self.opening = None
        overrides = self.overrides.for_another_video()
        if self.video is not None and self.video.path == video.path:  # it was read with the chosen subtitles
            overrides = replace(overrides, subs=self.overrides.subs)
        self.video, self.forecast, self.overrides = video, None, overrides
        self.found = self.moment = None

    def reread_subtitles(self, subs: str | None) -> None:
        """Use other subtitles, None for those of the setting; they come with a `VideoOpened` that is marked so.

        A video that is being opened is opened with them.
        """
        self.overrides = replace(self.overrides, subs=subs)
        if self.opening is not None:
            self.open_video(self.opening)
        elif self.video is not None:
            path = self.video.path
            self.thumbnail_loader.open(path, self.picture_times(path), self.subtitles(path), reread=True)

    # The model

    def use_model(self, name: str) -> None:
        """Use another model from the next question on."""
        self.model, self.model_missing = name, not self.options.models.has_model(name)

    def fetch(self, name: str) -> None:
        """Download a model in a thread, with `DownloadProgressed` and at last `DownloadEnded`."""
        self.fetching, self._stop_download = name, threading.Event()
        # A plain thread, which does not delay the app's end: what came until then stays.
        threading.Thread(target=self._fetch, args=(name, self._stop_download), name="download", daemon=True).start()

    def _fetch(self, name: str, stop: threading.Event) -> None:
        def report(progress: DownloadProgress) -> None:
            if stop.is_set():
                raise Interrupted("Stopped.")
            self._post(DownloadProgressed(name, progress))

        error = None
        try:
            self.options.models.pull(name, report)
        except VidqaError as caught:
            error = caught
        except Exception as caught:
            error = VidqaError(f"The download failed: {type(caught).__name__}: {caught}.", "See the log (F9).")
        self._post(DownloadEnded(name, error))

    def stop_download(self) -> None:
        """Stop the download; what came until then stays."""
        self._stop_download.set()

    # The plan

    def override(self, **values: Any) -> None:
        """Set fields of the overrides, None for the planner's choice, and plan again."""
        self.overrides = replace(self.overrides, **values)
        self.plan()

    def take_nearest(self) -> bool:
        """Set the overrides to the nearest plan that fits; return False if there is none."""
        nearest = self.forecast.nearest if self.forecast else None
        if nearest is None:
            return False
        run_config, overrides, seconds = nearest.run_config, self.overrides, nearest.seconds.first_token_seconds
        limit = self.forecast.problem.max_wait_seconds if self.forecast else None
        self.override(
            frames=run_config.frames if overrides.frames else None,
            size=(run_config.height, run_config.width) if overrides.size else None,
            weights=run_config.weights if overrides.weights else None,
            kv=None if overrides.kv and run_config.kv != overrides.kv else overrides.kv,
            max_wait_seconds=overrides.max_wait_seconds
            if limit is None or seconds <= limit
            else sufficient_wait(seconds),
        )
        return True

    def plan(self) -> None:
        """Plan in a thread; the result comes as a `PlanForecast`, of which only the newest is used."""
        if self.video is None or self.model is None:
            return
        self._plan_number += 1
        work = partial(self._forecast, self._plan_number, self.video, self.request(PLANNED_QUESTION), self.config())
        self._run_thread(work, "plan")

    def _forecast(self, number: int, video: VideoInfo, request: Request, config: EngineConfig) -> None:
        forecast, error = None, None
        try:
            forecast = self.session_worker.session().forecast(video, request, config)
        except VidqaError as caught:
            error = caught
        except Exception as caught:
            error = VidqaError(f"The planner failed: {type(caught).__name__}: {caught}.", "See the log (F9).")
        self._post(PlanForecast(number, forecast, error))

    def accept(self, message: PlanForecast) -> bool:
        """Use a forecast if nothing was changed since it was requested; return whether it is used."""
        if message.number != self._plan_number:
            return False
        self.forecast = message.forecast
        return True

    def read_memory(self) -> None:
        """Read the memory of the plan's device in a thread; the result comes as a `DeviceMemoryRead`."""
        if self.forecast is not None:
            self._run_thread(partial(self._read_memory, self.forecast.problem.device), "memory")

    def _read_memory(self, device: Device) -> None:
        with suppress(VidqaError):  # if the device is gone, the next question reports it
            now = reread(device)
            self._post(DeviceMemoryRead(now.process_bytes, now.other_bytes))

    # Questions

    @property
    def answering(self) -> bool:
        """Whether a question is being answered, or a text is searched for."""
        last = self.conversation.last
        return self.search is not None or (last is not None and last.state == "running")

    def load_model(self) -> None:
        """Load the model in the background, once for each model and device; a video that is to be scanned is, too."""
        if self.video is None or self.forecast is None or self.forecast.plan is None or self.session_worker.busy:
            return
        if self.model_missing:
            return
        config, request = self.config(), self.request(PLANNED_QUESTION)
        wanted = (config.model, config.device, "" if request.sample == "uniform" else request.video)
        if self._loading_for != wanted:
            self._loading_for = wanted
            self.session_worker.submit(SessionJob(request, config))

    def prepare(self, question: str, *, replaces: bool = False, resample: bool = False) -> SessionJob:
        """Return a question as a job to submit. `replaces` the last turn; `resample` for a different answer.

        Raises UsageError or DoesNotFit if it cannot be asked now.
        """
        video, model = self._ready()
        if self.forecast is not None and self.forecast.plan is None and self.forecast.refusal is not None:
            refusal = self.forecast.refusal
            raise DoesNotFit(refusal.what, refusal.remedy)
        span = (self.overrides.start_seconds, self.overrides.end_seconds)
        exchange = self.conversation.begin(video, model, question, span, replace=replaces)
        request = self.request(question)
        if resample and not request.temperature:
            request = replace(request, temperature=_REGENERATE_TEMPERATURE, seed=None)
        save = partial(self.conversation.finish, exchange)
        return SessionJob(
            request, self.config(), exchange, save=save, streamed=self.conversation.streaming_text(exchange)
        )

    def _ready(self) -> tuple[VideoInfo, str]:
        """Return video and model; raise UsageError if a question cannot be asked now."""
        if self.video is None:
            raise UsageError("No video is open.", "Open one with ctrl+o.")
        if self.model is None:
            raise UsageError("No model is chosen.", "Choose one with F2.")
        if self.search is not None:
            raise UsageError("A search is running.", "Wait for it, or stop it with Esc.")
        if self.answering:
            raise UsageError("Another question is being answered.", "Wait for the answer, or stop it with Esc.")
        return self.video, self.model

    def submit(self, job: SessionJob) -> None:
        """Submit a question or search that the screen shows from now on."""
        self.job = job
        self.session_worker.submit(job)

    def restart(self) -> None:
        """Start a new conversation; an answer that still comes for the old one goes to the history only."""
        self.job = None
        self.conversation.restart()

    # Moments

    def prepare_search(self, text: str) -> SessionJob:
        """Return a search as a job to submit, in the range of time that is used, or was before a moment was chosen.

        Raises UsageError if it cannot run now.
        """
        self._ready()
        request = replace(self.request(text), history=(), frames=None, fps=None)
        if self.found is not None and self.moment is not None:
            start, end = self.found.start_seconds, self.found.end_seconds
            request = replace(request, start_seconds=start, end_seconds=end)
        check_search(request)
        self.search = SessionJob(request, self.config(), search=True)
        return self.search

    def choose_moment(self, found: FoundMoments, index: int | None) -> None:
        """Ask the next question about a moment; None, or the same again, is for all that was searched."""
        assert self.video is not None
        same = found is self.found and index == self.moment
        self.found, self.moment = found, None if same else index
        start, end = found.start_seconds, found.end_seconds
        if self.moment is not None:
            start, end = found.range_of(self.moment, self.video.duration_seconds)
        self.override(start_seconds=start, end_seconds=end)
