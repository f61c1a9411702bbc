"""What the program prints and writes is what docs/schema says."""

import copy
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.answer_builders import made_answer, made_clip
from tests.docs.schemas import SCHEMAS, load_schema, problems
from vidqa.batch.clip_result import plan_figures
from vidqa.cli.main import run
from vidqa.history.export import to_json
from vidqa.history.store import FILE_NAME, History

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "assets" / "demo.mp4")
COMMANDS = {
    "plan": ["plan", DEMO, "--model", "2b", "--gpu", "rtx4060"],
    "plan-sampled": ["plan", DEMO, "--model", "2b", "--gpu", "rtx4060", "--frames", "4", "--sample", "change"],
    "frames": ["frames", DEMO, "--model", "demo", "--frames", "4", "--sample", "auto", "--quiet"],
    "plan-gpus": ["plan", DEMO, "--gpu", "all"],
    "models": ["models"],
    "models-known": ["models", "--known"],
    "plan-models": ["plan", DEMO, "--gpu", "all", "--model", "all"],
    "config": ["config", "show", "--vram", "8GiB"],
    "find": ["find", DEMO, "a red circle", "--model", "demo", "--quiet", "--decode-in-process"],
    "ask-focus": [
        "ask",
        DEMO,
        "which way does the red circle move?",
        "--frames",
        "2",
        "--focus",
        "auto",
        "--model",
        "demo",
        "--quiet",
        "--decode-in-process",
    ],
    "ask": ["ask", DEMO, "what happens?", "--model", "demo", "--quiet", "--decode-in-process"],
    "doctor": ["doctor", "--model", "demo"],
    "profile": ["profile", DEMO, "--model", "demo", "--frames", "4", "--picture", "none"],
    # Too large to run, so that no process is started; tests/cli/test_sweep.py measures.
    "sweep": ["sweep", DEMO, "--model", "demo", "--frames", "90", "--size", "1120x1120", "--vram", "1500MiB"],
}


def names() -> list[str]:
    return sorted(path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.json"))


@pytest.mark.parametrize("name", names())
def test_each_file_is_a_schema_with_a_title_and_meanings(name: str) -> None:
    schema = load_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"{name}.schema.json" and schema["title"] and schema["description"]
    assert not list(undescribed(schema, name))


def undescribed(schema: Any, place: str) -> list[str]:
    """Return the places of properties without a meaning."""
    if isinstance(schema, list):
        return [found for one in schema for found in undescribed(one, place)]
    if not isinstance(schema, dict):
        return []
    properties = schema.get("properties", {})
    silent = [f"{place}.{key}" for key, value in properties.items() if not value.get("description")]
    return silent + [found for key, value in schema.items() for found in undescribed(value, f"{place}.{key}")]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_prints_fits_its_schema(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config.toml"))
    assert run([*COMMANDS[name], "--json"]) == 0
    printed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(printed) == 1
    schema = {
        "models-known": "models", "plan-models": "plan-gpus", "plan-sampled": "plan", "ask-focus": "ask",
    }.get(name, name)  # fmt: skip
    assert ("focus" in printed[0].get("plan", {})) == (name in ("ask-focus", "find"))
    assert problems(schema, printed[0]) == []


def test_what_captioning_prints_and_writes_fits_its_schemas(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a good clip and a bad one: progress, journal, one file for all, a sidecar, dry run and status."""
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config.toml"))
    # Progress is printed once a second; each look at this clock is two seconds later.
    monkeypatch.setattr("vidqa.cli.caption_progress.time", SimpleNamespace(monotonic=itertools.count(step=2).__next__))
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(DEMO, clips / "demo.mp4")
    (clips / "broken.mp4").write_bytes(b"no video")
    command = ["caption", str(clips), "--model", "demo", "--json", "--decode-in-process"]
    assert run([*command, "--dry-run"]) == 3
    (planned,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert problems("caption-plan", planned) == [] and planned["clips"] == 2

    assert run([*command, "--format", "jsonl"]) == 3
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert {"clip", "progress", "summary"} <= {line["event"] for line in lines}
    assert run([*command, "--format", "json"]) == 0
    lines += [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert "skipped" in {line["event"] for line in lines}
    assert [problems("caption-progress", line) for line in lines] == [[]] * len(lines)

    records = [json.loads(line) for line in (clips / "captions.jsonl").read_text().splitlines()]
    records.append(json.loads((clips / "demo.json").read_text()))
    assert [record["path"] for record in records] == ["broken.mp4", "demo.mp4", "demo.mp4"]
    assert [problems("caption-record", record) for record in records] == [[], [], []]
    journal = [json.loads(line) for line in (clips / ".vidqa" / "journal.jsonl").read_text().splitlines()]
    assert [problems("caption-journal", line) for line in journal] == [[]] * len(journal)

    assert run([*command, "--status"]) == 0
    (status,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert problems("caption-status", status) == [] and status["tasks"][0]["done"] == 1


WHICH = "which way does the red circle move?"


@pytest.mark.parametrize(
    "options",
    [
        ("--frames", "4", "--sample", "change", "--prune", "0.5"),
        ("--frames", "4", "--sample", "auto", "--prune", "auto"),
        ("--frames", "2", "--sample", "uniform", "--focus", "auto"),
    ],
)
def test_a_record_has_what_an_answers_plan_says_of_its_frames(
    options: Sequence[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How they were placed, how many tokens were dropped and whether the question selected, without long lists."""
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    shutil.copy(DEMO, tmp_path / "demo.mp4")
    command = (str(tmp_path / "demo.mp4"), "--model", "demo", "--quiet", "--decode-in-process", *options)
    assert run(["ask", *command, WHICH, "--no-history", "--json"]) == 0
    asked = json.loads(capfd.readouterr().out)["plan"]
    assert run(["caption", *command, "--prompt", WHICH, "--format", "json"]) == 0
    record = json.loads((tmp_path / "demo.json").read_text())
    journal = [json.loads(line) for line in (tmp_path / ".vidqa" / "journal.jsonl").read_text().splitlines()]
    assert problems("caption-record", record) == []
    assert [problems("caption-journal", line) for line in journal] == [[], []]
    plan = record["plan"]
    assert plan["sampling"] == asked["sampling"]
    if (pruning := asked["pruning"]) is not None:
        dropped = sum(pruning.pop("dropped_per_slice"))
        assert dropped > 0 and pruning.pop("kept_per_slice")
        pruning |= {"dropped_tokens": dropped}
    assert plan["pruning"] == pruning
    if "--focus" in options:
        assert plan["focus"]["candidates"] == asked["focus"]["candidates"] > plan["frames"]
        assert plan["focus"]["scoring_s"] > 0
    assert ("focus" in plan) == ("focus" in asked) == ("--focus" in options)


def test_a_plan_that_did_not_run_dropped_no_tokens_yet() -> None:
    pruned = replace(made_answer("").plan, video_tokens=80)
    pruned = replace(pruned, run_config=replace(pruned.run_config, drop_repeats=True))
    assert plan_figures(pruned)["pruning"] == {
        "mode": "auto", "planned_share": 1.0, "video_tokens": 80, "dropped_tokens": None,
    }  # fmt: skip


def test_what_the_history_prints_fits_its_schema(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path))
    history = History(tmp_path / FILE_NAME)
    session = history.begin_session(made_clip("/videos/a clip.mp4"), "demo")
    history.finish_turn(history.begin_turn(session, "What happens?"), made_answer("It falls."))
    history.close()
    for words, key in ((["list"], "conversations"), (["search", "falls"], "hits")):
        assert run(["history", *words, "--json"]) == 0
        (printed,) = map(json.loads, capfd.readouterr().out.splitlines())
        assert len(printed[key]) == 1 and problems("history", printed) == []


def test_an_exported_conversation_fits_its_schema() -> None:
    history = History(None)
    session = history.begin_session(made_clip("/videos/a clip.mp4"), "demo")
    history.finish_turn(
        history.begin_turn(session, "What happens?", None, 20.0), made_answer("At 0:05 - 0:09 it falls.")
    )
    history.begin_turn(session, "And then?", None, None)
    exported = json.loads(to_json(history.session(session), history.turns(session)))
    history.close()
    assert [turn["state"] for turn in exported["turns"]] == ["answered", "running"]
    assert problems("history-export", exported) == []


def test_a_field_too_much_or_too_little_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMANDS["models"], "--json"]) == 0
    good = json.loads(capfd.readouterr().out)
    more, less = copy.deepcopy(good), copy.deepcopy(good)
    more["models"][0]["colour"] = "red"
    del less["models"][0]["type"]
    assert problems("models", more) and problems("models", less)
