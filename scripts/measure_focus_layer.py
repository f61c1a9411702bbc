"""Measure in which layer a question's attention ranks a video's slices best, on drawn clips with several named events.

Every clip has brief events of different colours and shapes at known times. The question names one of them; a slice is
right if that event is seen in it. Printed is, for each layer, the share of right slices among as many of the highest
scores, and among twice as many, with the share that a random order would reach.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from demo_world.world import COLORS, SHAPES, Actor, Scene
from vidqa import EngineConfig, Request, Session
from vidqa.devices.device import find_device
from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.frame_focus import FrameFocus, question_tokens
from vidqa.engine.no_grad import no_grad_scope
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.events import Found
from vidqa.models.attention.selector import make_kernel
from vidqa.planner.focus_memory import reference_layer
from vidqa.utils.generators import finished
from vidqa.video.reader import open_video

_PATHS = {"left": (0.8, 0.5, 0.2, 0.5), "right": (0.2, 0.5, 0.8, 0.5),
          "up": (0.5, 0.8, 0.5, 0.2), "down": (0.5, 0.2, 0.5, 0.8)}  # fmt: skip
Event = tuple[str, float, str]  # the shape's name, when it is first seen, and where it moves


def draw_clip(rng: random.Random, path: Path, seconds: float, events: int, event_seconds: float) -> list[Event]:
    """Write a clip of several moving shapes, one after the other; return their names, times and directions."""
    named = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], events)
    drawn, expected = list[LongEvent](), list[Event]()
    for number, (color, shape) in enumerate(named):
        start = (number + rng.uniform(0.1, 0.7)) * seconds / events
        direction, (x, y, end_x, end_y) = rng.choice(list(_PATHS.items()))
        actor = Actor(
            "moves", shape, color, color, direction, 0.3, x, y, end_x, end_y, appear=0.0, leave=1.0, start=0.05,
            stop=0.95, change=2.0, turn_degrees=0.0,
        )  # fmt: skip
        drawn.append(LongEvent(Scene((actor,), "plain", 0), start, event_seconds))
        expected.append((f"{color} {shape}", start, direction))
    write_long_clip(LongClip(seconds, tuple(drawn), seed=rng.randrange(2**31)), path)
    return expected


def precision(scores: Sequence[float], right: set[int], times: int) -> float:
    """Return the share of right slices that are among so many times as many highest scores."""
    best = sorted(range(len(scores)), key=lambda place: -scores[place])[: times * len(right)]
    return len(right.intersection(best)) / len(right)


def measure(session: Session, path: str, events: Sequence[Event], seconds: float) -> dict[int, list[tuple[float, ...]]]:
    """Return for each layer the precisions of every event's question; one encoding serves them all."""
    *_, found = session.find(Request(path, events[0][0]))
    assert isinstance(found, Found) and session.loaded is not None
    loaded, plan = session.loaded, found.plan
    stages = StageContext(Tracker(find_device("auto")), Callbacks(lambda: False), PhaseTimer(plan.device))
    kernel = make_kernel(plan.run_config.attention, loaded.model.device)
    encoder = FrameFocus(loaded, plan, None, kernel, stages)
    results: dict[int, list[tuple[float, ...]]] = {}
    with no_grad_scope(), open_video(path, isolated=False) as reader:
        finished(encoder.encode(reader))
        for name, start, _ in events:
            asked = question_tokens(loaded, Request(path, f"what does the {name} do?"))
            for layer in range(1, loaded.model.spec.layers):
                focus = FrameFocus(loaded, plan, asked, kernel, stages, encoder.embeddings, layer)
                selection = finished(focus.select())
                right = {place for place, at in enumerate(selection.seconds) if start <= at <= start + seconds}
                if right:
                    pair = (precision(selection.scores, right, 1), precision(selection.scores, right, 2))
                    results.setdefault(layer, []).append((*pair, len(right) / len(selection.scores)))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--events", type=int, default=6)
    parser.add_argument("--event-seconds", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng, totals, layers = random.Random(arguments.seed), dict[int, list[tuple[float, ...]]](), 0
    config = EngineConfig(model=arguments.model, remember=False, calibrate=False, max_wait_seconds=None)
    with Session(config) as session, tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.clips):
            path = Path(folder) / f"{number}.mp4"
            events = draw_clip(rng, path, arguments.seconds, arguments.events, arguments.event_seconds)
            for layer, pairs in measure(session, str(path), events, arguments.event_seconds).items():
                totals.setdefault(layer, []).extend(pairs)
        assert session.loaded is not None
        default, layers = reference_layer(session.loaded.model.spec), session.loaded.model.spec.layers
    print("layer | among as many | among twice as many | by chance")
    for layer, pairs in sorted(totals.items()):
        best, twice, chance = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        mark = " (default)" if layer == default else ""
        print(f"{layer} of {layers}{mark} | {best:.1%} | {twice:.1%} | {chance:.1%} and {2 * chance:.1%}")
    return 0


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
