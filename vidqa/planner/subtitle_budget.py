"""How many tokens of a plan subtitles get, and which of them: those nearest to the frames. Arithmetic only."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import candidate_tokens
from vidqa.planner.problem import PlanningProblem
from vidqa.types import Plan, Request, VideoInfo
from vidqa.utils.cues import Cue, PlannedSubtitles

# A large vocabulary has 3.5 to 4.5 UTF-8 bytes a token in most languages; a small one falls back to single bytes.
_LARGE_VOCABULARY, _BYTES_PER_TOKEN = 32_000, 3
# Of a line's time, label and end: [1:02:03], or <3723.5 seconds>Subtitle: between slices; in a small vocabulary each
# character can be a token.
_TIME_TOKENS, _LABELLED_TIME_TOKENS, _TIME_CHARACTERS = 11, 15, 32
_FEWEST_TRIED = 64  # a smaller room for subtitles holds a line or two


def cues_in_range(video: VideoInfo, request: Request) -> tuple[Cue, ...]:
    """Return the subtitles that are shown within the requested part of a video."""
    if video.subtitles is None or request.subs == "off":  # the video may have been opened for another request
        return ()
    start = request.start_seconds or 0.0
    end = video.duration_seconds if request.end_seconds is None else request.end_seconds
    return tuple(cue for cue in video.subtitles.cues if cue.end_seconds >= start and cue.start_seconds <= end)


def most_cue_tokens(cue: Cue, spec: ModelSpec) -> int:
    """Return an estimate of a subtitle's tokens that real tokenizers rarely exceed, with its time and label."""
    size = len(cue.text.encode("utf-8", "surrogatepass"))
    if spec.vocabulary < _LARGE_VOCABULARY:
        return _TIME_CHARACTERS + size
    return (_LABELLED_TIME_TOKENS if spec.slice_text_tokens else _TIME_TOKENS) + -(-size // _BYTES_PER_TOKEN)


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
        after = bisect_left(moments, cue.start_seconds)  # the moments ascend: only its neighbours can be nearest
        neighbours = range(max(after - 1, 0), min(after + 1, len(moments)))
        distance, number = min((_distance(cue, moments[number]), number) for number in neighbours)
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


def subtitle_rooms(problem: PlanningProblem, cues: Sequence[Cue]) -> Iterator[int]:
    """Yield tokens to try for subtitles: as many as they need and the share of the context allows, then ever half."""
    needed = sum(most_cue_tokens(cue, problem.spec) for cue in cues)
    tokens = min(needed, int(problem.context_left * problem.config.subtitle_share))
    fewest = max(min(tokens, _FEWEST_TRIED), 1)
    while tokens >= fewest:
        yield tokens
        tokens //= 2


def keeps_the_video(problem: PlanningProblem, without: Plan, plan: Plan) -> bool:
    """Return whether subtitles cost the video at most their share of the tokens that it has without them.

    Where the question selects the frames, it has to select them still, and these are the tokens that it selects from.
    """
    seen, before = plan.visual_tokens, without.visual_tokens
    if without.candidates:
        if not plan.candidates:
            return False
        seen, before = (candidate_tokens(problem.spec, one.run_config) for one in (plan, without))
    return seen >= before * (1 - problem.config.subtitle_share)


def with_cues(problem: PlanningProblem, plan: Plan, cues: Sequence[Cue]) -> Plan:
    """Return a plan with the subtitles that fit its tokens for them."""
    found = problem.video.subtitles
    assert found is not None
    kept = choose_cues(
        cues, plan.timestamps_seconds, plan.run_config.subtitle_tokens,
        lambda cue: most_cue_tokens(cue, problem.spec),
    )  # fmt: skip
    return replace(plan, subtitles=PlannedSubtitles(found.source, found.language, kept, len(cues) - len(kept)))
