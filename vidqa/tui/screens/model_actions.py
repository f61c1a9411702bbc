"""The model of the session: choosing one, fetching one, and asking the question that waited for it."""

import traceback
from dataclasses import replace

from vidqa.errors import Interrupted, ModelMissing, VidqaError
from vidqa.models.download import partial_bytes
from vidqa.models.hub import is_repository
from vidqa.tui.plan_overrides import PLANNED_QUESTION
from vidqa.tui.screens.main_actions import MainActions
from vidqa.tui.screens.model_chooser import ModelChooser, ModelRow, list_models
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.title_bar import TitleBar
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.worker_messages import DownloadEnded, DownloadProgressed
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_decimal_bytes

_FETCH, _CHOOSE = "F2 fetches it, or chooses another model.", "F2 chooses another model."
_NO_CHOOSER = "The models cannot be listed"


class ModelActions(MainActions):
    """Choose and fetch models; a question asked without one waits for the end of the download."""

    _waiting = ""  # the question that is asked once a model is here
    _stopping_download = False

    def hint(self) -> str:
        """Return what to do about a missing model, else what to do next."""
        controller = self.controller
        if controller.model is not None and controller.model_missing:
            return f"{safe_line(controller.model)} is not on this machine.\n{key_for(controller.model)}"
        return super().hint()

    async def ask(self, question: str, *, replaces: bool = False, resample: bool = False) -> bool:
        """Ask a question; without a model on this machine it stays in the prompt, and the chooser of models opens."""
        self._waiting = ""
        if self.controller.video is None or not self.offer_model(question):
            return await super().ask(question, replaces=replaces, resample=resample)
        return False

    def offer_model(self, question: str = "") -> bool:
        """Open the chooser if there is no model on this machine; return whether there is none.

        `question` is asked once a model is here; without one, the question that waits already stays.
        """
        controller = self.controller
        if controller.model is not None and not controller.model_missing:
            return False
        self._waiting = question or self._waiting
        if controller.fetching is None:
            self.action_choose_model()
        return True

    # The chooser

    def action_choose_model(self) -> None:
        """Open the chooser of models; planning for all of them takes a moment, so it is done in a thread."""
        self.run_worker(self._list_models, thread=True, group="models", exclusive=True, exit_on_error=False)

    def _list_models(self) -> None:
        try:
            chooser = ModelChooser(self._model_rows(), self.controller.model, waiting=bool(self._waiting))
        except VidqaError as caught:
            self.app.call_from_thread(self.notify_error, caught, _NO_CHOOSER)
        except Exception as caught:
            traceback.print_exc()
            error = VidqaError(f"{type(caught).__name__}: {caught}.", "See the log (F9).")
            self.app.call_from_thread(self.notify_error, error, _NO_CHOOSER)
        else:
            self.app.call_from_thread(self.app.push_screen, chooser, self._model_chosen)

    def _model_rows(self) -> list[ModelRow]:
        controller = self.controller
        request = replace(controller.options.request, question=PLANNED_QUESTION)
        missing = controller.model if controller.model_missing else None
        session = controller.session_worker.session()
        return list_models(session, controller.config(), request, controller.video, missing)

    async def _model_chosen(self, row: ModelRow | None) -> None:
        if row is None:
            if self.controller.fetching is None:
                self._waiting = ""  # it stays in the prompt
        elif row.cached:
            await self.use_model(row.name)
        elif self.controller.fetching is None:
            self.show_status(f"fetching {safe_line(row.name)}…")
            self.controller.fetch(row.name)
        else:
            self.show_status(f"{safe_line(self.controller.fetching)} is being fetched: Esc in the prompt stops it")

    async def use_model(self, name: str) -> None:
        """Use another model from the next question on, and ask the question that waited for it."""
        self.controller.use_model(name)
        self.show_model()
        self.show_status("")
        if self.controller.conversation.last is None:
            self.query_one(Transcript).set_hint(self.hint())
        self.controller.plan()
        if self.controller.video is None and self.controller.options.video is None:
            self.action_open_video()
        prompt, question, self._waiting = self.query_one(QuestionInput), self._waiting, ""
        if question and prompt.text.strip() == question and await self.ask(question, replaces=self.editing):
            prompt.text = ""

    def show_model(self) -> None:
        """Show the model in the title, and whether it is missing."""
        title = self.query_one(TitleBar)
        title.model, title.missing, title.plan = self.controller.model, self.controller.model_missing, None

    # Downloads

    def on_download_progressed(self, message: DownloadProgressed) -> None:
        """Show how far a download is, unless the line has an error or the progress of a job."""
        if self._error_shown or self.controller.session_worker.busy:
            return
        if self.controller.fetching == message.name and not self._stopping_download:
            self.show_status(f"{safe_line(message.name)}: {message.progress.text} · Esc stops")

    async def on_download_ended(self, message: DownloadEnded) -> None:
        """Use the model that was fetched if none that is here was chosen or a question waits; or show the error."""
        name, error = message.name, message.error
        controller = self.controller
        controller.fetching, self._stopping_download = None, False
        if error is None and (controller.model is None or controller.model_missing or self._waiting):
            await self.use_model(name)
        elif error is None:
            self.show_status(f"{safe_line(name)} is on this machine now: F2 chooses it")
        elif isinstance(error, Interrupted):
            here = format_decimal_bytes(partial_bytes(name))
            self.show_status(f"stopped: {here} of {safe_line(name)} are here; F2 goes on from there")
        else:
            self.show_error(for_session(error, "F2 tries again."))

    def action_stop(self) -> None:
        """Stop the answer; in the prompt and without one, stop a download."""
        idle = not self.controller.answering and not self.editing
        if self.controller.fetching and idle and self.query_one(QuestionInput).has_focus:
            self._stopping_download, self._waiting = True, ""
            self.controller.stop_download()
            self.show_status("stopping the download…")
        else:
            super().action_stop()

    # Errors

    def notify_error(self, error: VidqaError, title: str) -> None:
        """Notify; an error about a missing model names the key that fetches it."""
        super().notify_error(for_session(error), title)


def key_for(missing: str | None) -> str:
    """Return which key helps where a model is missing: a repository can be fetched, a folder or None cannot."""
    return _FETCH if missing is not None and is_repository(missing) else _CHOOSE


def for_session(error: VidqaError, key: str | None = None) -> VidqaError:
    """Return an error about a missing model with a key of the session, or with `key`, in place of a command line."""
    if not isinstance(error, ModelMissing) or "`" not in error.remedy:
        return error
    return VidqaError(error.what, key or key_for(error.repository))
