#!/usr/bin/env python3
"""Answers of a demo model with dropped visual tokens, on fresh clips, each compared with all tokens of the same clip.

Two kinds of clips: still recordings (nothing moves but for one short event), and a moving camera (the whole backdrop
scrolls). At equal shares: tokens by similarity (`--prune SHARE`), tokens at random, and fewer frames. Differences are
paired by clip, with 95 % confidence intervals. Results go to benchmarks/results/.
"""

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import numpy as np
import torch
from torch import Tensor

from benchlib.paired import (
    ClipResult,
    ask_all,
    compare_clips,
    current_session,
    of_side,
    paired,
    times_fewer,
    with_sides,
)
from benchlib.rows import Bar, Row
from demo_world.clips import ClipSpec, draw_clip, write_clip
from demo_world.moving_camera import render_panned
from demo_world.questions import QUESTIONS, Turn, ask
from demo_world.recipes import RECIPES, Recipe
from demo_world.world import Actor, Scene
from vidqa.engine import token_pruning

SEED = 170_000_000
KINDS = ("still", "camera")
SHARES = (0.3, 0.2)
STILL_FRAMES, CAMERA_FRAMES = 32, 12
EVENT = 0.12  # how long a still recording's event takes, as a share of the clip
BARS = {
    "still: auto, times fewer tokens": Bar(4.0), "still: auto, points lost": Bar(1.0, "<="),
    **{f"camera: similarity {share:.0%} above random, points": Bar(0.0, ">") for share in SHARES},
}  # fmt: skip


def still_clip(seed: int, recipe: Recipe) -> ClipSpec:
    """A clip of one shape, whose only event is short."""
    rng = random.Random(f"still/{seed}")
    spec = draw_clip(SEED + seed, recipe, other_renderer=seed % 2 == 1)
    actors = tuple(_short(rng, actor) for actor in spec.scene.actors[:1])
    scene = Scene(actors, spec.scene.background, spec.scene.seed)
    return replace(
        spec, scene=scene, seconds=rng.uniform(8, 20), asked_frames=STILL_FRAMES, sampled_frames=STILL_FRAMES
    )


def _short(rng: random.Random, actor: Actor) -> Actor:
    begin = rng.uniform(0.2, 0.7)
    appear = begin if actor.kind == "appears" else 0.0
    return replace(actor, start=begin, stop=begin + EVENT, change=begin, appear=appear, leave=2.0)


def camera_clip(seed: int, recipe: Recipe) -> ClipSpec:
    """An ordinary clip, to be drawn before a moving camera."""
    while (spec := draw_clip(SEED + seed, recipe, other_renderer=True)).sampled_frames < CAMERA_FRAMES // 2:
        seed += 1_000_000
    return replace(spec, seconds=max(spec.seconds, 2.0), asked_frames=CAMERA_FRAMES, sampled_frames=CAMERA_FRAMES)


def _panned(spec: ClipSpec, times: list[float]) -> np.ndarray:
    return render_panned(spec.scene, times, spec.height, spec.width)


@contextmanager
def random_tokens(seed: int) -> Iterator[None]:
    """Drop tokens at random instead of by similarity; budgets stay as they are."""
    generator, usual = torch.Generator().manual_seed(seed), token_pruning.cosine_similarities

    def drawn(features: Tensor, others: Tensor) -> Tensor:
        return torch.rand(len(features), generator=generator)

    token_pruning.cosine_similarities = drawn
    try:
        yield
    finally:
        token_pruning.cosine_similarities = usual


def sides(frames: int) -> Iterator[tuple[str, Literal["auto", "off"] | float, int, bool]]:
    """Yield name, `--prune`, frames and whether tokens are dropped at random."""
    yield "all", "off", frames, False
    yield "auto", "auto", frames, False
    for share in SHARES:
        yield f"similarity {share:.0%}", share, frames, False
        yield f"random {share:.0%}", share, frames, True
        yield f"fewer frames {share:.0%}", "off", max(round(share * frames / 2) * 2, 2), False


NAMES = tuple(name for name, *_ in sides(CAMERA_FRAMES))


def measure(family: str, kind: str, seed: int, wanted: Sequence[str]) -> ClipResult:
    """Ask a clip's questions in these ways."""
    session, (spec, turns), results = current_session(), case(kind, seed, RECIPES[family]), ClipResult()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kind}-{seed}.mp4"
        write_clip(spec, path, _panned if kind == "camera" else None)
        for name, prune, frames, at_random in sides(spec.asked_frames or CAMERA_FRAMES):
            if name not in wanted:
                continue
            session.reconfigure(replace(session.config, prune=prune))
            session.forget()
            with random_tokens(seed) if at_random else nullcontext():
                results[name] = ask_all(session, path, turns, frames=frames)
    return results


def rows_of(kind: str, results: Sequence[ClipResult]) -> Iterator[Row]:
    """Yield accuracy, kept tokens and differences of one kind of clips, for every way in which clips were read."""
    for name in NAMES:
        if not (measured := with_sides(results, name, "all")):
            continue
        right = of_side(measured, name)
        yield Row(kind, f"{name}, right", fmean(right), "share", f"{len(measured)} clips")
        yield Row(
            kind, f"{name}, times fewer tokens", times_fewer(measured, name, "all"), "×", "all tokens / kept ones"
        )
        if name != "all":
            lost, half = paired(of_side(measured, "all"), right)
            yield Row(kind, f"{name}, points lost", lost, "points", "paired by clip", note=f"± {half:.1f}")
    for share in SHARES:
        for other in ("random", "fewer frames"):
            one, another = f"similarity {share:.0%}", f"{other} {share:.0%}"
            if measured := with_sides(results, one, another):
                gained, half = paired(of_side(measured, one), of_side(measured, another))
                yield Row(
                    kind, f"{one} above {other}, points", gained, "points", "paired by clip", note=f"± {half:.1f}"
                )


def case(kind: str, seed: int, recipe: Recipe) -> tuple[ClipSpec, list[Turn]]:
    """Return a clip, and `what happens?` with one more question about it."""
    rng = random.Random(f"{kind} questions/{seed}")
    spec = (still_clip if kind == "still" else camera_clip)(seed, recipe)
    other = rng.choice([name for name in QUESTIONS if name != "happens"])
    return spec, [ask(spec.scene, name, rng.choice(QUESTIONS[name])) for name in ("happens", other)]


def main() -> int:
    return compare_clips("prune", __doc__, KINDS, NAMES, measure, rows_of, BARS, "qwen3_vl")


if __name__ == "__main__":
    raise SystemExit(main())
