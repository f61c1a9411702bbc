"""The actions of the main screen around searches: find moments, mark them, and ask about one."""

import os

from textual.content import Content

from vidqa.errors import Interrupted, VidqaError
from vidqa.events import Found
from vidqa.history.records import SavedSession
from vidqa.tui.controller import Controller
from vidqa.tui.found_moments import FoundMoments, format_range, found_in
from vidqa.tui.plan_overrides import CHOOSE_FILE
from vidqa.tui.screens.dialogs import LineDialog
from vidqa.tui.screens.model_actions import ModelActions
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.search_view import SearchView
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.worker_messages import SessionJob
from vidqa.utils.safe_text import safe_text


class SearchActions(ModelActions):
    """Adds the searches, and the file of the plan's subtitles."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._search_text = ""
        self._search: SearchView | None = None
        self.previous_subs: str | None = None  # used if the chosen ones cannot be read

    def action_find(self) -> None:
        """Ask for a text to search the video for; the last one is offered again."""
        if self.controller.video is None:
            self.notify("Open a video first.", markup=False)
            self.action_open_video()
            return
        if self.offer_model():
            return
        dialog = LineDialog("Find a moment", "for example: a red circle", self._search_text, _no_text)
        self.app.push_screen(dialog, self._search_for)

    async def _search_for(self, text: str | None) -> None:
        if text is None:
            return
        self._search_text = text
        try:
            job = self.controller.prepare_search(text)
        except VidqaError as error:
            self.notify_error(error, "Nothing was searched")
            return
        self._stopping = False
        self._search = await self.query_one(Transcript).add_search(text)
        self.start_answer()
        if self._stopping:  # Esc was pressed meanwhile
            job.stopped.set()
        self.controller.submit(job)

    def running_entry(self) -> ConversationEntry | None:
        """Return the search that runs, else the turn."""
        return self._search if self.controller.search is not None else super().running_entry()

    def show_found(self, job: SessionJob, event: Found) -> None:
        """List the moments of a search and mark them on the time line."""
        if self._search is None:
            return
        request = job.request
        found = found_in(request.question, event.plan, request.start_seconds, request.end_seconds)
        self._search.show(found)
        if self.controller.moment is not None:
            self.choose_moment(found, None)
        else:  # a range that was chosen during the search stays
            self.controller.found = found
            self.show_moments()
        idle = self.focused is None or isinstance(self.focused, QuestionInput | Transcript)
        if self.app.screen is self and idle and not self.query_one(QuestionInput).text:
            self._search.focus_list()

    def end_search(self, job: SessionJob, error: VidqaError | None) -> None:
        """Show why a search found nothing; the text is offered again."""
        if self.controller.search is job:
            self.controller.search = None
        if job is not self.controller.job or self._search is None:
            return
        self._stopping = False
        if self._search.found is None:
            error = error or Interrupted("Stopped.")
            if isinstance(error, Interrupted):
                self._search.set_status(Content.styled("stopped", "$text-warning"))
                return
            remedy = (f"\n{safe_text(error.remedy)}", "bold") if error.remedy else ""
            self._search.set_status(Content.assemble((f"✗ {safe_text(error.what)}", "$text-error"), remedy))

    def choose_moment(self, found: FoundMoments, index: int | None) -> None:
        """Ask the next question about a moment, the same again or None about all that was searched; mark all."""
        controller = self.controller
        if found is not controller.found or index is not None or controller.moment is not None:
            controller.choose_moment(found, index)
        self.show_moments()
        if controller.moment is not None:
            self._go_to(found, controller.moment)
            self.action_focus_prompt()

    def show_moments(self) -> None:
        """Draw marks, range and the prompt's title as the controller has them."""
        controller, timeline = self.controller, self.query_one(Timeline)
        found, overrides = controller.found, controller.overrides
        timeline.moments, timeline.chosen = found.moments if found else (), controller.moment
        timeline.start, timeline.end = overrides.start_seconds, overrides.end_seconds
        for view in self.query(SearchView):
            view.show_chosen(controller.moment if view.found is found else None)
        self.show_prompt_title()

    def prompt_title(self) -> str:
        """Return the title of the prompt, with the moment that the question is about."""
        controller = self.controller
        if self.editing or controller.video is None or controller.found is None or controller.moment is None:
            return super().prompt_title()
        start, end = controller.found.range_of(controller.moment, controller.video.duration_seconds)
        return f"Question about moment {controller.moment + 1}, {format_range(start, end)} · Esc clears"

    def action_stop(self) -> None:
        """Stop what runs; else cancel an edit, leave the chosen moment, or focus the prompt."""
        controller = self.controller
        leave = self.query_one(QuestionInput).has_focus and not self.editing and not controller.answering
        if leave and controller.found is not None and controller.moment is not None:
            self.choose_moment(controller.found, None)
        else:
            super().action_stop()

    async def begin_conversation(self, resumed: SavedSession | None = None) -> None:
        """Show a conversation without the marks of an earlier search."""
        controller = self.controller
        if controller.found is not None and controller.moment is not None:
            controller.choose_moment(controller.found, None)
        self._search = controller.found = None
        await super().begin_conversation(resumed)
        self.show_moments()

    def on_timeline_range_chosen(self, message: Timeline.RangeChosen) -> None:
        """Use another part of the video."""
        self.controller.moment = None
        self.controller.override(start_seconds=message.start, end_seconds=message.end)
        self.show_moments()

    def on_timeline_moment_chosen(self, message: Timeline.MomentChosen) -> None:
        """Ask the next question about a marked moment."""
        if self.controller.found is not None:
            self.choose_moment(self.controller.found, message.index)

    def on_search_view_chosen(self, message: SearchView.Chosen) -> None:
        """Ask the next question about a listed moment."""
        self.choose_moment(message.found, message.index)

    def on_search_view_highlighted(self, message: SearchView.Highlighted) -> None:
        """Move the cursor to a listed moment."""
        self._go_to(message.found, message.index)

    def _go_to(self, found: FoundMoments, index: int) -> None:
        moment = found.moments[index]
        self.query_one(Timeline).cursor = (moment.start_seconds + moment.end_seconds) / 2

    async def on_search_view_removed(self, message: SearchView.Removed) -> None:
        """Remove a search, and its marks if they are drawn."""
        controller, view = self.controller, message.view
        if view.found is not None and view.found is controller.found:
            if controller.moment is not None:
                controller.choose_moment(view.found, None)
            controller.found = None
        await view.remove()
        self.show_moments()
        self.action_focus_prompt()

    # Subtitles

    def choose_subtitles(self, value: str | None) -> None:
        """Read other subtitles; ask for the file's path first where one is to be chosen."""
        if value == CHOOSE_FILE:
            dialog = LineDialog("Subtitles", "path of a .srt, .vtt or .ass file", "", _no_file)
            self.app.push_screen(dialog, self._subtitle_file_chosen)
        else:
            self.previous_subs = self.controller.overrides.subs
            self.controller.reread_subtitles(value)

    def _subtitle_file_chosen(self, path: str | None) -> None:
        if path is not None:
            self.choose_subtitles(os.path.expanduser(path))
        elif self.controller.forecast is not None:
            self.query_one(PlanPanel).show(self.controller.forecast, self.controller.overrides, self.controller.moment)


def _no_text(text: str) -> str:
    return "" if text else "The text is empty. Write what to find, for example: a red circle"


def _no_file(path: str) -> str:
    return "" if os.path.isfile(os.path.expanduser(path)) else f"There is no file {path or 'without a name'}."
