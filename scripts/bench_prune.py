#!/usr/bin/env python3
"""Answers of a demo model with dropped visual tokens, on fresh clips, each compared with all tokens of the same clip.

Two kinds of clips: still recordings (nothing moves but for one short event), and a moving camera (the whole backdrop
scrolls). At equal shares: tokens by similarity (`--prune SHARE`), tokens at random, and fewer frames. Differences are
paired by clip, with 95 % confidence intervals. Results go to benchmarks/results/.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import numpy as np
import torch
from torch import Tensor

from benchlib.rows import RESULTS, Bar, Row, report
from demo_world.clips import ClipSpec, draw_clip, write_clip
from demo_world.moving_camera import render_panned
from demo_world.questions import QUESTIONS, Turn, ask, is_right
from demo_world.recipes import RECIPES, Recipe
from demo_world.world import Actor, Scene
from vidqa import EngineConfig, Request, Session
from vidqa.engine import token_pruning
from vidqa.events import Answered

SEED = 170_000_000
SHARES = (0.3, 0.2)
STILL_FRAMES, CAMERA_FRAMES = 32, 12
EVENT = 0.12  # how long a still recording's event takes, as a share of the clip
BARS = {
    "still: auto, times fewer tokens": Bar(4.0), "still: auto, points lost": Bar(1.0, "<="),
    **{f"camera: similarity {share:.0%} above random, points": Bar(0.0) for share in SHARES},
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


@dataclass(slots=True)
class Side:
    """What one way of dropping did: the share of right answers per clip, and kept and all tokens."""

    right: list[float] = field(default_factory=list)
    kept: int = 0
    whole: int = 0


def sides(frames: int) -> Iterator[tuple[str, Literal["auto", "off"] | float, int, bool]]:
    """Yield name, `--prune`, frames and whether tokens are dropped at random."""
    yield "all", "off", frames, False
    yield "auto", "auto", frames, False
    for share in SHARES:
        yield f"similarity {share:.0%}", share, frames, False
        yield f"random {share:.0%}", share, frames, True
        yield f"fewer frames {share:.0%}", "off", max(round(share * frames / 2) * 2, 2), False


def measure(
    session: Session, config: EngineConfig, clips: Iterator[tuple[ClipSpec, list[Turn]]],
    render: Callable[[ClipSpec, list[float]], np.ndarray] | None, folder: Path,
) -> dict[str, Side]:  # fmt: skip
    """Ask every clip's questions on every side."""
    found: dict[str, Side] = {}
    for number, (spec, turns) in enumerate(clips):
        path = folder / f"{number}.mp4"
        write_clip(spec, path, render)
        for name, prune, frames, at_random in sides(spec.asked_frames or CAMERA_FRAMES):
            session.reconfigure(replace(config, prune=prune))
            session.forget()
            if at_random:
                with random_tokens(number):
                    _ask(session, path, turns, frames, found.setdefault(name, Side()))
            else:
                _ask(session, path, turns, frames, found.setdefault(name, Side()))
        path.unlink()
        print({name: f"{fmean(side.right):.2f}" for name, side in found.items()}, file=sys.stderr)
    return found


def _ask(session: Session, path: Path, turns: list[Turn], frames: int, side: Side) -> None:
    marks = []
    for turn in turns:
        *_, last = session.ask(Request(str(path), turn.question, frames=frames, max_tokens=64))
        assert isinstance(last, Answered)
        answer = last.answer
        marks.append(is_right(answer.text, turn.answer))
    side.right.append(fmean(marks))
    side.kept += answer.plan.visual_tokens
    side.whole += answer.plan.video_tokens


def paired(one: list[float], other: list[float]) -> tuple[float, float]:
    """Return the mean difference in points, and half of its 95 % confidence interval."""
    points = [100 * (a - b) for a, b in zip(one, other, strict=True)]
    return fmean(points), 1.96 * stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0


def rows_of(section: str, found: Mapping[str, Side]) -> Iterator[Row]:
    """Yield accuracy, kept tokens and differences of one kind of clips."""
    clips = f"{len(found['all'].right)} clips"
    for name, side in found.items():
        yield Row(section, f"{name}, right", fmean(side.right), "share", clips)
        fewer = side.whole / side.kept if "frames" not in name else found["all"].kept / side.kept
        yield Row(section, f"{name}, times fewer tokens", fewer, "×", "all tokens / kept tokens")
        if name != "all":
            lost, half = paired(found["all"].right, side.right)
            yield Row(section, f"{name}, points lost", lost, "points", "paired by clip", note=f"± {half:.1f}")
    for share in SHARES:
        for other in ("random", "fewer frames"):
            gained, half = paired(found[f"similarity {share:.0%}"].right, found[f"{other} {share:.0%}"].right)
            name = f"similarity {share:.0%} above {other}, points"
            yield Row(section, name, gained, "points", "paired by clip", note=f"± {half:.1f}")


def cases(kind: str, clips: int, recipe: Recipe) -> Iterator[tuple[ClipSpec, list[Turn]]]:
    """Yield clips with `what happens?` and one more question each."""
    for seed in range(clips):
        rng = random.Random(f"{kind} questions/{seed}")
        spec = (still_clip if kind == "still" else camera_clip)(seed, recipe)
        other = rng.choice([name for name in QUESTIONS if name != "happens"])
        yield spec, [ask(spec.scene, name, rng.choice(QUESTIONS[name])) for name in ("happens", other)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=300, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=("still", "camera"), default=["still", "camera"])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--family", choices=tuple(RECIPES), default="qwen2_vl", help="of the model")
    parser.add_argument("--out", type=Path, default=RESULTS / "prune-cpu.json")
    arguments = parser.parse_args()
    config = EngineConfig(model=arguments.model, isolate_decoder=False, remember=False)

    def rows() -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as folder, Session(config) as session:
            for kind in arguments.kinds:
                clips = cases(kind, arguments.clips, RECIPES[arguments.family])
                render = _panned if kind == "camera" else None
                yield from rows_of(kind, measure(session, config, clips, render, Path(folder)))

    return report("prune", rows(), BARS, arguments.out)


if __name__ == "__main__":
    raise SystemExit(main())
