"""Accuracy of a demo model on freshly drawn clips, encoded to video files and read back through vidqa.

Half of the clips come from a renderer that training never saw. Prints a table and what misses its
bar; --json prints an object. Ends with 1 if a bar is missed. With --precisions the same clips and
questions go to every precision, and the table says what each loses against fp32.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from demo_world.card import precision_lines, with_accuracy, with_precisions
from demo_world.clips import ClipSpec, draw_clip, write_clip
from demo_world.questions import QUESTIONS, Turn, ask, draw_named
from demo_world.recipes import RECIPES, Recipe
from demo_world.times import is_right_or_near, timed_turn
from vidqa import EngineConfig, Request, Session
from vidqa.events import Answered

if TYPE_CHECKING:
    from demo_world.precisions import Copies

CLIP_SEED = 90_000_000
BARS = {
    "single: all": 0.90, "single: color": 0.97, "single: motion": 0.97, "single: shape": 0.93, "two: all": 0.75,
    "times": 0.85,
}  # fmt: skip
_OTHER_GROUPS = {"when": "times", "between": "between", "named": "named"}  # of questions that one family answers
NF4_BAR_POINTS = -2.0  # what nf4 may lose against fp32


@dataclass(frozen=True, slots=True)
class Result:
    """One question about one clip, and its answer."""

    spec: ClipSpec
    turn: Turn
    answer: str

    @property
    def events(self) -> str:
        """`single`, `two` or `none`."""
        return ("none", "single", "two")[len(self.spec.scene.actors)]

    @property
    def right(self) -> bool:
        """Whether the answer matches exactly after normalisation, or names a time that is near the true one."""
        distance = self.spec.last_seconds / max(self.spec.sampled_frames - 1, 1)
        return is_right_or_near(self.answer, self.turn, distance)


def draw_case(index: int, seed: int, questions: int, recipe: Recipe) -> tuple[ClipSpec, list[Turn]]:
    """Return a clip and its questions: `what happens?` and others; if the family reads times, some about them too."""
    spec = draw_clip(CLIP_SEED + seed * 1_000_000 + index, recipe, other_renderer=index % 2 == 1)
    rng = random.Random(f"questions/{seed}/{index}")
    kinds = ["happens", *rng.sample([kind for kind in QUESTIONS if kind != "happens"], questions - 1)]
    turns = [ask(spec.scene, kind, rng.choice(QUESTIONS[kind])) for kind in kinds]
    if recipe.timed and spec.sampled_frames > 1:
        timed = (timed_turn(rng, spec.scene, spec.fractions, spec.last_seconds) for _ in range(2))
        turns += [turn for turn in timed if turn is not None]
        turns.append(draw_named(rng, spec.scene))
    return spec, turns


def evaluate(clips: int, seed: int, model: str, questions: int, family: str = "qwen3_vl") -> Iterator[Result]:
    """Draw clips, write them, and ask a session their questions."""
    recipe = RECIPES[family]
    with tempfile.TemporaryDirectory() as folder, Session(EngineConfig(model=model, isolate_decoder=False)) as session:
        path = Path(folder) / "clip.mp4"
        for index in range(clips):
            spec, turns = draw_case(index, seed, questions, recipe)
            write_clip(spec, path)
            for turn in turns:
                yield Result(spec, turn, answer_of(session, str(path), turn.question, spec.asked_frames))


def compare(clips: int, seed: int, questions: int, precisions: str, pictures: Path | None) -> "Copies":
    """Ask a copy of the demo model in each precision (`all`, or a list) the same questions about the same clips."""
    import torch

    from demo_world.precisions import SETUPS, Copies

    torch.set_num_threads(1)  # layers of 192 are slower with several threads
    setups = list(SETUPS) if precisions == "all" else precisions.split(",")
    with tempfile.TemporaryDirectory() as folder, Session(EngineConfig(isolate_decoder=False)) as session:
        copies = Copies(setups, Path(folder))
        for index in range(clips):
            spec, turns = draw_case(index, seed, questions, RECIPES["qwen3_vl"])
            kept = (pictures or Path(folder)) / f"{seed}-{index}.npz"
            copies.ask(*seen(session, spec, kept), turns)
            if pictures is None:
                kept.unlink()
    return copies


def seen(session: Session, spec: ClipSpec, kept: Path) -> "tuple[np.ndarray, list[float]]":
    """Return the frames (n, height, width, 3) that the model gets of a clip, read from a written file, and their times.

    They are kept in the file `kept`, and taken from it if it is there.
    """
    if not kept.exists():
        clip = kept.with_suffix(".mp4")
        write_clip(spec, clip)
        plan, pictures = session.see(Request(video=str(clip), question="?", frames=spec.asked_frames, max_tokens=64))
        clip.unlink()
        np.savez(kept, pictures=np.stack(pictures), seconds=plan.timestamps_seconds)
    with np.load(kept) as stored:
        return stored["pictures"], stored["seconds"].tolist()


def answer_of(session: Session, path: str, question: str, frames: int | None) -> str:
    """Return the session's answer to one question."""
    *_, last = session.ask(Request(video=path, question=question, frames=frames, max_tokens=64))
    if not isinstance(last, Answered):
        raise RuntimeError(f"the session ended with {last}")
    return last.answer.text


def summarise(results: list[Result]) -> dict[str, dict[str, float]]:
    """Return share right and count by kind, by number of events, by renderer, and overall."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        renderer = "other renderer" if result.spec.other_renderer else "training renderer"
        frames = "frames asked for" if result.spec.asked_frames else "frames by default"
        names = [f"{result.events}: {result.turn.kind}", f"{result.events}: all", renderer, frames, "all"]
        for name in names if result.turn.kind not in _OTHER_GROUPS else [_OTHER_GROUPS[result.turn.kind]]:
            groups[name].append(result.right)
    return {name: {"right": sum(marks) / len(marks), "count": len(marks)} for name, marks in sorted(groups.items())}


def missed(table: dict[str, dict[str, float]]) -> list[str]:
    """Return the missed bars."""
    return [name for name, bar in BARS.items() if table.get(name, {"right": 1.0})["right"] < bar]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--questions", type=int, default=4, help="questions per clip, `what happens?` first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--family", choices=tuple(RECIPES), default="qwen3_vl", help="of the model")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--card", type=Path, help="model card whose accuracy section to replace")
    parser.add_argument("--precisions", help="`all` or a list: compare them with fp32 on the same clips")
    parser.add_argument("--pictures", type=Path, help="with --precisions: keep decoded pictures in this folder")
    parser.add_argument("--out", type=Path, help="with --precisions: write the figures to this JSON file")
    parser.add_argument("--errors", type=int, default=0, help="show this many wrong answers")
    return parser.parse_args()


def environment() -> dict[str, str]:
    """Return the versions and the device of the figures."""
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": platform.machine(), **versions, "python": platform.python_version()}


def report_precisions(arguments: argparse.Namespace) -> int:
    """Compare precisions, print and write the figures; return 1 if nf4 misses its bar."""
    began = time.monotonic()
    asked = f"--precisions {arguments.precisions} --clips {arguments.clips} --questions {arguments.questions}"
    copies = compare(arguments.clips, arguments.seed, arguments.questions, arguments.precisions, arguments.pictures)
    rows = copies.table()
    late = [f"nf4 loses {-rows['nf4']['points']:.2f} points"] if _too_bad(rows) else []
    report: dict[str, Any] = {
        "environment": {**environment(), "date": time.strftime("%Y-%m-%d")},
        "clips": arguments.clips, "seed": arguments.seed, "questions_per_clip": arguments.questions,
        "seconds": round(time.monotonic() - began), "bars": {"nf4": NF4_BAR_POINTS}, "missed": late, "rows": rows,
    }  # fmt: skip
    print(json.dumps(report, indent=1) if arguments.json else "\n".join(precision_lines(rows)))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.card:
        card = arguments.card.read_text(encoding="utf-8")
        command = f"scripts/eval_demo_model.py {asked} --seed {arguments.seed}"
        arguments.card.write_text(with_precisions(card, command, arguments.clips, rows), encoding="utf-8")
    for line in late:
        print(f"{line}, and may lose {-NF4_BAR_POINTS:.0f}", file=sys.stderr)
    return 1 if late else 0


def _too_bad(rows: dict[str, dict[str, float]]) -> bool:
    return "nf4" in rows and rows["nf4"]["points"] < NF4_BAR_POINTS


def main() -> int:
    arguments = parse_arguments()
    return report_precisions(arguments) if arguments.precisions else report_accuracy(arguments)


def report_accuracy(arguments: argparse.Namespace) -> int:
    """Measure and print the shares of right answers; return 1 if a bar is missed."""
    results = list(evaluate(arguments.clips, arguments.seed, arguments.model, arguments.questions, arguments.family))
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
