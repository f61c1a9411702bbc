"""The comparison of precisions: its arithmetic, its table, and two copies on the demo clip."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from demo_world.card import precision_lines, with_precisions
from demo_world.precisions import Copies, Measured, divergence
from demo_world.questions import Turn
from tests.engine.asking import CLIP, QUESTION, TWO_EVENTS, answer_in
from vidqa import EngineConfig, Request, Session


def test_divergence_is_that_of_the_distributions() -> None:
    first, second = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert divergence(first.log() + 3, second.log() - 7) == pytest.approx(expected)  # logits shift freely
    assert divergence(first.log(), first.log()) == 0


def test_rows_pair_question_with_question() -> None:
    reference = Measured(100, [True, True, True, False], [0.0] * 4)
    other = Measured(50, [True, False, False, True], [0.1, 0.3, 0.2, 0.4])
    row = other.row(reference)
    assert (row["lost"], row["won"], row["count"], row["right"]) == (2, 1, 4, 0.5)
    assert row["points"] == -25.0
    assert row["points_error"] == pytest.approx(100 * (np.var([0, -1, -1, 1]) / 4) ** 0.5)
    assert (row["kl_mean"], row["kl_p99"]) == (pytest.approx(0.25), 0.3)


def test_the_card_has_one_section_of_precisions_whatever_was_there() -> None:
    rows = {"nf4": Measured(5_000_000, [True], [1e-4]).row(Measured(9, [True], [0.0]))}
    card = "# A\n\n## Accuracy\n\nold\n\n## Known weaknesses\n\nsome\n"
    once = with_precisions(card, "measure", 2000, rows)
    assert with_precisions(once, "measure", 2000, rows) == once
    assert [line for line in once.splitlines() if line.startswith("#")] == [
        "# A", "## Accuracy", "## Precisions", "## Known weaknesses",
    ]  # fmt: skip
    assert all(line in once for line in precision_lines(rows)) and "old" in once and "some" in once


def test_copies_answer_the_same_pictures(tmp_path: Path) -> None:
    with Session(EngineConfig(isolate_decoder=False)) as session:
        plan, pictures = session.see(Request(CLIP, QUESTION))
    copies = Copies(["bf16", "fp32+kv-int8"], tmp_path)
    copies.ask(np.stack(pictures), plan.timestamps_seconds, [Turn("happens", QUESTION, "a red circle moves right.")])
    table = copies.table()
    assert list(table) == ["fp32", "bf16", "fp32+kv-int8"]
    assert all(row["right"] == 1 for row in table.values())
    assert table["fp32"]["kl_mean"] == 0
    assert all(0 < table[name]["kl_mean"] < 1e-4 for name in ("bf16", "fp32+kv-int8"))


def test_a_time_counts_as_right_near_the_true_one(tmp_path: Path) -> None:
    """The copies read the frames' times as the session's prompt has them."""
    question = "when does the blue square appear?"
    with Session(EngineConfig(isolate_decoder=False)) as session:
        plan, pictures = session.see(Request(TWO_EVENTS, question))
        answered = answer_in(list(session.ask(Request(TWO_EVENTS, question)))).text
    copies, named = Copies([], tmp_path), float(answered.removeprefix("at 0:").rstrip("."))
    for seconds in (named + 0.2, named + 1.5):
        copies.ask(np.stack(pictures), plan.timestamps_seconds, [Turn("when", question, "at 0:00.0.", seconds)])
    assert copies.measured["fp32"].right == [True, False]
