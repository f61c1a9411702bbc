"""From a terminal to the running app and back: what the terminal can show, the guard, the exit code."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from vidqa.config import EngineConfig
from vidqa.errors import UsageError, VidqaError
from vidqa.models.hub import cached_models
from vidqa.tui.app import LOG_NAME, make_app
from vidqa.tui.launch_options import LaunchOptions
from vidqa.tui.session_worker import SessionEngine, SessionFactory
from vidqa.tui.stdio_redirect import guarded, is_terminal

_LAST_SECONDS = 5.0  # what is being computed hears of the end at its next chunk


def default_model() -> str | None:
    """The first cached model that runs; None where the person has to choose."""
    return next((model.repository for model in cached_models() if model.runnable), None)


def make_session(config: EngineConfig) -> SessionEngine:
    """The engine's session; called in a thread, after the first frame, since its imports are heavy."""
    from vidqa.engine.session import Session

    return Session(config)


def open_app(face: LaunchOptions, factory: SessionFactory = make_session) -> int:
    """Run the app in this terminal; returns the exit code.

    Raises UsageError where there is no terminal, VidqaError where the app itself failed.
    """
    if not is_terminal():
        raise UsageError("The interactive session needs a terminal.", "Use `vidqa ask VIDEO QUESTION` in scripts.")
    if face.state is None:
        raise ValueError("the log needs a folder")
    log = face.state / LOG_NAME
    ascii_only = face.ascii or not _knows_unicode()
    face = replace(face, images=images_for(face.images, os.environ, ascii_only=ascii_only), ascii=ascii_only)
    with guarded(log):
        app = make_app(factory, face)  # in here, so that it takes descriptor 2 for the file that it is
        code = app.run()
        app.desk.leave(_LAST_SECONDS)
    if code is None and app.return_code:
        raise VidqaError("The screen failed and was closed.", f"The end of {log} says why; the history is kept.")
    return code or 0


def _knows_unicode() -> bool:
    return "utf" in (sys.__stdout__.encoding if sys.__stdout__ else "").lower()


def images_for(wanted: str, environment: Mapping[str, str], *, ascii_only: bool) -> str:
    """How pictures are shown: half, kitty, sixel or none; `auto` asks the terminal, which must be done before the app.

    Half blocks need 256 colours, so there are none under NO_COLOR and on terminals of 16.
    """
    if wanted in ("kitty", "sixel", "none"):
        return wanted
    if wanted == "auto":
        from textual_image.renderable import Image, SixelImage, TGPImage  # its import asks the terminal

        if Image in (SixelImage, TGPImage):
            return "sixel" if Image is SixelImage else "kitty"
    colours = (
        environment.get("COLORTERM") or "256" in environment.get("TERM", "") or "kitty" in environment.get("TERM", "")
    )
    return "half" if colours and not ascii_only and "NO_COLOR" not in environment else "none"
