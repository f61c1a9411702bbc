"""Accuracy of a demo model on freshly drawn clips, encoded to video files and read back through vidqa.

Half of the clips come from a renderer that training never saw. Prints a table and what misses its
bar; --json prints an object. Ends with 1 if a bar is missed.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from demo_world.card import with_accuracy
from demo_world.clips import ClipSpec, draw_clip, write_clip
from demo_world.questions import QUESTIONS, Turn, ask, is_right
from vidqa import EngineConfig, Request, Session
from vidqa.events import Answered

CLIP_SEED = 90_000_000
BARS = {
    "single: all": 0.90, "single: color": 0.97, "single: motion": 0.97, "single: shape": 0.93, "two: all": 0.75,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """One question asked of one clip."""

    spec: ClipSpec
    turn: Turn
    answer: str

    @property
    def events(self) -> str:
        """`single`, `two` or `none`."""
        return ("none", "single", "two")[len(self.spec.scene.actors)]

    @property
    def right(self) -> bool:
        """Exact match after the normaliser."""
        return is_right(self.answer, self.turn.answer)


def evaluate(clips: int, seed: int, model: str, questions: int) -> Iterator[Result]:
    """Draw clips, write them, and ask `what happens?` and other questions of each."""
    with tempfile.TemporaryDirectory() as folder, Session(EngineConfig(model=model, isolate_decoder=False)) as session:
        path = Path(folder) / "clip.mp4"
        for index in range(clips):
            spec = draw_clip(CLIP_SEED + seed * 1_000_000 + index, other_renderer=index % 2 == 1)
            write_clip(spec, path)
            rng = random.Random(f"questions/{seed}/{index}")
            kinds = ["happens", *rng.sample([kind for kind in QUESTIONS if kind != "happens"], questions - 1)]
            for kind in kinds:
                turn = ask(spec.scene, kind, rng.choice(QUESTIONS[kind]))
                yield Result(spec, turn, answer_of(session, str(path), turn.question, spec.asked_frames))


def answer_of(session: Session, path: str, question: str, frames: int | None) -> str:
    """The session's answer to one question."""
    *_, last = session.ask(Request(video=path, question=question, frames=frames, max_tokens=64))
    if not isinstance(last, Answered):
        raise RuntimeError(f"the session ended with {last}")
    return last.answer.text


def summarise(results: list[Result]) -> dict[str, dict[str, float]]:
    """Share right and count: by kind and number of events, by renderer, and overall."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        renderer = "other renderer" if result.spec.other_renderer else "training renderer"
        frames = "frames asked for" if result.spec.asked_frames else "frames by default"
        for name in (f"{result.events}: {result.turn.kind}", f"{result.events}: all", renderer, frames, "all"):
            groups[name].append(result.right)
    return {name: {"right": sum(marks) / len(marks), "count": len(marks)} for name, marks in sorted(groups.items())}


def missed(table: dict[str, dict[str, float]]) -> list[str]:
    """The bars that a table does not reach."""
    return [name for name, bar in BARS.items() if table.get(name, {"right": 1.0})["right"] < bar]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--questions", type=int, default=4, help="questions per clip, `what happens?` first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--card", type=Path, help="model card whose accuracy section to replace")
    parser.add_argument("--errors", type=int, default=0, help="show this many wrong answers")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    results = list(evaluate(arguments.clips, arguments.seed, arguments.model, arguments.questions))
    table = summarise(results)
    if arguments.json:
        report = {"clips": arguments.clips, "seed": arguments.seed, "accuracy": table, "missed": missed(table)}
        print(json.dumps(report, indent=1))
    else:
        for name, row in table.items():
            bar = f"  (bar {100 * BARS[name]:.0f} %)" if name in BARS else ""
            print(f"{name:24} {100 * row['right']:6.1f} %  of {row['count']}{bar}")
    if arguments.card:
        asked = f"--clips {arguments.clips} --questions {arguments.questions} --seed {arguments.seed}"
        command = f"scripts/eval_demo_model.py {asked}"
        card = with_accuracy(arguments.card.read_text(encoding="utf-8"), command, table)
        arguments.card.write_text(card, encoding="utf-8")
    wrong = [result for result in results if not result.right]
    for result in wrong[: arguments.errors]:
        spec = result.spec
        size = f"{spec.width}x{spec.height} {spec.seconds:.1f} s, {spec.asked_frames or 'default'} frames, {spec.codec}"
        print(f"{size} {result.turn.question!r}: {result.answer!r}, not {result.turn.answer!r}", file=sys.stderr)
    for name in missed(table):
        print(f"{name}: {100 * table[name]['right']:.1f} % is below {100 * BARS[name]:.0f} %", file=sys.stderr)
    return 1 if missed(table) else 0


if __name__ == "__main__":
    raise SystemExit(main())
