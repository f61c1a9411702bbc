"""A training resumes, begins with the weights of another one, and its card counts all of them."""

import sys
from pathlib import Path

import pytest
import train_demo_model
from train_demo_model import Trainer


def trainer(monkeypatch: pytest.MonkeyPatch, work: Path, *options: str) -> Trainer:
    monkeypatch.setattr(
        sys, "argv", ["train", "--work", str(work), "--tokens", "100", "--steps", "2", "0", "0", *options]
    )
    return Trainer(train_demo_model.parse_arguments())


def test_a_run_that_begins_with_another_ones_weights_counts_its_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = trainer(monkeypatch, tmp_path)
    assert first.run() and first.earlier["runs"] == 0
    first.save()
    assert "weights of earlier runs" not in first.card()
    start = ("--start", str(first.checkpoint))
    second = trainer(monkeypatch, tmp_path / "second", *start)
    assert second.earlier == {"runs": 1, "steps": 2, "minutes": first.seconds / 60} and second.step == 0
    assert all(one.equal(other) for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True))
    second.arguments.work.mkdir()
    second.save()
    assert trainer(monkeypatch, tmp_path / "second", *start).earlier == second.earlier, "resumed, not begun again"
    assert "runs: 1; together 2 steps" in second.card() and "--start CHECKPOINT" in second.card()
