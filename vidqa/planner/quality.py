"""Expected quality of an answer, from published scores. Arithmetic only.

Every row names its source. Scores are points of video question answering (mean of Video-MME without subtitles,
LongVideoBench and MLVU where three are known); only their differences are used.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from vidqa.models.family import ScoreRow, family_of
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import kept_visual_tokens
from vidqa.planner.weight_memory import parameters, runs_on_cpu_layers
from vidqa.types import PixelBounds, RunConfig

_BOLT = "BOLT, Qwen2.5-VL-7B, uniform: mean of Video-MME, LongVideoBench, MLVU"
_QUICK = "QuickVideo (arXiv 2505.16175), Qwen2.5-VL-7B, all tokens: mean of the same three"
FRAMES = (
    ScoreRow(8, 54.70, _BOLT),
    ScoreRow(16, 58.27, _BOLT),
    ScoreRow(32, 61.10, _BOLT),
    ScoreRow(64, 61.99, _QUICK),
    ScoreRow(128, 64.74, _QUICK),
    ScoreRow(256, 65.33, _QUICK),
    ScoreRow(1024, 61.97, _QUICK),
)
# Points lost where only a share of the visual tokens is kept, as the named methods choose them.
KEPT_SHARES = (
    ScoreRow(0.20, -3.10, "EVS, Qwen3-VL-8B, Video-MME 78.1 to 75.0 (sglang#20857)"),
    ScoreRow(0.25, -1.95, "EVS, Qwen3-VL-8B, Video-Bench subsets 74.23 to 72.28 (vllm#48912)"),
    ScoreRow(0.35, -1.26, "VidCom2, Qwen3-VL-8B: 98.1 % of the mean 66.3 of three benchmarks"),
    ScoreRow(1.00, 0.0, "all tokens"),
)
# Halving the pixels may cost no more than the smallest gain of doubling the frames (128 to 256:
# 0.59), or the rule "frames before pixels" would not hold; Q-Frame (2506.22139) lost 0.85 with
# selected frames, and 8.6 over four halvings: no plan goes below the floor.
POINTS_PER_HALVED_SLICE = 0.5
_RESOLUTION = 0.25  # points: smaller differences between precisions are noise of four benchmarks
# Not measured: these order choices that cost (nearly) no quality.
_NESTED_POINTS = -0.1  # nf4-dq against nf4
_INT4_POINTS = -0.3  # int4 is rounded to nearest; its rows are of GPTQ, which chooses better codes
# int8 rows as well as int8 weights: Qwen2.5-72B loses 0.20 on OpenLLM (its w8a8 card, dynamic scales a token); Neural
# Magic's Qwen2.5-VL models keep more than 99 % over five vision benchmarks.
_INT8_ROWS_POINTS = -0.2
_INT8_KV_POINTS = -0.05  # KIVI (2402.02750): 4-bit KV loses 0.01 on a GQA model
_QUANTIZED_ENDS_POINTS = -0.3  # vision tower or lm_head in the weights' precision
_MOVED_POINTS = -0.02  # each placement that only costs time
_SMALL_CHUNK_POINTS = -0.05  # prefill chunks below this many tokens read (or unpack) all weights too often
SMALL_CHUNK_TOKENS = 512
_REPEATED_FRAMES_POINTS = 0.1  # for each doubling beyond MOST_FRAMES: less than the pixels' points, so those go first
_KV_ON_HOST_POINTS = -8.0  # a last resort: every token reads the whole cache over the bus

LEAST_SLICE_TOKENS = 128  # qwen-vl-utils' floor; Q-Frame: below about 70 tokens an image the model is lost
READING_SLICE_TOKENS = 576  # Qwen2-VL, table of fixed image tokens: OCRBench 572 at 64 tokens, 828 at 576
MOST_FRAMES = 256  # QuickVideo: more score less
# Times as many frames where only new tokens are kept: what more frames lose is due to more tokens than in training.
REPEATED_FRAMES = 4
MOST_TRAINED_TOKENS = 32_768  # positions of the released checkpoints; a video had at most 16,384 in training
FRAMES_PER_SECOND = 2.0  # what Qwen2-VL was trained with
# Of 24 ranges of 2 s with an event of 0.5 or 0.9 s, the demo model says rightly what happens in 0 with 4 frames, in 4
# with 6, in 13 with 8, in 19 with 12 and in 21 with 16.
LEAST_RANGE_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Caps:
    """Most frames and visual tokens of a `--quality`."""

    frames: int
    visual_tokens: int


# Qwen2-VL-72B, Video-MME medium: 8K tokens 68.2, 16K 70.1, 32K 70.4 (2409.12191, figure): past 16K
# little is gained. 24,576 is the checkpoints' own limit (qwen-vl-utils, VIDEO_TOTAL_PIXELS).
CAPS = {"fast": Caps(64, 4_096), "balanced": Caps(MOST_FRAMES, 16_384), "best": Caps(MOST_FRAMES, 24_576)}
_READING = re.compile(
    r"\b(read|texts?|words?|written|writes?|spell(ed)?|caption|subtitles?|letters?|numbers?(?! of)|digits?|"
    r"signs?|plate|label|title|headline|scoreboard|price|timecode|clock|(does|do) .+ say)\b",
    re.IGNORECASE,
)


def asks_to_read(question: str) -> bool:
    """Return whether a question is about text in the video."""
    return _READING.search(question) is not None


def slice_floor(bounds: PixelBounds, token_pixels: int, *, reading: bool) -> int:
    """Return the fewest tokens per temporal slice: max(checkpoint's minimum, min(128 or 576, its maximum))."""
    wanted = READING_SLICE_TOKENS if reading else LEAST_SLICE_TOKENS
    lowest, highest = -(-bounds.min_pixels // token_pixels), bounds.max_pixels // token_pixels
    return max(lowest, min(wanted, highest))


def interpolate(rows: tuple[ScoreRow, ...], size: float) -> float:
    """Return the points at a size, linear in its logarithm; beyond the ends the last slope continues."""
    for low, high in pairwise(rows):
        if size <= high.size or high is rows[-1]:
            share = math.log(size / low.size) / math.log(high.size / low.size)
            return low.points + share * (high.points - low.points)
    return rows[0].points


def frames_points(frames: int, *, drop_repeats: bool = False) -> float:
    """Return the points of so many frames; where repeats are dropped, more than MOST_FRAMES lose nothing."""
    if drop_repeats and frames > MOST_FRAMES:
        return frames_points(MOST_FRAMES) + _REPEATED_FRAMES_POINTS * math.log2(frames / MOST_FRAMES)
    return interpolate(FRAMES, max(frames, 2))


def slice_points(tokens: int, most: int) -> float:
    """Return the points of so many tokens per slice, relative to the largest slices."""
    return POINTS_PER_HALVED_SLICE * min(math.log2(tokens / most), 0.0)


def placement_points(spec: ModelSpec, run_config: RunConfig) -> float:
    """Return the points of a model with its precisions and placement."""
    size, place = parameters(spec), run_config.placement
    family = family_of(spec)
    points = interpolate(family.MODEL_SCORES, size)
    if rows := family.PRECISION_SCORES.get(run_config.weights.removesuffix("-dq")):
        points += round(interpolate(rows, size) / _RESOLUTION) * _RESOLUTION
    points += _NESTED_POINTS * run_config.weights.endswith("-dq") + _INT8_KV_POINTS * (run_config.kv == "int8")
    points += _INT4_POINTS * (run_config.weights == "int4")
    points += _INT8_ROWS_POINTS * (run_config.weights == "int8" and runs_on_cpu_layers(spec, run_config))
    points += _QUANTIZED_ENDS_POINTS * (place.vision_quantized + place.lm_head_quantized)
    points += _MOVED_POINTS * (place.embedding_on_host + place.vision_offloaded)
    points += _SMALL_CHUNK_POINTS * (run_config.prefill_chunk < SMALL_CHUNK_TOKENS)
    return points + _KV_ON_HOST_POINTS * place.kv_on_host


def pruning_points(spec: ModelSpec, run_config: RunConfig) -> float:
    """Return the points that a share of the visual tokens loses; a token that only repeats loses none."""
    if run_config.drop_repeats or run_config.visual_share >= 1:
        return 0.0
    whole = spec.visual_tokens(run_config.frames, run_config.height, run_config.width)
    return interpolate(KEPT_SHARES, kept_visual_tokens(spec, run_config) / whole)


def score(spec: ModelSpec, run_config: RunConfig, most_slice_tokens: int) -> float:
    """Return the expected points of a plan; only differences between plans mean anything."""
    slices = slice_points(spec.slice_tokens(run_config.height, run_config.width), most_slice_tokens)
    frames = frames_points(run_config.frames, drop_repeats=run_config.drop_repeats)
    return placement_points(spec, run_config) + frames + slices + pruning_points(spec, run_config)
