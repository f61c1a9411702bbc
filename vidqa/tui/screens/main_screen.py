"""The main screen: video, plan and memory around a conversation, and what the workers' messages change on it."""

import time
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from vidqa.errors import Interrupted, VidqaError
from vidqa.events import Answered, Degraded, Event, Found, Noted, OutOfDomain, Planned, StageStarted
from vidqa.history.records import plan_figures, usage_figures
from vidqa.messages import degraded_text, out_of_domain_text
from vidqa.tui.bindings import bindings_for
from vidqa.tui.controller import Controller
from vidqa.tui.option_words import in_session_words
from vidqa.tui.progress_text import ProgressText, short_usage_line, usage_line
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.screens.model_actions import for_session
from vidqa.tui.screens.search_actions import SearchActions
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.tui.widgets.key_footer import KeyFooter
from vidqa.tui.widgets.memory_panel import Activity, MemoryPanel, Sample
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.thumbnail_strip import ThumbnailStrip
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.title_bar import TitleBar
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.worker_messages import (
    DeviceMemoryRead,
    EngineEvent,
    FrameDecoded,
    FramesFailed,
    JobEnded,
    MemoryMeasured,
    PlanForecast,
    Progressed,
    SessionJob,
    TextWaiting,
    VideoFailed,
    VideoOpened,
)
from vidqa.types import Plan, VideoInfo
from vidqa.utils.safe_text import safe_text

_TEXT_SECONDS = 0.05  # text that comes within this time is drawn together
_MAX_TEXT_SECONDS = 0.4
_IDLE_RATIO = 3  # wait this many times as long as drawing the text took, so that keys are handled in between
_STATUS_SECONDS = 0.1


class MainScreen(SearchActions):
    """All of the session on one screen; parts are hidden on small terminals."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("app")
    AUTO_FOCUS = "#prompt"
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (40, "-narrow"), (96, "-wide")]  # noqa: RUF012 - as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (10, "-low"), (18, "-short"), (30, "-tall")]  # noqa: RUF012 - as Textual declares it
    help_title = "vidqa"
    help_text = "Open a video, ask about it, and see the plan and the memory that the answer needs."

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._progress = ProgressText()
        self._text_seconds, self._cpu_seconds = _TEXT_SECONDS, 0.0
        self._status_pending = False
        self._text_pending: SessionJob | None = None  # the job whose text a timer will draw
        self._phase_sampled = False  # whether a phase has sampled the memory since the last tick

    def compose(self) -> ComposeResult:
        """Yield the parts from top to bottom."""
        yield TitleBar(id="title-bar")
        with Horizontal(id="body"):
            with Vertical(id="conversation"):
                yield ThumbnailStrip(self.controller.options.images, id="thumbnails")
                yield Timeline(id="timeline")
                yield Transcript(id="transcript")
                yield Static("", id="status", markup=False)
                yield QuestionInput(id="prompt")
            with VerticalScroll(id="side-panel", can_focus=False):
                yield PlanPanel(id="plan")
                yield MemoryPanel(id="memory")
        yield KeyFooter(compact=True)
        yield Static("vidqa needs 40×10", id="too-small", markup=False)

    async def on_mount(self) -> None:
        """Show the model and the first hint."""
        self.set_class(self.controller.options.images != "none", "-pictures")
        self.show_model()
        await self.query_one(Transcript).clear(self.hint())

    # The video

    async def on_video_opened(self, message: VideoOpened) -> None:
        """Show the video with an empty conversation, and plan for it; of a video that is open, use the subtitles."""
        if message.reread:
            self._use_subtitles(message.video)
            return
        self.controller.set_video(message.video)
        timeline = self.query_one(Timeline)
        timeline.duration, timeline.cursor, timeline.timestamps = message.video.duration_seconds, 0.0, ()
        timeline.signal = None
        self.query_one(TitleBar).video = message.video
        self.query_one(QuestionInput).placeholder = "Ask about the video, then press Enter"
        await self.begin_conversation(self.take_resumed(message.video.path))
        self.show_status("")
        for note in message.video.notes:
            self.notify(safe_text(note), title="Video", markup=False)
        self.controller.plan()

    def on_video_failed(self, message: VideoFailed) -> None:
        """Notify; the current video stays open, with the subtitles that it had."""
        self.show_status("")
        self.notify_error(
            message.error, "These subtitles are not used" if message.reread else "This video cannot be opened"
        )
        controller = self.controller
        if message.reread and controller.overrides.subs != self.previous_subs:
            controller.reread_subtitles(self.previous_subs)
        elif not message.reread:  # the loader has left the current video, and its subtitles may have been chosen anew
            controller.opening = self._resumed = None
            controller.reread_subtitles(controller.overrides.subs)

    def _use_subtitles(self, video: VideoInfo) -> None:
        if self.controller.video is not None and self.controller.video.path == video.path:
            self.controller.video = video
            for note in video.notes:
                self.notify(safe_text(note), title="Video", markup=False)
            self.controller.plan()

    def on_frame_decoded(self, message: FrameDecoded) -> None:
        """Show a frame in the strip, and in the viewer if it is open."""
        self.query_one(ThumbnailStrip).show_picture(message.index, message.picture)
        if isinstance(self.app.screen, FrameViewer):
            self.app.screen.frame_decoded(message.index)

    def on_frames_failed(self, message: FramesFailed) -> None:
        """Say in the viewer, if it is open, that its frame cannot be decoded."""
        if isinstance(self.app.screen, FrameViewer):
            self.app.screen.frames_failed(message.indices)

    def on_thumbnail_strip_requested(self, message: ThumbnailStrip.Requested) -> None:
        """Have frames decoded."""
        self.controller.thumbnail_loader.request(message.indices)

    def on_transcript_timestamp_chosen(self, message: Transcript.TimestampChosen) -> None:
        """Move the cursor to a time in an answer."""
        self.query_one(Timeline).cursor = message.seconds

    # The plan and the memory

    async def on_plan_forecast(self, message: PlanForecast) -> None:
        """Show the newest plan, and load the model for it."""
        if not self.controller.accept(message) or self.controller.video is None:
            return
        if message.forecast is None:
            assert message.error is not None
            if self.controller.fetching != self.controller.model:  # else the line has the download's progress
                self.show_error(for_session(message.error))
            return
        self.clear_error()
        forecast, panel = message.forecast, self.query_one(MemoryPanel)
        self.query_one(PlanPanel).show(forecast, self.controller.overrides, self.controller.moment)
        panel.show_device(forecast.problem.device)
        if (plan := forecast.plan) is not None:
            self._show_plan(plan)
            timeline = self.query_one(Timeline)
            timeline.timestamps, timeline.signal = plan.timestamps_seconds, forecast.problem.signal
            await self.query_one(ThumbnailStrip).show_plan(self.controller.video, plan)
            self.controller.load_model()

    def _show_plan(self, plan: Plan) -> None:
        self.query_one(MemoryPanel).show_plan(plan)
        self.query_one(TitleBar).plan = plan

    def on_plan_option_changed(self, message: PlanOption.Changed) -> None:
        """Plan with another value."""
        if message.field == "subs":
            self.choose_subtitles(message.value)
        else:
            self.controller.override(**{message.field: message.value})

    def on_memory_measured(self, message: MemoryMeasured) -> None:
        """Show a sample of a running phase."""
        sample, self._phase_sampled = message.sample, True
        measured = Sample(sample.current_bytes, sample.other_bytes)
        self.query_one(MemoryPanel).add_sample(measured, sample.phase, sample.peak_bytes, sample.tensor_peak_bytes)

    def tick(self) -> None:
        """Move the graph by a second; read the memory if no phase has sampled it (between answers, during a load)."""
        panel = self.query_one(MemoryPanel)
        panel.show_activity(self._activity())
        panel.tick()
        if not self._phase_sampled:
            self.controller.read_memory()
        self._phase_sampled = False

    def _activity(self) -> Activity:
        """Return what runs; a download counts where nothing else does."""
        if self.controller.answering:
            return "question"
        if self.controller.session_worker.busy:
            return "loading"
        return "nothing" if self.controller.fetching is None else "download"

    def on_device_memory_read(self, message: DeviceMemoryRead) -> None:
        """Show a reading from outside of a phase."""
        self.query_one(MemoryPanel).add_sample(Sample(message.own_bytes, message.other_bytes))

    # Questions

    async def on_question_input_submitted(self, message: QuestionInput.Submitted) -> None:
        """Ask; a question that cannot be asked goes back into the prompt."""
        if not await self.ask(message.question, replaces=self.editing):
            self.query_one(QuestionInput).restore(message.question)

    def on_question_input_path_dropped(self, message: QuestionInput.PathDropped) -> None:
        """Open a video that was dropped on the prompt."""
        self.open_path(message.path)

    def clear_prompt(self) -> bool:
        """Clear the prompt, whose text Up brings back; return False if there is none."""
        prompt = self.query_one(QuestionInput)
        if not prompt.text or self.app.screen is not self:
            return False
        prompt.remember(prompt.text.strip())
        prompt.text = ""
        return True

    def start_answer(self) -> None:
        """Reset progress and pace too; what a load has shown above the prompt goes on below the question."""
        self.show_status("")
        self._progress = ProgressText()
        self._text_seconds, self._cpu_seconds = _TEXT_SECONDS, time.thread_time()
        super().start_answer()

    def _is_shown(self, job: SessionJob) -> bool:
        """Whether a job belongs on the screen; an answer about a previous video does not."""
        return job.only_load or job is self.controller.job

    async def on_engine_event(self, message: EngineEvent) -> None:
        """Show an event of the engine."""
        if self._is_shown(message.job):
            await self._show_event(message.job, message.event)

    async def _show_event(self, job: SessionJob, event: Event) -> None:
        match event:
            case Planned(_, plan):
                self._show_plan(plan)
            case StageStarted():
                self._progress.start(event)
                self._show_progress()
            case Noted(text):
                self._add_note(text)
            case OutOfDomain(knows, advice):
                if (entry := self._last_entry()) is not None:
                    entry.add_warning(out_of_domain_text(knows, advice), out_of_domain_text(knows))
            case Degraded(phase, step, plan):
                text = degraded_text(phase, step, plan)
                self.query_one(MemoryPanel).add_warning(text)
                self.query_one(MemoryPanel).show_plan(plan)
                self._add_note(text)
            case Found():
                self.show_found(job, event)
            case Answered(answer):
                await self._draw_text(job)
                values = answer.finish_reason, plan_figures(answer.plan), usage_figures(answer)
                if self._turn is not None:
                    await self._turn.finish(answer.text.strip(), short_usage_line(*values), usage_line(*values))

    def _last_entry(self) -> ConversationEntry | None:
        """Return the entry to which events belong, also once its job has ended and events still wait."""
        return self._turn if self.controller.search is None else self._search

    def _add_note(self, text: str) -> None:
        text = in_session_words(text)
        if (entry := self._last_entry()) is not None:
            entry.add_note(text)
        else:
            self.notify(safe_text(text), markup=False)

    def on_progressed(self, message: Progressed) -> None:
        """Show progress, a few times a second."""
        if not self._is_shown(message.job):
            return
        self._progress.update(message.event)
        if not self._status_pending:
            self._status_pending = True
            self.set_timer(_STATUS_SECONDS, self._show_progress)

    def _show_progress(self) -> None:
        """Show the progress below the question or search, or above the prompt while only the model is loaded."""
        self._status_pending = False
        if not self.controller.session_worker.busy:
            return
        if (entry := self.running_entry()) is None:
            self.show_status(self._progress.text())
        elif not self._stopping:
            entry.set_status(self._progress.text())

    def on_text_waiting(self, message: TextWaiting) -> None:
        """Draw the text soon, with what comes until then."""
        if self._text_pending is not message.job:
            self._text_pending = message.job
            self.set_timer(self._text_seconds, partial(self._draw_text, message.job))

    async def _draw_text(self, job: SessionJob) -> None:
        if self._text_pending is job:
            self._text_pending = None
        text = job.streamed.take()
        if text and self._is_shown(job):
            spent, self._cpu_seconds = time.thread_time() - self._cpu_seconds, time.thread_time()
            self._text_seconds = min(max(_TEXT_SECONDS, _IDLE_RATIO * spent), _MAX_TEXT_SECONDS)
            if self._turn is not None:
                await self._turn.add(text)

    async def on_job_ended(self, message: JobEnded) -> None:
        """Show why a job failed, then plan again with the memory as it is now."""
        job, error = message.job, message.error
        await self._draw_text(job)
        self.show_status("")
        if job.search:
            self.end_search(job, error)
        elif not job.only_load:
            await self._end_question(job, error)
        elif error is not None and not isinstance(error, Interrupted):
            self.show_error(for_session(error))
        self.controller.plan()

    async def _end_question(self, job: SessionJob, error: VidqaError | None) -> None:
        """Store and show why a question got no answer: its state is then still "running"."""
        exchange = job.exchange
        if self._is_shown(job):
            self._stopping = False
        if exchange is None or exchange.state != "running":
            return
        error = for_session(error or Interrupted("Stopped."))
        stopped = isinstance(error, Interrupted)
        self.controller.conversation.fail(exchange, str(error), "stopped" if stopped else "failed", job.streamed.text)
        if not self._is_shown(job):
            return
        remedy = f"\n{safe_text(error.remedy)}" if error.remedy and not stopped else ""
        reason = ("stopped", "$text-warning") if stopped else (f"✗ {safe_text(error.what)}", "$text-error")
        if self._turn is not None:
            await self._turn.finish(None, Content.assemble(reason, (remedy, "bold")))
