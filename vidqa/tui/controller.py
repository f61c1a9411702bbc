"""Where a question is made ready: the video, the wish, the plan for it, and the jobs for the bridge.

Holds what the screen draws and the threads that work for it. Draws nothing.
"""

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
from vidqa.errors import DoesNotFit, UsageError, VidqaError
from vidqa.history.store import FILE_NAME, History
from vidqa.models.hub import demo_folder
from vidqa.planner.planner import Forecast
from vidqa.tui.conversation import Conversation
from vidqa.tui.launch_options import LaunchOptions
from vidqa.tui.plan_overrides import PLANNED_QUESTION, PlanOverrides, interactive
from vidqa.tui.session_worker import SessionFactory, SessionJob, SessionWorker
from vidqa.tui.thumbnail_loader import ThumbnailLoader
from vidqa.tui.worker_messages import ModelsListed, PlanForecast
from vidqa.types import Device, Request, VideoInfo

_SAMPLED_AGAIN = 0.7  # temperature of an answer that is asked for once more: greedily it would be the same


class Controller:
    """`post` tells the screen; `run_thread` starts a thread of the app's (body, name)."""

    def __init__(self, factory: SessionFactory, face: LaunchOptions) -> None:
        self.face = face
        self.model = face.model
        self.wish = PlanOverrides()
        self.video: VideoInfo | None = None
        self.forecast: Forecast | None = None
        self.history = History(face.state / FILE_NAME if face.state and face.keep_history else None)
        self._factory = factory
        self._config = interactive(face.engine, os.cpu_count() or 1)
        self._number = 0
        self._threads: list[threading.Thread] = []
        self._loading_for: tuple[str, str] | None = None
        self.job: SessionJob | None = None

    def start(
        self,
        post: Callable[[Message], object],
        run_thread: Callable[[Callable[[], None], str], object],
        warn: Callable[[str], None],
    ) -> None:
        """Begin to work for a screen."""
        self._send, self._run_thread = post, run_thread
        self.bridge = SessionWorker(self._factory, self.config(), self._post)
        self.projector = ThumbnailLoader(self._post)
        self.conversation = Conversation(self.history, warn)
        # Not of the app's own: asyncio waits for those without end, however an app ended.
        bodies = {"engine": self.bridge.run, "video": self.projector.run}
        self._threads = [threading.Thread(target=body, name=name, daemon=True) for name, body in bodies.items()]
        for thread in self._threads:
            thread.start()

    def leave(self, wait_seconds: float = 0.0) -> None:
        """End the threads, and wait so long for them; the history is whole."""
        if self._threads:
            self.bridge.leave()
            self.projector.leave()
        for thread in self._threads:
            thread.join(wait_seconds)
        self.history.close()

    def _post(self, message: Message) -> None:
        """Tell the screen; nobody where it is gone already."""
        with suppress(RuntimeError):  # its loop is closed
            self._send(message)

    def config(self) -> EngineConfig:
        """How questions are run now."""
        return self.wish.config(replace(self._config, model=self.model or self._config.model))

    def request(self, question: str) -> Request:
        """A question about the open video, after what was said so far."""
        assert self.video is not None
        base = replace(self.face.request, video=self.video.path)
        return self.wish.request(base, question, self.conversation.turns())

    # The video

    def examples(self) -> list[str]:
        """What to open where nothing was opened before: the demo's clip."""
        clip = demo_folder().parent / "demo.mp4"
        return [str(clip)] if clip.is_file() else []

    def opened(self, video: VideoInfo) -> None:
        """Another video: its range is whole, its conversation new."""
        self.video, self.forecast = video, None
        self.wish = replace(self.wish, start_seconds=None, end_seconds=None, frames=None, size=None)

    # The plan

    def change(self, **wishes: Any) -> None:
        """Set something, or give it back to the planner with None."""
        self.wish = replace(self.wish, **wishes)
        self.plan()

    def take_nearest(self) -> bool:
        """Wish for the nearest plan that fits; False where there is none."""
        nearest = self.forecast.nearest if self.forecast else None
        if nearest is None:
            return False
        run_config, wish = nearest.run_config, self.wish
        kept = {
            "frames": run_config.frames if wish.frames else None,
            "size": (run_config.height, run_config.width) if wish.size else None,
            "weights": run_config.weights if wish.weights else None,
            "kv": None if wish.kv and run_config.kv != wish.kv else wish.kv,
        }
        self.change(**kept)
        return True

    def plan(self) -> None:
        """Ask the planner, away from the screen; the newest question's answer counts."""
        if self.video is None or self.model is None:
            return
        self._number += 1
        work = partial(self._forecast, self._number, self.video, self.request(PLANNED_QUESTION), self.config())
        self._run_thread(work, "plan")

    def _forecast(self, number: int, video: VideoInfo, request: Request, config: EngineConfig) -> None:
        forecast, error = None, None
        try:
            forecast = self.bridge.session().forecast(video, request, config)
        except VidqaError as caught:
            error = caught
        except Exception as caught:
            error = VidqaError(f"The planner failed: {type(caught).__name__}: {caught}.", "The log may say more.")
        self._post(PlanForecast(number, forecast, error))

    def look(self) -> None:
        """Look at the plan's device, away from the screen."""
        if self.forecast is not None:
            self._run_thread(partial(self._look, self.forecast.task.device), "look")

    def _look(self, device: Device) -> None:
        try:
            now = reread(device)
        except VidqaError:
            return  # the device is gone: the next question will tell
        self._post(ModelsListed(now.process_bytes, now.other_bytes))

    def is_newest(self, message: PlanForecast) -> bool:
        """Whether nothing was changed since; then the answer is kept."""
        if message.number != self._number:
            return False
        self.forecast = message.forecast
        return True

    # Questions

    @property
    def answering(self) -> bool:
        """Whether a question is on its way."""
        last = self.conversation.last
        return last is not None and last.state == "running"

    def load(self) -> None:
        """Make a model ready in the background, once; with other weights it is loaded when a question needs them."""
        if self.video is None or self.forecast is None or self.forecast.plan is None or self.bridge.busy:
            return
        config = self.config()
        if self._loading_for != (config.model, config.device):
            self._loading_for = (config.model, config.device)
            self.bridge.submit(SessionJob(self.request(PLANNED_QUESTION), config))

    def prepare(self, question: str, *, replaces: bool = False, anew: bool = False) -> SessionJob:
        """A question as a job to submit; `replaces` the last turn, `anew` for another answer.

        Raises UsageError or DoesNotFit for what cannot be asked now.
        """
        if self.video is None:
            raise UsageError("There is no video yet.", "Open one with ctrl+o.")
        if self.model is None:
            raise UsageError("There is no model yet.", "Choose one with F2.")
        if self.answering:
            raise UsageError("Another answer is on its way.", "Esc stops it.")
        if self.forecast is not None and self.forecast.plan is None and self.forecast.refusal is not None:
            refusal = self.forecast.refusal
            raise DoesNotFit(refusal.what, refusal.remedy)
        span = (self.wish.start_seconds, self.wish.end_seconds)
        exchange = self.conversation.begin(self.video, self.model, question, span, replace=replaces)
        request = self.request(question)
        if anew and not request.temperature:
            request = replace(request, temperature=_SAMPLED_AGAIN, seed=None)
        save = partial(self.conversation.answered, exchange)
        return SessionJob(request, self.config(), exchange, save, self.conversation.draft_of(exchange))

    def submit(self, job: SessionJob) -> None:
        """Let the bridge answer; from now on this is the job that concerns the screen."""
        self.job = job
        self.bridge.submit(job)

    def restart(self) -> None:
        """A new conversation: what still comes for the old one goes to the history alone."""
        self.job = None
        self.conversation.restart()
