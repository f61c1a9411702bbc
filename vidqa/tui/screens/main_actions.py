"""The actions of the main screen, behind keys, palette and mouse. Messages of the workers come to main_screen.py."""

import gc
import os
from functools import partial
from pathlib import Path
from typing import Any

from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from vidqa.errors import HistoryError, UsageError, VidqaError
from vidqa.history.export import EXPORT_NOTE, suggest_name, to_json, to_markdown, to_srt, unwritable, write_export
from vidqa.history.records import SavedSession
from vidqa.history.timestamps import find_timestamps
from vidqa.tui.clipboard import CopyResult, copy_text
from vidqa.tui.controller import Controller
from vidqa.tui.progress_text import short_usage_line, usage_line
from vidqa.tui.screens.dialogs import LineDialog, SelectDialog, TextViewer
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.stdio_redirect import LOG_NAME, read_log
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.tui.widgets.memory_panel import MemoryPanel
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.thumbnail_strip import ThumbnailStrip
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.widgets.turn_view import TurnView
from vidqa.utils.safe_text import safe_line, safe_text

_FORMATS = (
    ("Markdown (.md): to read", "md", to_markdown),
    ("JSON (.json): with all figures", "json", to_json),
    ("SubRip (.srt): the answers as subtitles", "srt", to_srt),
)
_MAX_RECENT = 12


class MainActions(Screen[None]):
    """The base of the main screen."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self.controller = controller
        self.editing = False
        self._turn: TurnView | None = None
        self._stopping = False
        self._error_shown = False
        self._timestamp_index = -1
        self._resumed: SavedSession | None = None  # shown once its video is open

    def notify_error(self, error: VidqaError, title: str) -> None:
        """Show an error and its remedy as a notification."""
        self.notify(safe_text(str(error)), title=title, severity="error", timeout=12, markup=False)

    def show_status(self, text: str) -> None:
        """Show a line above the prompt; an empty text removes it."""
        status = self.query_one("#status", Static)
        self._error_shown = False
        status.set_class(bool(text), "-busy")
        status.update(safe_line(text))

    def show_error(self, error: VidqaError) -> None:
        """Show an error and its remedy above the prompt, where it covers nothing, until the next plan or question."""
        self.show_status(str(error))
        self.query_one("#status", Static).update(Content.styled(safe_line(str(error)), "$text-error"))
        self._error_shown = True

    def clear_error(self) -> None:
        """Remove what `show_error` shows."""
        if self._error_shown:
            self.show_status("")

    def running_entry(self) -> ConversationEntry | None:
        """Return the entry of the conversation that shows the progress."""
        return self._turn if self.controller.answering else None

    def prompt_title(self) -> str:
        """Return the title of the prompt."""
        return "Edit the last question (Esc cancels)" if self.editing else "Question"

    def show_prompt_title(self) -> None:
        """Show what the prompt is for."""
        self.query_one(QuestionInput).border_title = self.prompt_title()

    def hint(self) -> str:
        """Return what to do next, shown while there is no question."""
        if self.controller.model is None:
            return "First choose a model: press F2."
        if self.controller.video is None:
            return "Open a video: press ctrl+o, or drop a file on the prompt below.\nThen ask about it in plain words."
        return (
            "Ask about this video in the prompt below and press Enter.\n"
            "F12 finds a moment. F1 explains the focused part."
        )

    # Video and frames

    def action_open_video(self) -> None:
        """Open the dialog that chooses a video."""
        controller = self.controller
        try:
            videos = controller.history.recent_videos(_MAX_RECENT)
        except HistoryError as error:
            self.notify_error(error, "History")
            videos = ()
        recent = [video.path for video in videos if os.path.exists(video.path)] or controller.example_videos()
        self.app.push_screen(OpenVideoScreen(recent, Path.cwd()), self._path_chosen)

    def _path_chosen(self, path: str | None) -> None:
        if path is not None:
            self.open_path(path)

    def open_path(self, path: str) -> None:
        """Open a video, and stop an answer about the current one."""
        self._resumed = None
        if self.controller.answering:
            self.action_stop()
        self.show_status(f"opening {safe_line(Path(path).name)}…")
        self.controller.open_video(path)

    def action_view_frames(self) -> None:
        """Show the sampled frames in full size."""
        plan = self.controller.forecast.plan if self.controller.forecast else None
        if plan is None:
            self.notify("There are no frames yet: open a video first.", markup=False)
            return
        pictures, cursor = self.query_one(ThumbnailStrip).pictures, self.query_one(Timeline).cursor
        request, mode = self.controller.thumbnail_loader.request_first, self.controller.options.images
        self.app.push_screen(FrameViewer(plan, pictures, request, mode, cursor), self._move_cursor)

    def _move_cursor(self, seconds: float | None) -> None:
        if seconds is not None:
            self.query_one(Timeline).cursor = seconds

    def action_take_nearest(self) -> None:
        """Use the nearest plan that fits."""
        if not self.controller.take_nearest():
            self.notify("The current plan fits: there is no other one to use.", markup=False)

    def action_toggle_panel(self) -> None:
        """Show or hide plan and memory."""
        self.toggle_class("-folded" if self.has_class("-wide") else "-panel")
        if self.has_class("-panel"):
            self.query(PlanOption).first().focus()
        elif self.focused is None or not self.focused.display:
            self.action_focus_prompt()

    def action_focus_prompt(self) -> None:
        """Focus the prompt; on a narrow terminal the panel gives way to it."""
        if self.has_class("-narrow"):
            self.remove_class("-panel")
        self.query_one(QuestionInput).focus()

    # Questions

    async def ask(self, question: str, *, replaces: bool = False, resample: bool = False) -> bool:
        """Ask a question; if that is not possible now, notify why and return False."""
        if self.controller.video is None:
            self.notify("Open a video first. Your question stays in the prompt.", markup=False)
            self.action_open_video()
            return False
        try:
            job = self.controller.prepare(question, replaces=replaces, resample=resample)
        except VidqaError as error:
            self.show_error(error)
            return False
        self.clear_error()
        transcript = self.query_one(Transcript)
        if replaces:
            await transcript.remove_last()
        self._stopping, self._timestamp_index = False, -1
        self._end_edit()
        self.query_one(QuestionInput).remember(question)
        self._turn = await transcript.add_turn(question)
        self.start_answer()
        if self._stopping:  # Esc was pressed meanwhile
            job.stopped.set()
        self.controller.submit(job)  # last, since its events need the turn's widgets
        return True

    def start_answer(self) -> None:
        """Reset what the screen shows about the previous answer."""
        self.query_one(MemoryPanel).reset_peaks()

    def action_stop(self) -> None:
        """Stop the answer; without one, cancel an edit or focus the prompt."""
        if self.controller.answering and not self._stopping:
            self._stopping = True
            if (entry := self.running_entry()) is not None:
                entry.set_status("stopping…")
            self.call_after_refresh(self.controller.session_worker.stop)  # draw "stopping…" before a quick end
        elif self.editing:
            self._end_edit()
            self.query_one(QuestionInput).text = ""
        elif not self.controller.answering:
            self.action_focus_prompt()

    async def action_regenerate(self) -> None:
        """Ask the last question again; a complete answer is sampled at a higher temperature."""
        if (last := self.controller.conversation.last) is None:
            self.notify("There is no question yet.", markup=False)
        else:
            await self.ask(last.question, replaces=True, resample=last.state == "answered")

    def action_edit_question(self) -> None:
        """Put the last question back into the prompt; the next one asked replaces it."""
        if (last := self.controller.conversation.last) is None or self.controller.answering:
            self.notify("There is no answered question to edit.", markup=False)
            return
        prompt = self.query_one(QuestionInput)
        prompt.text = last.question
        prompt.move_cursor(prompt.document.end)
        self.editing = True
        self.show_prompt_title()
        prompt.focus()

    def _end_edit(self) -> None:
        self.editing = False
        self.show_prompt_title()

    # The conversation

    async def begin_conversation(self, resumed: SavedSession | None = None) -> None:
        """Show an empty conversation, or one of the history."""
        self.controller.restart()
        self._end_edit()
        transcript = self.query_one(Transcript)
        await transcript.clear(self.hint())
        gc.unfreeze()  # so that the next collection finds the widgets that were removed
        self._turn = None
        try:
            turns = self.controller.conversation.resume(resumed) if resumed else ()
        except HistoryError as error:
            self.notify_error(error, "History")
            turns = ()
        for turn in turns:
            view = await transcript.add_turn(turn.question)
            values = turn.finish_reason, turn.plan, turn.usage
            figures = "" if turn.error else usage_line(*values)
            status = turn.error or short_usage_line(*values) or turn.state
            await view.finish(turn.answer, Content.styled(safe_line(status), "$foreground-muted"), figures)
            self.query_one(QuestionInput).remember(turn.question)

    async def action_new_conversation(self) -> None:
        """Start a new conversation about the same video; an answer is stopped first."""
        if self.controller.answering:
            self.action_stop()
            return
        await self.begin_conversation()
        self.controller.plan()  # without the tokens of the old conversation
        self.action_focus_prompt()

    async def action_delete_turn(self) -> None:
        """Delete the last turn, from the history too."""
        if self.controller.conversation.last is None or self.controller.answering:
            return
        self.controller.conversation.delete_last()
        self._end_edit()  # the question that was edited is gone: the prompt's text is a new one
        await self.query_one(Transcript).remove_last()
        self._turn = None
        self.controller.plan()
        self.notify("The last turn was deleted.", markup=False)

    def action_history(self) -> None:
        """Open the browser of earlier conversations."""
        try:
            self.controller.history.opened()
        except HistoryError as error:
            self.notify_error(error, "History")
            return
        self.app.push_screen(HistoryBrowser(self.controller.history), self._resume)

    def _resume(self, session: SavedSession | None) -> None:
        if session is not None:
            self.open_path(session.video_path)
            self._resumed = session

    def take_resumed(self, path: str) -> SavedSession | None:
        """Return the conversation that was chosen if it is about the video at `path`; it is shown once."""
        resumed = self._resumed
        if resumed is None or resumed.video_path != path:
            return None
        self._resumed = None
        return resumed

    def action_toggle_figures(self) -> None:
        """Open or fold the figures of the last answer."""
        turns = self.query_one(Transcript).turns()
        if not turns or not turns[-1].toggle_figures():
            self.notify("There are no figures yet: they come with an answer.", markup=False)

    def action_copy_answer(self) -> None:
        """Copy the last answer as the model wrote it."""
        last = self.controller.conversation.last
        if last is None or not last.text.strip():
            self.notify("There is no answer to copy yet.", markup=False)
        else:
            self.copy(last.text.strip())

    def copy(self, text: str) -> None:
        """Copy to the clipboard in a thread, since clipboard tools can be slow; notify which way it went."""
        self.run_worker(partial(self._copy, text), thread=True, group="copy", exit_on_error=False)

    def _copy(self, text: str) -> None:
        folder = self.controller.options.state or Path.cwd()
        send = partial(self.app.call_from_thread, self.app.copy_to_clipboard)
        try:
            result = copy_text(text, send, folder)
        except OSError as error:
            result = CopyResult(f"The text cannot be copied: {error}", certain=False)
        show = partial(self.notify, safe_text(result.message), markup=False)
        self.app.call_later(show if result.certain else partial(show, severity="warning"))

    def action_export(self) -> None:
        """Write the conversation to a file: ask for the format, then for the place."""
        if self.controller.conversation.session_id is None:
            self.notify("There is no question yet.", markup=False)
        else:
            self.app.push_screen(
                SelectDialog("Write this conversation as", [name for name, *_ in _FORMATS]), self._choose_place
            )

    def _choose_place(self, index: int | None) -> None:
        number = self.controller.conversation.session_id
        if index is None or number is None:
            return
        try:
            session = self.controller.history.session(number)
        except HistoryError as error:
            self.notify_error(error, "Not exported")
            return
        path = Path.cwd() / suggest_name(session, _FORMATS[index][1])
        dialog = LineDialog("Write to this file", str(path), str(path), unwritable, EXPORT_NOTE)
        self.app.push_screen(dialog, partial(self._export, session, index))

    def _export(self, session: SavedSession, index: int, place: str | None) -> None:
        if place is None:
            return
        try:
            text: Any = _FORMATS[index][2](session, self.controller.history.turns(session.id))
            path = write_export(Path(os.path.expanduser(place)), text)
        except OSError as error:
            self.notify_error(UsageError(f"The file cannot be written: {error}."), "Not exported")
        except VidqaError as error:
            self.notify_error(error, "Not exported")
        else:
            self.notify(safe_text(f"Written to {path}"), title="Exported", markup=False)

    def action_next_timestamp(self) -> None:
        """Move the cursor to the next time in the last answer."""
        last = self.controller.conversation.last
        found = find_timestamps(last.text) if last else ()
        if not found:
            self.notify("The last answer has no time in it.", markup=False)
            return
        self._timestamp_index = (self._timestamp_index + 1) % len(found)
        self.query_one(Timeline).cursor = found[self._timestamp_index].seconds

    def action_show_log(self) -> None:
        """Show what was printed while the session drew the screen."""
        state = self.controller.options.state
        text = read_log(state / LOG_NAME) if state else ""
        self.app.push_screen(TextViewer("Log", Content(safe_text(text) or "Nothing was printed."), at_end=True))
