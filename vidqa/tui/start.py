"""From a terminal to the running app and back: what the terminal can show, the guard, the exit code."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from vidqa.config import EngineConfig
from vidqa.errors import UsageError
from vidqa.models.hub import cached_models
from vidqa.tui.app import LOG_NAME, make_app
from vidqa.tui.bridge import Engine
from vidqa.tui.face import Face
from vidqa.tui.guard import guarded, is_terminal


def default_model() -> str | None:
    """The first cached model that runs; None where the person has to choose."""
    return next((model.repository for model in cached_models() if model.runnable), None)


def open_app(face: Face) -> int:
    """Run the app in this terminal; returns the exit code. Raises UsageError where there is no terminal."""
    if not is_terminal():
        raise UsageError("The interactive session needs a terminal.", "Use `vidqa ask VIDEO QUESTION` in scripts.")
    if face.state is None:
        raise ValueError("the log needs a folder")
    log = face.state / LOG_NAME
    ascii_only = face.ascii or not _knows_unicode()
    face = replace(face, images=images_for(face.images, os.environ, ascii_only=ascii_only), ascii=ascii_only)
    app = make_app(_make_session, face)
    with guarded(log):
        code = app.run()
    return app.return_code or 0 if code is None else code


def _make_session(config: EngineConfig) -> Engine:
    from vidqa.engine.session import Session  # in a thread, after the first frame

    return Session(config)


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
