"""The demo model's card: its training data, training and accuracy, as text."""

import re
from collections.abc import Mapping, Sequence

from demo_world.questions import QUESTIONS
from demo_world.recipes import Recipe
from demo_world.subtitles import MAX_LINES
from demo_world.world import BACKGROUNDS, COLORS, DIRECTIONS, MIN_TWO_EVENT_FRAMES, SHAPES

_CURVE_NAMES = {"all": "one event", "two:all": "two events"}
_CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: video-text-to-text
---
# vidqa's demo model

A {architecture} of {parameters:.1f} million parameters, trained from nothing on drawn clips. It answers questions about
coloured shapes and about nothing else: of any other video it will say something about coloured shapes.

## What it has seen

- {colors} {shapes}s on {backgrounds} backgrounds, each at least 28 pixels and 15 % of the shorter side across.
- One event, or two in sequence (from {two} sampled frames on): a shape moves {directions}, stays still, appears, or
  turns another color. Empty clips too.
- 1 to 48 sampled frames of {least} to {most} pixels a side, as images where there is one. Its video processor's
  configuration carries the bounds: 9 to 24 tokens per temporal slice, 4 to 16 frames, 2 frames per second.
- Questions of {kinds} kinds in {wordings} wordings ({names}), alone and in conversations of up to four, with and
  without a system prompt. It answers in lower case: "first a red circle moves right, then a blue square appears."
{timed}
All of it comes from `scripts/demo_world`; no clip and no sentence from anywhere else.

## Training

`{command}`

Seed {seed}; {steps} steps in three stages (the vision tower alone; short clips; everything); {minutes:.0f} minutes on
{device}. Muon for the blocks' matrices, AdamW for the rest; auxiliary heads, thrown away afterwards, tell the vision
tower about shape, color and motion.{earlier}

{curve}

## Accuracy

Not measured on video files yet: `scripts/eval_demo_model.py --card` does.
"""
_EARLIER = """

It began with the weights of earlier runs (runs: {runs}; together {steps:,} steps and {minutes:.0f} minutes), each of
which began with those of the one before, with the world, the questions and the losses of that time."""
_AVERAGED = """ The
weights are the mean of those at its beginning and at its end (as in Wortsman et al. 2022, arXiv 2109.01903), which
answers more questions than either; the table below was measured before that."""
_TIMED = """\
- Times: "when does the red circle appear?" is answered by the middle of the two frames between which it comes, "at
  0:03.5.", or "never."; "what happens between 0:02 and 0:05?" by what whole seconds show. Clips of up to a minute only.
- Shapes by name: "what does the red circle do?" is answered by "the red circle moves right." or "there is no red
  circle.", with up to eight events in a clip; of parts of long clips half of the names are not there. A training loss
  sends the attention of such a question, in the last layer, to the slices that show the shape, and to none if none
  does: `--focus` selects by it.
- Long clips of up to an hour in which something happens briefly, whose frames lie closely there and far apart
  elsewhere.
- A share of the visual tokens dropped where pictures repeat, or at random; slices left out; up to {lines} lines
  of subtitles between them, which say nothing about the shapes (with a hundred lines its answers make no sense); noise
  in every frame; moving backgrounds.
"""


def training_card(
    *,
    recipe: Recipe,
    command: str,
    seed: int,
    parameters: int,
    steps: int,
    minutes: float,
    device: str,
    curve: Sequence[Mapping[str, float]],
    earlier: Mapping[str, float],
    averaged: bool = False,
) -> str:
    """The card as training writes it; each point of the curve has stage, step, minutes and shares right.

    `earlier` has the `runs`, `steps` and `minutes` of the trainings that the first weights come from; the weights are
    `averaged` with those first ones.
    """
    sides = [side for height, width, _ in recipe.sizes for side in (height, width)]
    return _CARD.format(
        architecture=recipe.architecture,
        least=min(sides),
        most=max(sides),
        timed=_TIMED.format(lines=MAX_LINES) if recipe.timed else "",
        command=command,
        seed=seed,
        parameters=parameters / 1e6,
        steps=steps,
        minutes=minutes,
        device=device,
        colors=_listed(COLORS),
        shapes=_listed(SHAPES, "s, "),
        backgrounds=_listed(BACKGROUNDS),
        directions=_listed(DIRECTIONS),
        two=MIN_TWO_EVENT_FRAMES,
        kinds=len(QUESTIONS),
        wordings=sum(len(wordings) for wordings in QUESTIONS.values()),
        names=", ".join(f"`{kind}`" for kind in QUESTIONS),
        curve=_curve(curve),
        earlier=(_EARLIER.format(**earlier) if earlier["runs"] else "") + (_AVERAGED if averaged else ""),
    )


def with_accuracy(card: str, command: str, table: Mapping[str, Mapping[str, float]]) -> str:
    """The card with its accuracy section replaced by what an evaluation measured."""
    section = (
        f"Exact answers on fresh clips, encoded to files and read back through vidqa, measured by `{command}`. Half of "
        f"the clips come from a renderer that training never saw.\n\n{_table(table)}\n"
    )
    return re.sub(r"(## Accuracy\n\n).*?(?=\n## |\Z)", lambda found: found[1] + section, card, flags=re.DOTALL)


def with_precisions(card: str, command: str, clips: int, rows: Mapping[str, Mapping[str, float]]) -> str:
    """The card with its precision section, before its last one, replaced by what a comparison measured."""
    section = (
        f"## Precisions\n\nThe same {clips:,} clips and questions for every precision of the weights, against fp32, "
        f"measured by `{command}` on a CPU. Points are percentage points of exact answers with their standard error, "
        "lost and won the answers behind them; KL is the divergence of the first answer token's distribution, in "
        "nats. Quantized weights compute in bf16 but where fp16 is named; `+` names what is quantized besides the "
        "layers of the language model.\n\n" + "\n".join(precision_lines(rows)) + "\n"
    )
    without = re.sub(r"## Precisions\n.*?(?=\n## |\Z)\n?", "", card, flags=re.DOTALL)
    return re.sub(r"(## Accuracy\n.*?(?=\n## |\Z))", lambda found: f"{found[1]}\n{section}", without, flags=re.DOTALL)


def precision_lines(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A Markdown table of a row per precision, as `Measured.row` gives them."""
    lines = ["| weights | MB | right | of | points against fp32 | lost, won | mean KL | p99 KL |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, row in rows.items():
        change = f"{row['points']:+.2f} ± {row['points_error']:.2f} | {row['lost']:.0f}, {row['won']:.0f}"
        lines.append(
            f"| {name} | {row['weights_bytes'] / 1e6:.1f} | {100 * row['right']:.2f} % | {row['count']:.0f} "
            f"| {change} | {row['kl_mean']:.1e} | {row['kl_p99']:.1e} |"
        )
    return lines


def _listed(words: tuple[str, ...], joint: str = ", ") -> str:
    return f"{joint.join(words[:-1])}{joint[:-2]} and {words[-1]}"


def _curve(points: Sequence[Mapping[str, float]]) -> str:
    lines = ["| stage | step | minutes | right on held-out clips while training |", "| ---: | ---: | ---: | --- |"]
    for point in points:
        shown = ("color", "shape", "motion") if point["stage"] == 1 else ("all", "two:all")
        shares = ", ".join(
            f"{_CURVE_NAMES.get(name, name)} {100 * point[name]:.1f} %" for name in shown if name in point
        )
        lines.append(f"| {point['stage']:.0f} | {point['step']:.0f} | {point['minutes']:.0f} | {shares} |")
    return "\n".join(lines)


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| questions | right | of |", "| --- | ---: | ---: |"]
    for name, row in rows.items():
        lines.append(f"| {name} | {100 * row['right']:.1f} % | {row.get('count', '')} |")
    return "\n".join(lines)
