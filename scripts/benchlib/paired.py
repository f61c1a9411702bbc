"""Answers of several ways to read the same clips: right or wrong, and tokens, compared clip by clip.

What one clip gave is kept in a file, so that a run that was stopped goes on where it was.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchlib.rows import RESULTS, Bar, Row, report
from demo_world.questions import Turn, is_right
from demo_world.recipes import RECIPES
from vidqa import EngineConfig, Request, Session
from vidqa.events import Answered

ClipResult = dict[str, "Marks"]  # by side
Measure = Callable[[str, int, Sequence[str]], ClipResult]
_STEP = 25  # clips from one line of progress to the next


@dataclass(frozen=True, slots=True)
class Marks:
    """The share of right answers about one clip, the visual tokens that were read, and those of all its frames."""

    right: float
    kept: int
    whole: int


def ask_all(session: Session, path: Path, turns: Sequence[Turn], **options: Any) -> Marks:
    """Ask all questions about a clip, with these options of a request; raises RuntimeError if one is not answered."""
    right, kept, whole = list[bool](), 0, 0
    for turn in turns:
        *_, last = session.ask(Request(str(path), turn.question, max_tokens=64, **options))
        if not isinstance(last, Answered):
            raise RuntimeError(f"{path.name}: {turn.question!r} ended with {last}")
        right.append(is_right(last.answer.text, turn.answer))
        kept += last.answer.plan.visual_tokens
        whole += last.answer.plan.video_tokens
    return Marks(fmean(right), kept, whole)


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the mean of `one` minus `other` in points, and half of its 95 % confidence interval."""
    points = [100 * (a - b) for a, b in zip(one, other, strict=True)]
    return fmean(points), 1.96 * stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0


def of_side(results: Sequence[ClipResult], side: str) -> list[float]:
    """Return the share of right answers of one way to read, for each clip."""
    return [result[side].right for result in results]


def times_fewer(results: Sequence[ClipResult], side: str, base: str) -> float:
    """Return how many times fewer tokens one way reads than another one."""
    return sum(result[base].kept for result in results) / sum(result[side].kept for result in results)


def with_sides(results: Sequence[ClipResult], *sides: str) -> list[ClipResult]:
    """Return the results of the clips that were read in all of these ways."""
    return [result for result in results if all(side in result for side in sides)]


def measure_clips(
    case: str, seeds: range, sides: Sequence[str], measure: Measure, config: EngineConfig, work: Path, jobs: int
) -> list[ClipResult]:
    """Return what each seed's clip gave, and keep it in `work/CASE.jsonl`; sides that are there are not measured again.

    `measure(case, seed, missing sides)` runs in one of `jobs` processes, which share this machine's cores.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{case}.jsonl"
    results = _kept(path)
    left = {seed: tuple(side for side in sides if side not in results[seed]) for seed in seeds}
    left = {seed: missing for seed, missing in left.items() if missing}
    if left:
        with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (config,)) as pool, path.open("a") as kept:
            waiting = {pool.submit(measure, case, seed, missing): seed for seed, missing in left.items()}
            for number, ready in enumerate(as_completed(waiting), len(seeds) - len(left) + 1):
                seed, found = waiting[ready], ready.result()
                results[seed].update(found)
                shown = {side: [marks.right, marks.kept, marks.whole] for side, marks in found.items()}
                print(json.dumps({"seed": seed, "sides": shown}), file=kept, flush=True)
                if number % _STEP == 0:
                    print(
                        f"{case}: {number} of {len(seeds)} clips, {_shares(list(results.values()), sides)}", flush=True
                    )
    return [results[seed] for seed in seeds]


def _shares(results: Sequence[ClipResult], sides: Sequence[str]) -> str:
    return ", ".join(f"{side} {fmean(of_side(with_sides(results, side), side)):.1%}" for side in sides)


def _kept(path: Path) -> defaultdict[int, ClipResult]:
    results = defaultdict[int, ClipResult](dict)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            content = json.loads(line)
            results[content["seed"]].update({side: Marks(*marks) for side, marks in content["sides"].items()})
    return results


_SESSIONS: list[Session] = []


def _begin(config: EngineConfig) -> None:
    torch.set_num_threads(1)  # layers of 192 are slower with several
    _SESSIONS.append(Session(config))


def current_session() -> Session:
    """Return the session of a measuring process."""
    return _SESSIONS[-1]


def compare_clips(
    kind: str,
    description: str | None,
    cases: Sequence[str],
    sides: Sequence[str],
    measure: Callable[[str, str, int, Sequence[str]], ClipResult],
    rows_of: Callable[[str, Sequence[ClipResult]], Iterator[Row]],
    bars: Mapping[str, Bar],
    family: str,
) -> int:
    """Run a benchmark of a demo model from the command line; return the exit code.

    `measure(family, case, seed, sides)` answers about a clip in these ways, `rows_of(case, results)` sums up. `family`
    is the default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--clips", type=int, default=300, help="of each case")
    parser.add_argument("--first", type=int, default=0, help="seed of the first clip")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--sides", nargs="+", choices=sides, default=list(sides), help="ways to read that are measured")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--family", choices=tuple(RECIPES), default=family, help="of the model")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps each clip's answers")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{kind}-cpu.json")
    arguments = parser.parse_args()
    config = EngineConfig(  # the load of the machine does not change plans
        model=arguments.model, isolate_decoder=False, remember=False, calibrate=False, max_wait_seconds=None
    )
    seeds = range(arguments.first, arguments.first + arguments.clips)

    def rows() -> Iterator[Row]:
        for case in arguments.cases:
            one = partial(measure, arguments.family)
            results = measure_clips(case, seeds, arguments.sides, one, config, arguments.work, arguments.jobs)
            yield from rows_of(case, results)

    return report(kind, rows(), bars, arguments.out)
