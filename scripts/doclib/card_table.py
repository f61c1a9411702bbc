"""README's tables: the released models, and "which model and how many frames on my card".

The first is `vidqa models --known`, the second is made by `vidqa plan --gpu ... --json` for a made video of five
minutes at 1080p and 25 frames per second: only its measures enter a plan. README's first lines name some of it.
"""

import contextlib
import functools
import io
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

from doclib.markdown import table
from vidqa.cli.main import run
from vidqa.messages import base_name
from vidqa.planner.model_choice import released_models
from vidqa.utils.units import format_bytes

SECONDS, FPS, SIZE = 300, 25, (1920, 1080)
MODELS = (("Qwen2-VL-2B", "2b"), ("Qwen2-VL-7B", "7b"), ("the model with the best expected score", "auto"))


class Card(NamedTuple):
    """A row: its size, and the options of `vidqa plan` that describe it."""

    size: str
    name: str
    options: tuple[str, ...]


CARDS = (
    Card("6 GB", "any, with `--vram 5.6GiB`", ("--gpu", "rtx3060-8", "--vram", "5.6GiB")),
    Card("8 GB", "RTX 4060", ("--gpu", "rtx4060")),
    Card("12 GB", "RTX 3060", ("--gpu", "rtx3060-12")),
    Card("16 GB", "RTX 4060 Ti", ("--gpu", "rtx4060ti-16")),
    Card("16 GB", "T4", ("--gpu", "t4")),
    Card("24 GB", "RTX 4090", ("--gpu", "rtx4090")),
)


def render_models() -> list[str]:
    """Return the lines of the table of released models."""
    rows = [
        (
            f"`{model.short_name}`", model.repository.rpartition("/")[2], f"{model.download_bytes / 1e9:.1f} GB",
            format_bytes(model.least_bytes), f"{model.score:.1f}" if model.runs else "planned, not run",
        )
        for model in released_models()
    ]  # fmt: skip
    return table(("`--model`", "model", "download", "GPU memory, at least", "expected score"), rows)


def render_cards() -> list[str]:
    """Return the lines of the table."""
    rows = [(card.size, card.name, *map(_cell, plans)) for card, plans in zip(CARDS, _card_plans(), strict=True)]
    return table(("card", "for example", *(name for name, _ in MODELS)), rows)


def render_best() -> list[str]:
    """Return README's first words on cards: the best model, its weights and frames on four of them."""
    best = {card.size: plans[-1] for card, plans in zip(CARDS, _card_plans(), strict=True)}
    chosen = [(size, best[size]) for size in ("6 GB", "8 GB", "12 GB", "24 GB")]
    rows = [(size, f"{_base(plan)} in {plan['weights']}", str(plan["frames"])) for size, plan in chosen]
    return table(("your card", "the model that is expected to answer best", "frames of five minutes of video"), rows)


@functools.cache
def _card_plans() -> tuple[tuple[dict[str, Any], ...], ...]:
    """Return for each card the plan of each model."""
    with TemporaryDirectory() as folder, _without_own_settings(folder):
        clip = write_flat_clip(Path(folder) / "five-minutes.mp4")
        return tuple(tuple(plan(clip, card, model) for _, model in MODELS) for card in CARDS)


@contextlib.contextmanager
def _without_own_settings(folder: str) -> Iterator[None]:
    """Hide the settings and the measured peaks of this machine's user, which change plans."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("VIDQA_")}
    clean = {**others, "VIDQA_CONFIG": f"{folder}/config.toml", "VIDQA_STATE": f"{folder}/state"}
    clean |= {"HF_HUB_CACHE": f"{folder}/hub"}
    with mock.patch.dict(os.environ, clean, clear=True):
        yield


def plan(clip: Path, card: Card, model: str) -> dict[str, Any]:
    """Return `plan` of `vidqa plan --json`; raises RuntimeError with its exit code if there is none."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run(["plan", str(clip), *card.options, "--model", model, "--quality", "balanced", "--json"])
    if code:
        raise RuntimeError(f"vidqa plan for {card.size} ended with {code}")
    found: dict[str, Any] = json.loads(printed.getvalue())["plan"]
    return found | {"named": model != "auto"}


def _base(plan: dict[str, Any]) -> str:
    return base_name(plan["model"])


def _cell(plan: dict[str, Any]) -> str:
    model = "" if plan["named"] else f"{_base(plan)}: "
    return (
        f"{model}{plan['frames']} frames of {plan['width']}×{plan['height']}, {plan['weights']} weights, "
        f"{format_bytes(plan['required_bytes'])}"
    )


def write_flat_clip(path: Path) -> Path:
    """Write an H.264 file of one flat key frame, repeated; it takes milliseconds, since one frame is encoded."""
    import av
    import numpy as np

    frame = av.VideoFrame.from_ndarray(np.full((SIZE[1], SIZE[0], 3), 96, np.uint8), format="rgb24")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"qp": "51", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        encoded: Any = next(iter(stream.encode(frame) + stream.encode()))
        for number in range(SECONDS * FPS):
            packet = av.Packet(bytes(encoded))
            packet.stream, packet.time_base = stream, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    return path
