"""Start the app in a terminal: what the terminal can show, the redirected streams, and the exit code."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from vidqa.config import EngineConfig
from vidqa.errors import UsageError, VidqaError
from vidqa.tui.app import VidqaApp
from vidqa.tui.launch_options import LaunchOptions
from vidqa.tui.session_worker import SessionEngine, SessionFactory
from vidqa.tui.stdio_redirect import LOG_NAME, is_terminal, redirect_to_log

_EXIT_SECONDS = 5.0  # for the workers to notice at the next chunk that the app has ended


def make_session(config: EngineConfig) -> SessionEngine:
    """Create the engine's session; its imports take seconds, so call it in a thread."""
    from vidqa.engine.session import Session

    return Session(config)


def open_app(options: LaunchOptions, factory: SessionFactory = make_session) -> int:
    """Run the app in this terminal; return the exit code.

    Raises UsageError if there is no terminal, VidqaError if the app itself failed.
    """
    if not is_terminal():
        raise UsageError("The interactive session needs a terminal.", "Use `vidqa ask VIDEO QUESTION` in scripts.")
    if options.state is None:
        raise ValueError("the log needs a folder")
    log = options.state / LOG_NAME
    ascii_only = options.ascii or not _has_unicode()
    images = image_mode(options.images, os.environ, ascii_only=ascii_only)
    with redirect_to_log(log):
        app = VidqaApp(factory, replace(options, images=images, ascii=ascii_only))  # must see the redirected streams
        code = app.run()
        app.controller.close(_EXIT_SECONDS)
    if code is None and app.return_code:
        raise VidqaError("The session crashed and was closed.", f"The end of {log} says why; the history is saved.")
    return code or 0


def _has_unicode() -> bool:
    return "utf" in (sys.__stdout__.encoding if sys.__stdout__ else "").lower()


def image_mode(wanted: str, environment: Mapping[str, str], *, ascii_only: bool) -> str:
    """Return how to show pictures: half, kitty, sixel or none. `auto` queries the terminal, so call it before the app.

    Half blocks need 256 colours: under NO_COLOR and on terminals with 16 colours the result is none.
    """
    if wanted in ("kitty", "sixel", "none"):
        return wanted
    if wanted == "auto" and not ascii_only:
        from textual_image.renderable import Image, SixelImage, TGPImage  # the import queries the terminal

        if Image in (SixelImage, TGPImage):
            return "sixel" if Image is SixelImage else "kitty"
    terminal = environment.get("TERM", "")
    colours = environment.get("COLORTERM") or "256" in terminal or "kitty" in terminal
    return "half" if colours and not ascii_only and "NO_COLOR" not in environment else "none"
