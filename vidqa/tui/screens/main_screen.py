"""The main screen: video, plan and memory around a conversation.

Widgets' messages and those of the working threads come up to here, and state goes down from here; what is
asked and planned is the desk's business (desk.py), what a person can do stands in deeds.py.
"""

import time
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Static

from vidqa.events import Answered, Degraded, Event, Noted, Planned, StageStarted
from vidqa.history.records import plan_figures, usage_figures
from vidqa.messages import degraded_text
from vidqa.tui.controller import Controller
from vidqa.tui.key_bindings import bindings_for
from vidqa.tui.progress_text import StageWords, took
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.screens.main_actions import MainActions
from vidqa.tui.session_worker import SessionJob
from vidqa.tui.widgets.memory_panel import MemoryPanel, Sample
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.thumbnail_strip import ThumbnailStrip
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.title_bar import TitleBar
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.worker_messages import (
    EngineEvent,
    FrameShown,
    JobEnded,
    MemoryMeasured,
    ModelsListed,
    PlanForecast,
    Progressed,
    TextWaiting,
    VideoFailed,
    VideoOpened,
)  # fmt: skip
from vidqa.utils.safe_text import safe_text

_TEXT_SECONDS = 0.05  # text that comes within this time is drawn together
_STATUS_SECONDS = 0.1
_IDLE_SHARE = 3  # from one draw of text to the next, so many times the work of one
_LONGEST_SECONDS = 0.4


class MainScreen(MainActions):
    """All of the session on one screen; its parts fold away on small terminals."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("app")
    AUTO_FOCUS = "#prompt"
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (40, "-narrow"), (96, "-wide")]  # noqa: RUF012 - as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (10, "-short"), (30, "-tall")]  # noqa: RUF012 - as Textual declares it
    help_title = "vidqa"
    help_text = "Open a video, ask about it, and watch what the answer takes."

    def __init__(self, desk: Controller) -> None:
        super().__init__(desk)
        self._stages = StageWords()
        self._text_seconds, self._spent = _TEXT_SECONDS, 0.0
        self._status_due = False
        self._text_due: SessionJob | None = None  # whose text is about to be drawn

    def compose(self) -> ComposeResult:
        """The parts, from top to bottom."""
        yield TitleBar(id="top")
        with Horizontal(id="body"):
            with Vertical(id="talk"):
                yield ThumbnailStrip(self.desk.face.images, id="film")
                yield Timeline(id="timeline")
                yield Transcript(id="transcript")
                yield Static("", id="status", markup=False)
                yield QuestionInput(id="prompt")
            with VerticalScroll(id="side", can_focus=False):
                yield PlanPanel(id="plan")
                yield MemoryPanel(id="memory")
        yield Footer(compact=True)
        yield Static("vidqa needs 40×10", id="too-small", markup=False)

    async def on_mount(self) -> None:
        """Say what to do first."""
        self.set_class(self.desk.face.images != "none", "-pictures")
        self.query_one(TitleBar).model = self.desk.model
        await self.query_one(Transcript).clear(self.hint())

    # The video

    async def on_video_opened(self, message: VideoOpened) -> None:
        """Its facts are known: plan for it."""
        self.desk.opened(message.video)
        timeline = self.query_one(Timeline)
        timeline.duration, timeline.cursor, timeline.moments = message.video.duration_seconds, 0.0, ()
        timeline.start = timeline.end = None
        self.query_one(TitleBar).video = message.video
        self.query_one(QuestionInput).placeholder = "Ask about the video, then press Enter"
        await self.begin_conversation()
        self.say_status("")
        for note in message.video.notes:
            self.notify(safe_text(note), title="Video", markup=False)
        self.desk.plan()

    def on_video_failed(self, message: VideoFailed) -> None:
        """The video that is open stays open."""
        self.say_status("")
        self.tell(message.error, "This video cannot be opened")

    def on_frame_shown(self, message: FrameShown) -> None:
        """A picture for the strip, and for the large view where that is open."""
        self.query_one(ThumbnailStrip).show_picture(message.index, message.picture)
        if isinstance(self.app.screen, FrameViewer):
            self.app.screen.picture_came(message.index)

    def on_thumbnail_strip_requested(self, message: ThumbnailStrip.Requested) -> None:
        """These frames are to be decoded."""
        self.desk.projector.want(message.indices)

    # The plan

    async def on_plan_forecast(self, message: PlanForecast) -> None:
        """The planner answered."""
        if not self.desk.is_newest(message) or self.desk.video is None:
            return
        if message.forecast is None:
            assert message.error is not None
            self.tell(message.error, "There is no plan")
            return
        forecast = message.forecast
        self.query_one(PlanPanel).show(forecast, self.desk.wish)
        self.query_one(MemoryPanel).show_device(forecast.task.device.torch_name)
        if (plan := forecast.plan) is not None:
            self.query_one(MemoryPanel).plan(plan.predicted_peak_bytes, plan.tensor_bytes)
            self.query_one(TitleBar).plan = plan
            self.query_one(Timeline).moments = plan.timestamps_seconds
            await self.query_one(ThumbnailStrip).show_plan(self.desk.video, plan)
            self.desk.load()

    def on_plan_option_changed(self, message: PlanOption.Changed) -> None:
        """A line of the plan was changed."""
        self.desk.change(**{message.field: message.value})

    def on_timeline_range_chosen(self, message: Timeline.RangeChosen) -> None:
        """Another part of the video."""
        timeline = self.query_one(Timeline)
        timeline.start, timeline.end = message.start, message.end
        self.desk.change(start_seconds=message.start, end_seconds=message.end)

    def on_transcript_moment_chosen(self, message: Transcript.MomentChosen) -> None:
        """A time in an answer."""
        self.query_one(Timeline).cursor = message.seconds

    # Questions

    async def on_question_input_submitted(self, message: QuestionInput.Submitted) -> None:
        """A question was written."""
        if not await self.ask(message.question, replaces=self.editing):
            self.query_one(QuestionInput).give_back(message.question)

    def on_question_input_path_dropped(self, message: QuestionInput.PathDropped) -> None:
        """A video was dropped on the prompt."""
        self.open_path(message.path)

    def begun(self) -> None:
        """A question is on its way."""
        self._stages = StageWords()
        self._text_seconds, self._spent = _TEXT_SECONDS, time.thread_time()
        super().begun()

    async def on_engine_event(self, message: EngineEvent) -> None:
        """What the engine tells, one thing after the other."""
        if self.concerns(message.job):
            await self._heard(message.job, message.event)

    async def _heard(self, job: SessionJob, event: Event) -> None:
        match event:
            case Planned(_, plan):
                self.query_one(MemoryPanel).plan(plan.predicted_peak_bytes, plan.tensor_bytes)
                self.query_one(TitleBar).plan = plan
            case StageStarted():
                self._stages.started(event)
                self._show_status()
            case Noted(text):
                self.add_note(text)
            case Degraded(phase, step, plan):
                told = degraded_text(phase, step, plan)
                self.query_one(MemoryPanel).degrade(told)
                self.query_one(MemoryPanel).plan(plan.predicted_peak_bytes, plan.tensor_bytes)
                self.add_note(told)
            case Answered(answer):
                await self._draw_text(job)
                figures = (plan_figures(answer.plan), usage_figures(answer))
                await self.finished(answer.text, took(answer.finish_reason, *figures))

    def on_progressed(self, message: Progressed) -> None:
        """How far a stage is: drawn a few times a second."""
        if not self.concerns(message.job):
            return
        self._stages.progressed(message.event)
        if not self._status_due:
            self._status_due = True
            self.set_timer(_STATUS_SECONDS, self._show_status)

    def on_memory_measured(self, message: MemoryMeasured) -> None:
        """A sample of a running phase."""
        sample = message.sample
        measured = Sample(sample.current_bytes, sample.other_bytes)
        self.query_one(MemoryPanel).measure(measured, sample.phase, sample.peak_bytes, sample.tensor_peak_bytes)

    def on_text_waiting(self, message: TextWaiting) -> None:
        """Draw it in a moment, with what comes until then."""
        if self._text_due is not message.job:
            self._text_due = message.job
            self.set_timer(self._text_seconds, partial(self._draw_text, message.job))

    async def _draw_text(self, job: SessionJob) -> None:
        if self._text_due is job:
            self._text_due = None
        text = job.run_config.take()
        if text and self.concerns(job):
            self._pace_text()
            await self.add_text(text)

    def _pace_text(self) -> None:
        """The more work the last draw was (a long answer is laid out anew), the later the next: keys come between."""
        spent, self._spent = time.thread_time() - self._spent, time.thread_time()
        self._text_seconds = min(max(_TEXT_SECONDS, _IDLE_SHARE * spent), _LONGEST_SECONDS)

    async def on_job_ended(self, message: JobEnded) -> None:
        """The engine is free again; what is still marked as running went wrong."""
        await self._draw_text(message.job)
        await self.job_ended(message.job, message.error)
        self.desk.plan()  # with the model loaded, and with the memory as it is now
        self.vidqa.collect_garbage(only_loaded=message.job.only_load)

    def _show_status(self) -> None:
        self._status_due = False
        if self.desk.bridge.busy:
            self.say_progress(self._stages.told())

    # What is told

    def tick(self) -> None:
        """Between questions somebody has to look at the memory."""
        self.query_one(MemoryPanel).tick()
        if not self.desk.bridge.busy:
            self.desk.look()

    def on_models_listed(self, message: ModelsListed) -> None:
        """How memory stands between questions."""
        self.query_one(MemoryPanel).measure(Sample(message.own_bytes, message.other_bytes))

    def clear_prompt(self) -> bool:
        """Empty the prompt, which Up brings back; False where it is empty."""
        prompt = self.query_one(QuestionInput)
        if not prompt.text or self.app.screen is not self:
            return False
        prompt.remember(prompt.text.strip())
        prompt.text = ""
        return True

    def use_model(self, name: str) -> None:
        """Another model answers from the next question on."""
        self.desk.model = name
        top = self.query_one(TitleBar)
        top.model, top.plan = name, None
        self.say_status("")
        if self.desk.conversation.last is None:
            self.query_one(Transcript).say(self.hint())
        self.desk.plan()
        if self.desk.video is None and self.desk.face.video is None:
            self.action_open_video()

    def action_choose_model(self) -> None:
        """Open the chooser."""
        self.vidqa.choose_model()

    def action_log(self) -> None:
        """What was printed behind the screen."""
        self.vidqa.show_log()
