"""Answers of several ways to read the same clips: right or wrong, and tokens, compared clip by clip.

What one clip gave is kept in a file, so that a run that was stopped goes on where it was.
"""

import argparse
import json
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

ClipResult = dict[str, "Marks"]
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


def measure_clips(
    case: str, seeds: range, measure: Callable[[str, int], ClipResult], config: EngineConfig, work: Path, jobs: int
) -> list[ClipResult]:
    """Return what each seed's clip gave, those from `work/CASE.jsonl` without measuring again.

    `measure(case, seed)` runs in one of `jobs` processes, which share this machine's cores.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{case}.jsonl"
    done = dict(_kept(path))
    left = [seed for seed in seeds if seed not in done]
    if left:
        with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (config,)) as pool, path.open("a") as kept:
            waiting = {pool.submit(measure, case, seed): seed for seed in left}
            for number, ready in enumerate(as_completed(waiting), len(done) + 1):
                seed = waiting[ready]
                done[seed] = ready.result()
                sides = {side: [marks.right, marks.kept, marks.whole] for side, marks in done[seed].items()}
                print(json.dumps({"seed": seed, "sides": sides}), file=kept, flush=True)
                if number % _STEP == 0:
                    shown = {side: f"{fmean(of_side(list(done.values()), side)):.1%}" for side in sides}
                    print(f"{case}: {number} of {len(seeds)} clips, {shown}", flush=True)
    return [done[seed] for seed in seeds]


def _kept(path: Path) -> Iterator[tuple[int, ClipResult]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            content = json.loads(line)
            yield content["seed"], {side: Marks(*marks) for side, marks in content["sides"].items()}


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
    measure: Callable[[str, str, int], ClipResult],
    rows_of: Callable[[str, Sequence[ClipResult]], Iterator[Row]],
    bars: Mapping[str, Bar],
    family: str,
) -> int:
    """Run a benchmark of a demo model from the command line; return the exit code.

    `measure(family, case, seed)` answers about one clip, `rows_of(case, results)` sums up. `family` is the default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--clips", type=int, default=300, help="of each case")
    parser.add_argument("--first", type=int, default=0, help="seed of the first clip")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
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
            yield from rows_of(case, measure_clips(case, seeds, one, config, arguments.work, arguments.jobs))

    return report(kind, rows(), bars, arguments.out)
