"""A training resumes, begins with the weights of another one, and its card counts all of them."""

import sys
from pathlib import Path

import pytest
import torch
import train_demo_model
from train_demo_model import Trainer


def trainer(monkeypatch: pytest.MonkeyPatch, work: Path, *options: str) -> Trainer:
    monkeypatch.setattr(
        sys, "argv", ["train", "--work", str(work), "--tokens", "100", "--steps", "2", "0", "0", *options]
    )
    return Trainer(train_demo_model.parse_arguments())


def exported_run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Trainer, Path]:
    """A run of random weights, and the folder of its exported model."""
    exported = folder / "exported"
    run = trainer(monkeypatch, folder / "first", "--export", str(exported))
    run.arguments.work.mkdir()
    run.save()
    return run, exported


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


def test_a_run_that_begins_with_an_exported_model_fits_the_heads_alone_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train_demo_model, "_HEAD_STEPS", 2)
    first, exported = exported_run(monkeypatch, tmp_path)
    second = trainer(monkeypatch, tmp_path, "--start", str(exported), "--earlier", "3", "500", "7")
    pairs = list(zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert all(other.equal(one.bfloat16().float()) and other.requires_grad for one, other in pairs)
    assert not all(map(torch.equal, first.heads.parameters(), second.heads.parameters()))
    assert second.earlier == {"runs": 3, "steps": 500, "minutes": 7}
    assert second.exported() is second.model


def test_the_mean_of_the_first_and_the_last_weights_can_be_exported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_demo_model, "_HEAD_STEPS", 1)
    first, start = exported_run(monkeypatch, tmp_path)
    run = trainer(monkeypatch, tmp_path, "--start", str(start), "--average", "--export", str(tmp_path / "mean"))
    before = [weight.detach().clone() for weight in run.model.parameters()]
    assert run.run()
    after = list(run.model.parameters())
    assert not all(map(torch.equal, before, after))
    for one, other, mean in zip(before, after, run.exported().parameters(), strict=True):
        torch.testing.assert_close(mean, (one + other) / 2)
    run.save()
    weights = train_demo_model.exported_weights(tmp_path / "mean")
    assert all(weights[name].equal(value.bfloat16()) for name, value in run.exported().named_parameters())
    assert "--average" in run.card() and "mean of those" in run.card()
    with pytest.raises(SystemExit):
        trainer(monkeypatch, tmp_path, "--average", "--start", str(first.checkpoint))
    assert "--average needs an exported model" in capsys.readouterr().err
