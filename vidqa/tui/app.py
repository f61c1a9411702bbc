"""The Textual app: themes, signals, and the actions that work on every screen. screens/main_screen.py is the rest."""

import gc
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.filter import LineFilter
from textual.screen import Screen
from textual.worker import Worker

from vidqa.errors import VidqaError
from vidqa.tui.bindings import bindings_for
from vidqa.tui.command_palette import ActionProvider
from vidqa.tui.controller import Controller
from vidqa.tui.help_text import help_for
from vidqa.tui.launch_options import LaunchOptions
from vidqa.tui.line_filters import AsciiFilter, SanitizeFilter
from vidqa.tui.screens.dialogs import TextViewer
from vidqa.tui.screens.main_screen import MainScreen
from vidqa.tui.session_worker import SessionFactory
from vidqa.tui.stdio_redirect import print_to_descriptors
from vidqa.tui.worker_messages import JobEnded
from vidqa.utils.safe_text import safe_text

_QUIT_SECONDS = 2.0  # a second Ctrl-C within this time quits
_COLLECT_SECONDS = 0.3
# Thresholds of the garbage collector: many young collections, no full ones.
_YOUNG, _MIDDLE, _NEVER = 5_000, 10, 2**30  # CPython's defaults are 700, 10, 10


class VidqaApp(App[int]):
    """Returns 0, or 128 + the number of the signal that ended it."""

    CSS_PATH = "vidqa.tcss"
    TITLE = "vidqa"
    BINDINGS: ClassVar[list[BindingType]] = bindings_for("global")
    COMMANDS = {ActionProvider}  # noqa: RUF012 - as Textual declares it

    def __init__(self, factory: SessionFactory, options: LaunchOptions) -> None:
        """`factory` creates the session, in a thread, when it is first needed."""
        # Created once: Textual caches filtered lines by the identity of their filters.
        self._line_filters = (SanitizeFilter(), AsciiFilter()) if options.ascii else (SanitizeFilter(),)
        super().__init__()
        self.options = options
        self.controller = Controller(factory, options)
        self.main = MainScreen(self.controller)
        self._interrupted = float("-inf")
        self.set_keymap(dict(options.keys))

    def get_default_screen(self) -> Screen[None]:
        """Return the main screen."""
        return self.main

    def get_line_filters(self) -> list[LineFilter]:
        """Return Textual's filters and vidqa's."""
        return [*super().get_line_filters(), *self._line_filters]

    def on_mount(self) -> None:
        """Start the workers, then open the video that was named, or the chooser of models."""
        if not self.is_headless:
            print_to_descriptors()
            self.call_after_refresh(self._defer_garbage)
        if self.options.theme in self.available_themes:
            self.theme = self.options.theme
        else:
            text = f"There is no theme {self.options.theme!r}. Choose one in the palette (ctrl+p)."
            self.notify(safe_text(text), severity="warning", markup=False)
        self.theme_changed_signal.subscribe(self, self._save_theme)
        self.controller.start(self.main.post_message, self._run_thread, self._warn)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._on_signal(number)
        if self.options.tick_seconds is not None:
            self.set_interval(self.options.tick_seconds, self.main.tick)
        self.call_after_refresh(self._open_first)

    def on_unmount(self) -> None:
        """End the workers, however the app ends."""
        self.controller.close()
        if not self.is_headless:
            gc.unfreeze()  # frozen objects are not freed at exit, and nanobind reports its own on the terminal

    def _open_first(self) -> None:
        if self.options.video is not None:
            self.main.open_path(self.options.video)
        if self.controller.model is None:
            self.main.action_choose_model()

    def _run_thread(self, body: Callable[[], None], group: str) -> Worker[None]:
        """Run a function in a thread; a newer one of the same group cancels it."""
        return self.run_worker(body, group=group, name=group, thread=True, exclusive=True, exit_on_error=False)

    def _on_signal(self, number: int) -> None:
        import asyncio

        try:
            asyncio.get_running_loop().add_signal_handler(number, partial(self._quit, 128 + number))
        except (NotImplementedError, RuntimeError, ValueError):
            return  # not in the main thread, where signals are handled by the caller

    def _quit(self, code: int) -> None:
        self.controller.close()
        self.exit(code)

    def _warn(self, text: str) -> None:
        """Notify; may be called from any thread."""
        self.call_later(partial(self.notify, safe_text(text), severity="warning", timeout=10, markup=False))

    def _save_theme(self, theme: object) -> None:
        if self.options.settings_file is None:
            return
        from vidqa.settings.edit import remember_setting

        try:
            remember_setting(self.options.settings_file, "tui.theme", self.theme)
        except (VidqaError, OSError) as error:
            self._warn(f"The theme is not saved: {error}")

    # Garbage collection: between answers, since a full one stops all threads, for half a second once torch is loaded.
    # Headless apps leave it alone: tests share a process.

    def _defer_garbage(self) -> None:
        gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
        gc.freeze()

    def on_job_ended(self, message: JobEnded) -> None:
        """Collect garbage after an answer, once its end is on the screen."""
        if not self.is_headless:
            self.set_timer(_COLLECT_SECONDS, partial(self._collect_garbage, only_loaded=message.job.only_load))

    def _collect_garbage(self, *, only_loaded: bool) -> None:
        """Collect, then exclude all that is left from later collections; a loaded model leaves nothing to collect."""
        if not only_loaded:
            gc.collect()
        gc.freeze()

    # Actions of every screen

    async def action_quit(self) -> None:
        """Quit; an unfinished answer is saved as far as it came."""
        self._quit(0)

    def action_interrupt(self) -> None:
        """Copy the selection, stop the answer or clear the prompt; pressed twice with nothing to do, quit."""
        if selected := self.screen.get_selected_text():
            self.main.copy(selected)
        elif self.controller.answering:
            self.main.action_stop()
        elif self.main.clear_prompt():
            return
        elif time.monotonic() - self._interrupted <= _QUIT_SECONDS:
            self._quit(0)
        else:
            self._interrupted = time.monotonic()
            self.notify("Press Ctrl-C again to quit. Esc stops an answer.", timeout=_QUIT_SECONDS, markup=False)

    def action_help(self) -> None:
        """Show the help of the focused part, or close it."""
        if isinstance(self.screen, TextViewer):
            self.screen.dismiss(None)
        else:
            self.push_screen(TextViewer(*help_for(self.screen)))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Yield Textual's own commands except those that are in `ACTIONS`."""
        return (command for command in super().get_system_commands(screen) if command.title not in ("Quit", "Keys"))
