#!/usr/bin/env python3
"""Answers of a demo model with frames by change, by question, by both, and even ones, at equal frames of fresh clips.

Cases: `short` ordinary clips at their default frames; ten minutes with one event of 0.5 to 1 s before a `still` or a
`noise` background; such an event among `others` of other colors, asked for by its name; and a `glimpse` of 0.2 s in 30
minutes. Differences are paired by clip, with 95 % confidence intervals. Results go to benchmarks/results/.
"""

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.paired import ClipResult, ask_all, compare_clips, current_session, of_side, paired, with_sides
from benchlib.rows import Bar, Row
from demo_world.clips import draw_clip, write_clip
from demo_world.export import pixel_bounds
from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from demo_world.questions import NAMED, QUESTIONS, Turn, ask, describe, draw_named
from demo_world.recipes import RECIPES, Recipe
from demo_world.world import BACKGROUNDS, Actor, Kind, Scene, Shot, draw_actor
from vidqa.video.frame_sampling import smart_resize

SEED = 171_000_000
FRAMES = 32
OTHERS = 24  # events of other colors
MINUTES = {"still": 10, "noise": 10, "others": 10, "glimpse": 30}
CASES = ("short", *MINUTES)
# Name, how frames are sampled, whether the question selects.
SIDES: dict[str, tuple[Literal["uniform", "auto"], Literal["off", "auto"]]] = {
    "even": ("uniform", "off"), "change": ("auto", "off"), "focus": ("uniform", "auto"), "both": ("auto", "auto"),
}  # fmt: skip
BARS = {
    **{f"short: {side}, points gained": Bar(-0.5) for side in SIDES if side != "even"},
    **{f"{case}: change, right": Bar(0.85) for case in ("still", "noise")},
    **{f"{case}: even, right": Bar(0.15, "<=") for case in ("still", "noise")},
    "others: change, right": Bar(0.5, "<="), "others: both, right": Bar(0.8), "glimpse: change, right": Bar(0.7),
}  # fmt: skip
_KINDS: tuple[Kind, ...] = ("moves", "moves", "changes", "appears")


def long_case(case: str, seed: int, recipe: Recipe) -> tuple[LongClip, Turn]:
    """Draw a long clip, and the question about its event."""
    rng = random.Random(f"{case}/{SEED + seed}")
    seconds = 60.0 * MINUTES[case]
    clip = LongClip(
        seconds, noise=rng.uniform(4, 10) if case == "noise" else 0.0, background=rng.choice(BACKGROUNDS),
        seed=rng.getrandbits(31),
    )  # fmt: skip
    least, most = pixel_bounds(recipe)
    shot = Shot(FRAMES, *smart_resize(clip.height, clip.width, factor=recipe.token_pixels, min_pixels=least,
                                      max_pixels=most))  # fmt: skip
    actor = _seen_throughout(draw_actor(rng, shot, "appears" if case == "glimpse" else rng.choice(_KINDS), 0.0, 1.0))
    actors = [actor, *_others(rng, shot, actor, OTHERS if case == "others" else 0)]
    starts = _starts(rng, len(actors), seconds)
    events = [
        LongEvent(Scene((each,), "plain", 0), start, 0.2 if case == "glimpse" else rng.uniform(0.5, 1.0))
        for each, start in zip(actors, starts, strict=True)
    ]
    question = rng.choice(NAMED).format(what=actor.names[0])
    return replace(clip, events=tuple(events)), Turn("named", question, f"{describe(actor, article='the')}.")


def _seen_throughout(actor: Actor) -> Actor:
    return replace(actor, appear=0.0, leave=2.0)


def _others(rng: random.Random, shot: Shot, asked: Actor, count: int) -> list[Actor]:
    """Draw events of which none has a color of the asked one."""
    others = list[Actor]()
    while len(others) < count:
        other = draw_actor(rng, shot, rng.choice(_KINDS), 0.0, 1.0)
        if not {other.color, other.end_color} & {asked.color, asked.end_color}:
            others.append(_seen_throughout(other))
    return others


def _starts(rng: random.Random, count: int, seconds: float) -> list[float]:
    """Draw when events begin, in no order and each in its own part of the clip."""
    part = seconds / count
    starts = [part * number + rng.uniform(1, part - 2.5) for number in range(count)]
    rng.shuffle(starts)
    return starts


def short_case(seed: int, recipe: Recipe, path: Path) -> list[Turn]:
    """Write an ordinary clip; return `what happens?`, a question by name and two others."""
    spec = draw_clip(SEED + seed, recipe, other_renderer=seed % 2 == 1)
    rng = random.Random(f"short/{seed}")
    kinds = ["happens", *rng.sample([kind for kind in QUESTIONS if kind != "happens"], 2)]
    write_clip(replace(spec, asked_frames=None), path)
    turns = [ask(spec.scene, kind, rng.choice(QUESTIONS[kind])) for kind in kinds]
    return [*turns, draw_named(rng, spec.scene)] if recipe.timed else turns


def measure(family: str, case: str, seed: int, sides: Sequence[str]) -> ClipResult:
    """Ask a clip's questions in these ways."""
    session, recipe = current_session(), RECIPES[family]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{case}-{seed}.mp4"
        if case == "short":
            turns, frames = short_case(seed, recipe, path), None
        else:
            clip, turn = long_case(case, seed, recipe)
            write_long_clip(clip, path)
            turns, frames = [turn], FRAMES
        results = {}
        for side in sides:
            sample, focus = SIDES[side]
            session.forget()
            results[side] = ask_all(session, path, turns, frames=frames, sample=sample, focus=focus)
    return results


def rows_of(case: str, results: Sequence[ClipResult]) -> Iterator[Row]:
    """Yield the share of right answers of every way, and what it gained over even frames."""
    for side in SIDES:
        if not (measured := with_sides(results, side)):
            continue
        yield Row(case, f"{side}, right", fmean(of_side(measured, side)), "share", f"{len(measured)} clips")
        if side != "even" and (both := with_sides(results, side, "even")):
            gained, half = paired(of_side(both, side), of_side(both, "even"))
            what = f"over even, {len(both)} clips"
            yield Row(case, f"{side}, points gained", gained, "points", what, note=f"± {half:.1f}")


def main() -> int:
    return compare_clips("focus", __doc__, CASES, tuple(SIDES), measure, rows_of, BARS, "qwen3_vl")


if __name__ == "__main__":
    raise SystemExit(main())
