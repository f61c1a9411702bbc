"""What a person can do on the main screen: the actions behind keys, palette and mouse.

Each deed asks the desk or opens another screen. What the working threads tell is drawn in ask.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from vidqa.errors import HistoryError, Interrupted, UsageError, VidqaError
from vidqa.history.export import suggest_name, to_json, to_markdown, to_srt, write_export
from vidqa.history.records import SavedSession
from vidqa.history.timestamps import find_timestamps
from vidqa.tui import gc_policy
from vidqa.tui.controller import Controller
from vidqa.tui.progress_text import took
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.screens.select_dialog import SelectDialog
from vidqa.tui.session_worker import SessionJob
from vidqa.tui.widgets.memory_panel import MemoryPanel
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.thumbnail_strip import ThumbnailStrip
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.widgets.turn_view import TurnView
from vidqa.utils.safe_text import safe_line, safe_text

if TYPE_CHECKING:
    from vidqa.tui.app import VidqaApp

_FORMATS = (
    ("Markdown (.md): to read", "md", to_markdown),
    ("JSON (.json): all figures", "json", to_json),
    ("SubRip (.srt): answers as subtitles", "srt", to_srt),
)
_RECENT = 12


class MainActions(Screen[None]):
    """The actions of the main screen."""

    def __init__(self, desk: Controller) -> None:
        super().__init__()
        self.desk = desk
        self.editing = False
        self._turn: TurnView | None = None
        self._stopping = False
        self._moment = -1
        self._resumed: SavedSession | None = None

    @property
    def vidqa(self) -> "VidqaApp":
        """The app, by its own type."""
        return cast("VidqaApp", self.app)

    def tell(self, error: VidqaError, title: str) -> None:
        """An error as a toast: what, and the remedy."""
        self.notify(safe_text(str(error)), title=title, severity="error", timeout=12, markup=False)

    def say_status(self, text: str) -> None:
        """A line above the prompt; empty text takes it away."""
        status = self.query_one("#status", Static)
        status.set_class(bool(text), "-busy")
        status.update(safe_line(text))

    def hint(self) -> str:
        """What to do next, while nothing was asked."""
        if self.desk.model is None:
            return "First choose a model: press F2."
        if self.desk.video is None:
            return "Open a video: press ctrl+o, or drop a file on the prompt below.\nThen ask about it in plain words."
        return "Ask about this video in the prompt below and press Enter.\nF1 explains whatever is focused."

    # Video and model

    def action_open_video(self) -> None:
        """Choose a video."""
        try:
            recent = [video.path for video in self.desk.history.recent_videos(_RECENT) if Path(video.path).is_file()]
        except HistoryError as error:
            self.tell(error, "History")
            recent = []
        self.app.push_screen(OpenVideoScreen(recent or self.desk.examples(), Path.cwd()), self._chosen_video)

    def _chosen_video(self, path: str | None) -> None:
        if path is not None:
            self.open_path(path)

    def open_path(self, path: str) -> None:
        """Open a video; what is being answered is stopped."""
        if self.desk.answering:
            self.action_stop()
        self.say_status(f"opening {safe_line(Path(path).name)}…")
        self.desk.projector.open(path)

    def action_view_frames(self) -> None:
        """The sampled frames, large."""
        plan = self.desk.forecast.plan if self.desk.forecast else None
        if plan is None:
            self.notify("There are no frames to see before a video is planned.", markup=False)
            return
        strip, cursor = self.query_one(ThumbnailStrip), self.query_one(Timeline).cursor
        screen = FrameViewer(plan, strip.pictures, self.desk.projector.want, self.desk.face.images, cursor)
        self.app.push_screen(screen, self._looked_at)

    def _looked_at(self, seconds: float | None) -> None:
        if seconds is not None:
            self.query_one(Timeline).cursor = seconds

    def action_take_nearest(self) -> None:
        """The nearest plan that fits."""
        if not self.desk.take_nearest():
            self.notify("There is no nearer plan to take.", markup=False)

    def action_toggle_panel(self) -> None:
        """Plan and memory: fold them away, or bring them."""
        self.toggle_class("-folded" if self.has_class("-wide") else "-panel")
        if self.has_class("-panel"):
            self.query(PlanOption).first().focus()
        elif self.focused is None or not self.focused.display:
            self.action_focus_prompt()

    def action_focus_prompt(self) -> None:
        """Write."""
        if self.has_class("-narrow"):
            self.remove_class("-panel")
        self.query_one(QuestionInput).focus()

    # Questions

    async def ask(self, question: str, *, replaces: bool = False, anew: bool = False) -> bool:
        """Ask; False where that cannot be now, which is told."""
        if self.desk.video is None:
            self.notify("Open a video first; your question stays here.", markup=False)
            self.action_open_video()
            return False
        try:
            job = self.desk.prepare(question, replaces=replaces, anew=anew)
        except VidqaError as error:
            self.tell(error, "Not asked")
            return False
        transcript = self.query_one(Transcript)
        if replaces:
            await transcript.drop_last()
        self.editing, self._stopping, self._moment = False, False, -1
        prompt = self.query_one(QuestionInput)
        prompt.border_title = "Question"
        prompt.remember(question)
        self._turn = await transcript.add_turn(question)
        self.begun()
        if self._stopping:  # pressed meanwhile
            job.stopped.set()
        self.desk.submit(job)  # only now: what it tells needs its place on the screen
        return True

    def begun(self) -> None:
        """A question is on its way."""
        self.query_one(MemoryPanel).begin()

    def action_stop(self) -> None:
        """Stop the answer, not the app; without one, give up an edit or go to the prompt."""
        if self.desk.answering and not self._stopping:
            self._stopping = True
            if self._turn is not None:
                self._turn.say("stopping…")
            self.call_after_refresh(self.desk.bridge.stop)  # a quick end would come before the word is drawn
        elif self.editing:
            self.editing = False
            self.query_one(QuestionInput).border_title = "Question"
            self.query_one(QuestionInput).text = ""
        elif not self.desk.answering:
            self.action_focus_prompt()

    async def add_text(self, text: str) -> None:
        """More of the answer."""
        if self._turn is not None:
            await self._turn.add(text)

    def add_note(self, text: str) -> None:
        """Something to know about this answer."""
        if self._turn is not None:
            self._turn.note(text)
        else:
            self.notify(safe_text(text), markup=False)

    def say_progress(self, text: str) -> None:
        """How far it is, below the question or (while only the model is loaded) above the prompt."""
        if self._turn is None or not self.desk.answering:
            self.say_status(text)
        elif not self._stopping:
            self._turn.say(text)

    def concerns(self, job: SessionJob) -> bool:
        """Whether what a job tells belongs on the screen: another video's answer does not."""
        return job.only_load or job is self.desk.job

    async def finished(self, text: str, usage: str) -> None:
        """The whole answer."""
        if self._turn is not None:
            await self._turn.finish(text.strip(), Content.styled(usage, "$foreground-muted"))

    async def job_ended(self, job: SessionJob, error: VidqaError | None) -> None:
        """A job is done. A question that got no answer was stopped or failed."""
        self.say_status("")
        if not job.only_load:
            await self._question_ended(job, error)
        elif error is not None and not isinstance(error, Interrupted):
            self.tell(error, "The model was not loaded")

    async def _question_ended(self, job: SessionJob, error: VidqaError | None) -> None:
        """A question that is still marked as running got no answer: say why, and what to do."""
        exchange = job.exchange
        if self.concerns(job):
            self._stopping = False
        if exchange is None or exchange.state != "running":
            return
        error = error or Interrupted("Stopped.")
        stopped = isinstance(error, Interrupted)
        self.desk.conversation.ended(exchange, str(error), "stopped" if stopped else "failed", job.run_config.text)
        if self.concerns(job):
            await self._say_why(error, stopped)

    async def _say_why(self, error: VidqaError, stopped: bool) -> None:
        words = "stopped" if stopped else f"✗ {safe_text(error.what)}"
        remedy = "" if stopped else f"\n{safe_text(error.remedy)}" if error.remedy else ""
        status = Content.assemble((words, "$text-warning" if stopped else "$text-error"), (remedy, "bold"))
        if self._turn is not None:
            await self._turn.finish(None, status)
        if not stopped:
            self.tell(error, "No answer")

    async def action_regenerate(self) -> None:
        """The last question once more; a complete answer is sampled anew."""
        if (last := self.desk.conversation.last) is None:
            self.notify("Nothing was asked yet.", markup=False)
        else:
            await self.ask(last.question, replaces=True, anew=last.state == "answered")

    def action_edit(self) -> None:
        """The last question back in the prompt."""
        if (last := self.desk.conversation.last) is None or self.desk.answering:
            self.notify("There is no answered question to edit.", markup=False)
            return
        prompt = self.query_one(QuestionInput)
        prompt.text = last.question
        prompt.move_cursor(prompt.document.end)
        prompt.border_title = "Edit the last question (Esc leaves it)"
        self.editing = True
        prompt.focus()

    # The conversation

    async def begin_conversation(self) -> None:
        """Nothing was asked yet, or an earlier conversation goes on."""
        self.desk.restart()
        transcript = self.query_one(Transcript)
        await transcript.clear(self.hint())
        gc_policy.look_at_all()
        self._turn, resumed, self._resumed = None, self._resumed, None
        if resumed is None:
            return
        for turn in self.desk.conversation.resume(resumed):
            view = await transcript.add_turn(turn.question)
            told = turn.error or took(turn.finish_reason, turn.plan, turn.usage) or turn.state
            await view.finish(turn.answer, Content.styled(safe_line(told), "$foreground-muted"))
            self.query_one(QuestionInput).remember(turn.question)

    async def action_new_session(self) -> None:
        """Begin anew with the same video."""
        if self.desk.answering:
            self.action_stop()
            return
        await self.begin_conversation()
        self.desk.plan()  # what was said takes no room any more
        self.action_focus_prompt()

    async def action_delete_turn(self) -> None:
        """The last turn goes, from the history too."""
        if self.desk.conversation.last is None or self.desk.answering:
            return
        self.desk.conversation.drop_last()
        await self.query_one(Transcript).drop_last()
        self._turn = None
        self.desk.plan()
        self.notify("The last turn was deleted.", markup=False)

    def action_history(self) -> None:
        """Earlier conversations."""
        try:
            self.desk.history.opened()
        except HistoryError as error:
            self.tell(error, "History")
            return
        self.app.push_screen(HistoryBrowser(self.desk.history), self._chosen_session)

    def _chosen_session(self, session: SavedSession | None) -> None:
        if session is not None:
            self._resumed = session
            self.open_path(session.video_path)

    def action_copy(self) -> None:
        """The last answer, as the model wrote it."""
        last = self.desk.conversation.last
        if last is None or not last.text.strip():
            self.notify("There is no answer to copy yet.", markup=False)
        else:
            self.copy(last.text.strip())

    def copy(self, text: str) -> None:
        """To the clipboard."""
        self.vidqa.copy(text)

    def action_export(self) -> None:
        """Write the conversation to a file."""
        if self.desk.conversation.session_id is None:
            self.notify("Nothing was asked yet.", markup=False)
            return
        self.app.push_screen(SelectDialog("Write this conversation as", [name for name, *_ in _FORMATS]), self._export)

    def _export(self, place: int | None) -> None:
        number = self.desk.conversation.session_id
        if place is None or number is None:
            return
        _, suffix, render = _FORMATS[place]
        try:
            session = self.desk.history.session(number)
            text: Any = render(session, self.desk.history.turns(number))
            path = write_export(Path.cwd() / suggest_name(session, suffix), text)
        except (VidqaError, OSError) as error:
            told = error if isinstance(error, VidqaError) else UsageError(f"It cannot be written here: {error}.")
            self.tell(told, "Not exported")
            return
        self.notify(safe_text(f"Written to {path}"), title="Exported", markup=False)

    def action_next_moment(self) -> None:
        """The next time that the last answer names."""
        last = self.desk.conversation.last
        found = find_timestamps(last.text) if last else ()
        if not found:
            self.notify("The last answer names no time.", markup=False)
            return
        self._moment = (self._moment + 1) % len(found)
        self.query_one(Timeline).cursor = found[self._moment].seconds
