"""How many tokens of a plan subtitles get, and which of them: those nearest to the frames. Arithmetic only."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vidqa.planner.problem import PlanningProblem
from vidqa.types import Plan, Request, VideoInfo
from vidqa.utils.cues import Cue, PlannedSubtitles

if TYPE_CHECKING:
    from vidqa.planner.planner import Forecast

# A large vocabulary has 3.5 to 4.5 UTF-8 bytes a token in most languages; a small one falls back to single bytes.
_LARGE_VOCABULARY, _BYTES_PER_TOKEN = 32_000, 3
_TIME_TOKENS = 16  # of a line's time and label, in a large vocabulary; each character is one at most in a small one
_TIME_CHARACTERS = 32
_FEWEST_TRIED = 64  # a smaller room for subtitles holds a line or two


def cues_in_range(video: VideoInfo, request: Request) -> tuple[Cue, ...]:
    """Return the subtitles that are shown within the requested part of a video."""
    if video.subtitles is None or request.subs == "off":  # the video may have been opened for another request
        return ()
    start = request.start_seconds or 0.0
    end = video.duration_seconds if request.end_seconds is None else request.end_seconds
    return tuple(cue for cue in video.subtitles.cues if cue.end_seconds >= start and cue.start_seconds <= end)


def most_cue_tokens(cue: Cue, vocabulary: int) -> int:
    """Return an estimate of a subtitle's tokens that real tokenizers rarely exceed, with its time and label."""
    size = len(cue.text.encode("utf-8", "surrogatepass"))
    if vocabulary >= _LARGE_VOCABULARY:
        return _TIME_TOKENS + -(-size // _BYTES_PER_TOKEN)
    return _TIME_CHARACTERS + size


def choose_cues(
    cues: Sequence[Cue], moments: Sequence[float], tokens: int, cue_tokens: Callable[[Cue], int]
) -> tuple[Cue, ...]:
    """Return the subtitles that fit so many tokens, by start: first the nearest of every moment, then the next.

    Where not even one for each moment fits, the moments are taken evenly.
    """
    order = sorted(range(len(cues)), key=_preferred(cues, moments).__getitem__)
    kept, left = [], tokens
    for place in order:
        size = cue_tokens(cues[place])
        if size <= left:
            kept.append(place)
            left -= size
    return tuple(cues[place] for place in sorted(kept))


def _preferred(cues: Sequence[Cue], moments: Sequence[float]) -> list[tuple[int, int]]:
    """Return the rank of every cue among those of its nearest moment, and the moment's place in an even order."""
    nearest: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for place, cue in enumerate(cues):
        distances = ((_distance(cue, moment), number) for number, moment in enumerate(moments))
        distance, number = min(distances)
        nearest[number].append((distance, place))
    ranks = [(0, 0)] * len(cues)
    for number, found in nearest.items():
        for rank, (_, place) in enumerate(sorted(found)):
            ranks[place] = rank, _bit_reversed(number, len(moments))
    return ranks


def _distance(cue: Cue, moment: float) -> float:
    return max(cue.start_seconds - moment, moment - cue.end_seconds, 0.0)


def _bit_reversed(number: int, count: int) -> int:
    """Return a number's place in the order 0, 1/2, 1/4, 3/4… of its range, which is even however early it ends."""
    bits = max((count - 1).bit_length(), 1)
    return int(f"{number:0{bits}b}"[::-1], 2)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Tokens for subtitles, and the plan that leaves them."""

    tokens: int
    forecast: "Forecast"


def with_subtitles(
    problem: PlanningProblem, without: "Forecast", solve: "Callable[[PlanningProblem], Forecast]"
) -> "Forecast":
    """Return the forecast with as many subtitles as the share allows; `without` where there are none or no room.

    They take at most `subtitle_share` of the context that is left, and cost the video at most that share of the tokens
    that it has without them; half as many are tried until both hold.
    """
    cues, plain = cues_in_range(problem.video, problem.request), without.plan
    found, share = problem.video.subtitles, problem.config.subtitle_share
    if plain is None or found is None or not cues:
        return without
    planned = PlannedSubtitles(found.source, found.language, (), len(cues))
    vocabulary = problem.spec.vocabulary

    def cue_tokens(cue: Cue) -> int:
        return most_cue_tokens(cue, vocabulary)

    needed = sum(map(cue_tokens, cues))
    trial = _first_fitting(problem, plain, min(needed, int(problem.context_left * share)), solve)
    if trial is None:
        return replace(without, plan=replace(plain, subtitles=planned))
    plan = trial.forecast.required_plan()
    kept = cues if trial.tokens == needed else choose_cues(cues, plan.timestamps_seconds, trial.tokens, cue_tokens)
    planned = replace(planned, cues=kept, left_out=len(cues) - len(kept))
    return replace(trial.forecast, plan=replace(plan, subtitles=planned))


def _first_fitting(
    problem: PlanningProblem, plain: Plan, tokens: int, solve: "Callable[[PlanningProblem], Forecast]"
) -> _Trial | None:
    least = plain.visual_tokens * (1 - problem.config.subtitle_share)
    fewest = min(tokens, _FEWEST_TRIED)
    while tokens >= max(fewest, 1):
        found = solve(replace(problem, subtitle_tokens=tokens))
        if found.plan is not None and found.plan.visual_tokens >= least:
            return _Trial(tokens, found)
        tokens //= 2
    return None


def subtitle_note(plan: Plan) -> Iterator[str]:
    """Yield which subtitles the model reads, and how many are left out."""
    if (planned := plan.subtitles) is None:
        return
    lines, left_out = len(planned.cues), planned.left_out
    language = f" ({planned.language})" if planned.language else ""
    less = f", {left_out} left out to keep room for frames (--subs-share)" if left_out else ""
    yield f"subtitles: {lines} line{'s' * (lines != 1)} of {planned.source}{language}{less}"


def unheard_note(video: VideoInfo, request: Request) -> Iterator[str]:
    """Yield that the sound is not heard, where the video has some and nothing written of it was found."""
    if video.has_sound and video.subtitles is None and request.subs != "off":
        yield "the sound is not heard: --subs FILE gives what is said as text, --subs off leaves this note out"
