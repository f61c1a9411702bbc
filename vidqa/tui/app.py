"""The app: one conversation about one video, with plan and memory beside it.

`make_app` is what the command, the tests and the screenshots call. Owns themes, keys, threads and what
works on every screen; the main screen is screens/ask.py.
"""

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.filter import LineFilter
from textual.screen import Screen
from textual.worker import Worker

from vidqa.errors import VidqaError
from vidqa.tui import gc_policy
from vidqa.tui.ascii_filter import AsciiFilter
from vidqa.tui.clipboard import copy_text
from vidqa.tui.command_palette import Actions
from vidqa.tui.controller import Controller
from vidqa.tui.help_text import help_for
from vidqa.tui.key_bindings import bindings_for
from vidqa.tui.launch_options import LaunchOptions
from vidqa.tui.model_list import list_choices
from vidqa.tui.plan_overrides import PLANNED_QUESTION
from vidqa.tui.sanitize_filter import SanitizeFilter
from vidqa.tui.screens.main_screen import MainScreen
from vidqa.tui.screens.model_chooser import ModelChooser, ModelRow
from vidqa.tui.screens.text_viewer import TextViewer
from vidqa.tui.session_worker import SessionFactory
from vidqa.tui.stdio_redirect import print_to_descriptors, read_log
from vidqa.utils.safe_text import safe_text

LOG_NAME = "tui.log"
_TWICE_SECONDS = 2.0
_COLLECT_SECONDS = 0.3


def make_app(factory: SessionFactory, face: LaunchOptions) -> "VidqaApp":
    """The app, ready to run; `factory` makes the session that answers, in a thread, when it is first needed."""
    return VidqaApp(factory, face)


class VidqaApp(App[int]):
    """Exits with 0, or with 143 after SIGTERM."""

    CSS_PATH = "vidqa.tcss"
    TITLE = "vidqa"
    BINDINGS: ClassVar[list[BindingType]] = bindings_for("global")
    COMMANDS = App.COMMANDS | {Actions}

    def __init__(self, factory: SessionFactory, face: LaunchOptions) -> None:
        # Made once: Textual keeps filtered lines by the filter's identity.
        self._drawn_through = (SanitizeFilter(), AsciiFilter()) if face.ascii else (SanitizeFilter(),)
        super().__init__()
        self.face = face
        self.desk = Controller(factory, face)
        self.main = MainScreen(self.desk)
        self._interrupted = float("-inf")
        self.set_keymap(dict(face.keys))

    def get_default_screen(self) -> Screen[None]:
        """The main screen."""
        return self.main

    def get_line_filters(self) -> list[LineFilter]:
        """Nothing but text is drawn; on a terminal without Unicode, in ASCII."""
        return [*super().get_line_filters(), *self._drawn_through]

    def on_mount(self) -> None:
        """Start the threads, then open what was named or ask for what is missing."""
        if not self.is_headless:
            print_to_descriptors()
            self.call_after_refresh(gc_policy.put_off)
        if self.face.theme in self.available_themes:
            self.theme = self.face.theme
        else:
            self.notify(safe_text(f"There is no theme {self.face.theme!r}."), severity="warning", markup=False)
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        self.desk.start(self.main.post_message, self._thread, self._warn)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._on_signal(number)
        if self.face.tick_seconds is not None:
            self.set_interval(self.face.tick_seconds, self.main.tick)
        self.call_after_refresh(self._first_step)

    def on_unmount(self) -> None:
        """Whatever ends the app ends its work too."""
        self.desk.leave()

    def _first_step(self) -> None:
        if self.face.video is not None:
            self.main.open_path(self.face.video)
        if self.desk.model is None:
            self.main.action_choose_model()

    def _thread(self, body: Callable[[], None], group: str) -> Worker[None]:
        """A thread of the app's; of those that plan only the newest counts."""
        return self.run_worker(
            body, group=group, name=group, thread=True, exclusive=group in ("plan", "look"), exit_on_error=False
        )

    def _on_signal(self, number: int) -> None:
        import asyncio

        try:
            asyncio.get_running_loop().add_signal_handler(number, partial(self._leave, 128 + number))
        except (NotImplementedError, RuntimeError, ValueError):
            return  # not in the main thread: whoever runs us there handles signals

    def _leave(self, code: int) -> None:
        self.desk.leave()
        self.exit(code)

    def _warn(self, text: str) -> None:
        """From any thread."""
        self.call_later(partial(self.notify, safe_text(text), severity="warning", timeout=10, markup=False))

    def _keep_theme(self, theme: object) -> None:
        """The next start looks the same."""
        if self.face.settings_file is None:
            return
        from vidqa.settings.edit import remember_setting

        try:
            remember_setting(self.face.settings_file, "tui.theme", self.theme)
        except (VidqaError, OSError) as error:
            self._warn(f"The theme is not kept: {error}")

    def collect_garbage(self, *, only_loaded: bool) -> None:
        """A job is done: collect in a moment, when its end is on the screen. Not in tests, which share a process."""
        if not self.is_headless:
            self.set_timer(_COLLECT_SECONDS, gc_policy.set_aside if only_loaded else gc_policy.catch_up)

    # What works on every screen

    def action_leave(self) -> None:
        """Quit; what is being answered is kept as far as it came."""
        self._leave(0)

    async def action_quit(self) -> None:
        """The palette's word for it."""
        self._leave(0)

    def action_interrupt(self) -> None:
        """Ctrl-C: copy a selection, stop an answer, empty the prompt, or, twice, quit."""
        if selected := self.screen.get_selected_text():
            self.copy(selected)
        elif self.desk.answering:
            self.main.action_stop()
        elif self.main.clear_prompt():
            return
        elif time.monotonic() - self._interrupted <= _TWICE_SECONDS:
            self._leave(0)
        else:
            self._interrupted = time.monotonic()
            self.notify("Press Ctrl-C again to quit; Esc stops an answer.", timeout=_TWICE_SECONDS, markup=False)

    def action_help(self) -> None:
        """What the focused part is, and its keys; again to close."""
        if isinstance(self.screen, TextViewer):
            self.screen.dismiss(None)
        else:
            self.push_screen(TextViewer(*help_for(self.screen)))

    def show_log(self) -> None:
        """What was printed behind the screen."""
        from textual.content import Content

        text = read_log(self.face.state / LOG_NAME) if self.face.state else ""
        self.push_screen(TextViewer("Log", Content(safe_text(text) or "Nothing was printed."), at_end=True))

    def copy(self, text: str) -> None:
        """To the clipboard, in a thread since tools can be slow; a toast says by which way."""
        self.run_worker(partial(self._copy, text), thread=True, group="copy", exit_on_error=False)

    def _copy(self, text: str) -> None:
        folder = self.face.state or Path.cwd()
        try:
            copied = copy_text(text, lambda value: self.call_from_thread(self.copy_to_clipboard, value), folder)
        except OSError as error:
            self._warn(f"It cannot be copied: {error}")
            return
        told = partial(self.notify, safe_text(copied.told), markup=False)
        self.call_later(told if copied.sure else partial(told, severity="warning"))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Textual's own, without those that have an entry here."""
        for command in super().get_system_commands(screen):
            if command.title not in ("Quit", "Keys"):
                yield command

    # Models

    def choose_model(self) -> None:
        """Open the chooser; sizes and fits come from the planner, in a thread."""
        self.run_worker(self._list_models, thread=True, group="models", exclusive=True, exit_on_error=False)

    def _list_models(self) -> None:
        desk = self.desk
        request = replace(self.face.request, question=PLANNED_QUESTION)
        choices = list_choices(desk.bridge.session(), desk.config(), request, desk.video)
        self.call_from_thread(self.push_screen, ModelChooser(choices, self.desk.model), self._model_chosen)

    def _model_chosen(self, choice: ModelRow | None) -> None:
        if choice is None:
            return
        if choice.here:
            self.main.use_model(choice.name)
        else:
            self.main.say_status(f"fetching {choice.name}, {choice.told}; you can go on meanwhile")
            self.run_worker(partial(self._fetch, choice.name), thread=True, group="fetch", exit_on_error=False)

    def _fetch(self, name: str) -> None:
        from vidqa.models.hub import pull_model

        try:
            pull_model(name)
        except VidqaError as error:
            self.call_from_thread(self.main.say_status, "")
            self.call_from_thread(self.main.tell, error, "The model was not fetched")
            return
        self.call_from_thread(self.main.use_model, name)
