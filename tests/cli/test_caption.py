"""`vidqa caption` as users run it: files, messages, exit codes, signals."""

import csv
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.batch.commands import DEMO, SCRIPTED, environment, folder_of, names, records_of
from tests.conftest import ROOT
from tests.docs.schemas import problems
from tests.subtitle_files import srt
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.engine import calibrator

ASSETS = ROOT / "assets"


@pytest.fixture(autouse=True)
def no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config" / "none.toml"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the four demo clips, a picture, a broken file, and a clip in a subfolder."""
    path = tmp_path / "clips"
    (path / "deep").mkdir(parents=True)
    for name in ("demo.mp4", "demo-two.mp4", "demo-color.mp4", "demo-empty.mp4"):
        shutil.copyfile(ASSETS / name, path / name)
    shutil.copyfile(ASSETS / "demo.mp4", path / "deep" / "demo.mp4")
    Image.new("RGB", (140, 112), "black").save(path / "still.png")
    (path / "broken.mp4").write_bytes(b"no video")
    return path


def caption(*arguments: str | Path) -> int:
    return run(["caption", *map(str, arguments), "--model", "demo", "--device", "cpu", "--decode-in-process"])


def events(err: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in err.splitlines()]


TRUE = {
    "demo": "a red circle moves right.",
    "demo-two": "first a red circle moves right, then a blue square moves up.",
    "demo-color": "a green triangle turns yellow.",
    "demo-empty": "nothing visible.",
    "still": "nothing visible.",
}


def test_a_folder_gets_true_captions_in_spite_of_a_bad_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(folder) == ExitCode.SOME_FAILED
    assert {path.stem: path.read_text().strip() for path in folder.glob("*.txt")} == TRUE
    out, err = capsys.readouterr()
    assert out == ""
    assert "failed: broken.mp4 (open): broken.mp4 cannot be read as a video" in err
    assert "5 captioned, 1 failed" in err
    assert caption(folder) == ExitCode.OK
    assert "skipped: 1 failed before, 5 done" in capsys.readouterr().err
    assert caption(folder, "--retry-failed") == ExitCode.SOME_FAILED


def test_json_lines_have_every_clip_and_the_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caption(folder, "--json", "-r", "--format", "csv", "-o", folder / "out")
    lines = events(capsys.readouterr().err)
    clips = {event["path"]: event["status"] for event in lines if event["event"] == "clip"}
    assert clips == {
        "broken.mp4": "failed", "deep/demo.mp4": "done", "demo-color.mp4": "done", "demo-empty.mp4": "done",
        "demo-two.mp4": "done", "demo.mp4": "done", "still.png": "done",
    }  # fmt: skip
    assert lines[-1]["event"] == "summary"
    assert (lines[-1]["captioned"], lines[-1]["failed"]) == (6, 1)
    with (folder / "out" / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows["deep/demo.mp4"]["caption"] == TRUE["demo"]
    assert rows["broken.mp4"]["error"].startswith("VideoUnreadable: ")


def test_progress_counts_to_the_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.mp4").unlink()
    assert caption(folder, "--json", "--limit", "1") == ExitCode.OK
    shown = [event for event in events(capsys.readouterr().err) if event["event"] == "progress"]
    assert shown and {event["total"] for event in shown} == {1}


def test_segments_have_their_times(folder: Path) -> None:
    caption(folder / "demo-two.mp4", "--segments", "3", "--format", "vtt")
    header, first, second = (folder / "demo-two.vtt").read_text().split("\n\n")
    assert header == "WEBVTT - captions by vidqa"
    assert first.startswith("00:00:00.000 --> 00:00:03.000\n") and "a red circle moves right" in first
    assert second.startswith("00:00:03.000 --> 00:00:06.000\n") and "a blue square moves up" in second


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_captions_beside_a_clip_are_no_subtitles(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A later question passes over them and says so; a file that is named is read; a real one is preferred."""
    clip, written = folder / "demo.mp4", folder / f"demo.{name}"
    caption(clip, "--format", name)
    capsys.readouterr()

    def planned(*words: str) -> tuple[Any, str]:
        assert run(["ask", str(clip), "what happens?", "--model", "demo", "--json", *words]) == ExitCode.OK
        shown = capsys.readouterr()
        return json.loads(shown.out)["plan"].get("subtitles"), shown.err

    found, said = planned()
    assert found is None and f"demo.{name} has captions that vidqa wrote and is not read as subtitles" in said
    found, said = planned("--subs", str(written))
    assert found["source"] == f"demo.{name}" and found["lines"] == 1 and "not read" not in said
    (folder / "demo.en.srt").write_text(srt())
    assert planned()[0]["source"] == "demo.en.srt"


def test_a_missing_file_of_a_list_fails_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [os.fsencode(folder / name) for name in ("demo.mp4", "gone\n.mp4", "pipe.mp4")]
    os.mkfifo(folder / "pipe.mp4")
    (tmp_path / "list").write_bytes(b"\0".join(listed))
    assert caption("--files-from", tmp_path / "list", "-0") == ExitCode.SOME_FAILED
    err = capsys.readouterr().err
    assert r"failed: gone\n.mp4 (open): gone\n.mp4: No such file or directory." in err
    assert "failed: pipe.mp4 (open): pipe.mp4: Not a regular file." in err
    assert (folder / "demo.txt").read_text().strip() == TRUE["demo"]


def test_a_template_is_filled_with_a_clips_facts(folder: Path) -> None:
    caption(folder / "demo.mp4", "--prompt", "{stem} in {parent}, {duration} s, {width}x{height}: what happens?",
            "--format", "json")  # fmt: skip
    output = json.loads((folder / "demo.json").read_text())
    assert output["prompt"] == "demo in clips, 4 s, 320x240: what happens?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "{nam} what?"], "{name}"),
        (["--prompt", "shrot"], "'short'"),
        (["--batch", "0"], "--batch 0"),
        (["--max-failures", "150%"], "--max-failures"),
        (["--deadline", "0"], "--deadline 0"),
        (["--limit", "0"], "--limit 0"),
        (["--shard", "3/2"], "3/2"),
        (["--segments", "soon"], "segments"),
        (["--gpus", "0", "--ray"], "exclude"),
        (["--format", "json", "--on-existing", "append"], "--format txt"),
        (["-o", "captions.JSONL"], "captions.JSONL is the name of a file. Use -o FOLDER --format jsonl."),
    ],
)
def test_invalid_options_are_refused_before_anything_is_read(
    options: Sequence[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption(folder, *options) == ExitCode.USAGE
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(folder.glob("*.txt"))


def test_nothing_to_caption_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", "--model", "demo"]) == ExitCode.USAGE
    assert caption(tmp_path) == ExitCode.USAGE
    assert "There is nothing to caption." in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_with_the_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption(folder, "-o", folder / "broken.mp4") == ExitCode.USAGE
    assert "with -o" in " ".join(capsys.readouterr().err.split())


def test_a_folder_may_have_a_files_name_where_that_is_meant(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    assert caption(folder / "demo.mp4", "-o", f"{out}/") == ExitCode.OK
    assert caption(folder / "demo.mp4", "-o", out) == ExitCode.OK  # now it is there
    assert (out / "demo.txt").read_text() == "a red circle moves right.\n"


def test_two_folders_do_not_share_an_output_and_a_moved_one_keeps_its_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    shutil.copyfile(ASSETS / "demo-two.mp4", other / "demo.mp4")
    caption(folder / "demo.mp4", "-o", out)
    assert caption(other, "-o", out) == ExitCode.USAGE
    assert "has the captions of" in " ".join(capsys.readouterr().err.split())
    assert (out / "demo.txt").read_text().strip() == TRUE["demo"]
    moved = folder.rename(tmp_path / "moved")
    assert caption(moved / "demo.mp4", "-o", out) == ExitCode.OK
    assert "skipped: 1 done" in capsys.readouterr().err


def test_a_dry_run_plans_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(folder, "--dry-run") == ExitCode.SOME_FAILED
    out = capsys.readouterr().out
    assert "6 clips: 5 to caption, 1 cannot be captioned" in out
    head, *rows = [line.split() for line in out.splitlines() if line[:1] == " " or line.startswith("clips")]
    assert head[:5] == ["clips", "captions", "frames", "size", "weights"]
    assert sum(int(row[0]) for row in rows) == 5
    assert {tuple(row[2:4]) for row in rows} == {("2", "192×160"), ("8", "160×128"), ("12", "160×128")}
    assert "answers as long as they may be; the first run measures this machine" in out
    assert sorted(path.name for path in folder.iterdir() if path.suffix not in {".mp4", ".png"}) == ["deep"]


def test_one_clip_is_counted_in_the_singular(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(folder / "demo.mp4", "--dry-run") == ExitCode.OK
    assert capsys.readouterr().out.startswith("1 clip: 1 to caption, 0 cannot be captioned\n")


def test_records_of_earlier_versions_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their plans do not say how frames were placed and tokens dropped; their captions are not made again."""
    assert caption(folder / "demo.mp4", "--format", "jsonl") == ExitCode.OK
    path = folder / ".vidqa" / "journal.jsonl"
    task, record = map(json.loads, path.read_text().splitlines())
    for key in ("sampling", "pruning"):
        assert record["record"]["plan"].pop(key) is None
    path.write_text(f"{json.dumps(task)}\n{json.dumps(record)}\n")
    capsys.readouterr()
    assert caption(folder / "demo.mp4", "--format", "jsonl") == ExitCode.OK
    assert "skipped: 1 done" in capsys.readouterr().err
    (line,) = map(json.loads, (folder / "captions.jsonl").read_text().splitlines())
    assert line["caption"] == TRUE["demo"] and line["plan"] == record["record"]["plan"]
    assert problems("caption-record", line) == []


def test_a_dry_run_after_a_run_leaves_done_clips_out_and_is_calibrated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("VIDQA_CALIBRATE", "true")
    monkeypatch.setattr(calibrator, "unmeasured_precisions", lambda problem: ())
    assert caption(folder, "--limit", "3") == ExitCode.SOME_FAILED
    capsys.readouterr()
    assert caption(folder, "--dry-run", "--json") == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert found["skipped"]["done"] == 2 and found["calibrated"]
    assert sum(row["clips"] for row in found["plans"]) == 3
    for row in found["plans"]:
        assert sum(int(size) * number for size, number in row["batches"].items()) >= row["captions"]
    monkeypatch.setenv("VIDQA_CALIBRATE", "false")
    assert caption(folder, "--dry-run", "--json") == ExitCode.OK
    assert not json.loads(capsys.readouterr().out)["calibrated"]
    assert 2 <= found["answer_tokens"] <= 20 and found["seconds"] >= found["start_seconds"] >= 0


def test_shards_divide_the_work_and_the_status_is_of_the_whole(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caption(folder, "--shard", "1/3")
    assert {path.stem for path in folder.glob("*.txt")} == {"demo-empty"}  # by a hash of the name, wherever it runs
    caption(folder, "--shard", "2/3")
    for name, value in {"ID": "3", "MIN": "1", "MAX": "3", "COUNT": "3"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    caption(folder)
    assert {path.stem: path.read_text().strip() for path in folder.glob("*.txt")} == TRUE
    assert records_of(folder) == dict.fromkeys(
        ["still.png", "broken.mp4", *(path.name for path in folder.glob("demo*.mp4"))], 1
    )
    assert caption(folder / "demo.mp4", "--shard", "1/3") == ExitCode.OK, "a shard without clips is no error"
    capsys.readouterr()
    assert caption(folder, "--status", "--json") == ExitCode.OK
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (task["done"], task["failed"], task["to_do"]) == (5, 1, 0)
    assert caption(folder, "--status") == ExitCode.OK
    assert f"  {task['prompt']}\n" in capsys.readouterr().out


def test_a_second_run_of_one_folder_is_refused(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "clips", 6)
    variables = environment(tmp_path, SCRIPTED_SECONDS="0.4")
    with subprocess.Popen([*SCRIPTED, str(path), "--batch", "1"], stderr=subprocess.DEVNULL, env=variables) as first:
        while not records_of(path):
            assert first.poll() is None
        second = subprocess.run([*SCRIPTED, str(path)], env=variables, capture_output=True, text=True)
        assert second.returncode == ExitCode.USAGE
        assert "Another vidqa captions" in second.stderr
        assert "--shard" in second.stderr
    assert first.returncode == ExitCode.OK


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_current_clips_and_the_next_run_goes_on(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    path = folder_of(tmp_path / "clips", 12)
    variables = environment(tmp_path, SCRIPTED_SECONDS="0.3", SCRIPTED_BEGUN=str(tmp_path / "begun"))
    command = [*SCRIPTED, str(path), "--batch", "1", "--json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as process:
        while not records_of(path):
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code
    assert "the same command continues" in events(err)[-1]["ended"]
    begun = len((tmp_path / "begun").read_text().splitlines())
    assert begun == sum(records_of(path).values()) < 12, "what was begun was finished"
    subprocess.run([*SCRIPTED, str(path)], check=True, env=environment(tmp_path))
    assert records_of(path) == dict.fromkeys(names(12), 1)


def test_a_closed_stderr_does_not_end_the_run(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "clips", 12)
    variables = environment(tmp_path, SCRIPTED_SECONDS="0.05")
    with subprocess.Popen(
        [*SCRIPTED, str(path), "--batch", "1", "--json"], stderr=subprocess.PIPE, env=variables
    ) as run:
        assert run.stderr is not None
        run.stderr.readline()
        run.stderr.close()
    assert records_of(path) == dict.fromkeys(names(12), 1)
    assert run.returncode == ExitCode.OK


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "clips", 4)
    variables = environment(tmp_path, SCRIPTED_SECONDS="0.2", SCRIPTED_BEGUN=str(tmp_path / "begun"))
    command = [*SCRIPTED, str(path), "--json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert events(err)[-1]["event"] == "summary"


_FULL_DISK = """
mount -t tmpfs -o size=1m none "$OUT" || exit 77
head -c 1000k /dev/zero > "$OUT/ballast"
"$@" -o "$OUT"; echo $? > "$RESULTS/code"
cp "$OUT"/*.txt "$RESULTS/before/"
"$@" -o "$OUT"; echo $? >> "$RESULTS/code"
rm "$OUT/ballast"
"$@" -o "$OUT"; echo $? >> "$RESULTS/code"
cp -r "$OUT/." "$RESULTS/after/"
"""


def test_a_disk_that_is_full_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "clips", 30)
    for name in ("disk", "results", "results/before", "results/after"):
        (tmp_path / name).mkdir()
    variables = environment(tmp_path, OUT=str(tmp_path / "disk"), RESULTS=str(tmp_path / "results"))
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _FULL_DISK, "sh"]
    try:
        done = subprocess.run([*command, *SCRIPTED, str(path)], env=variables, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if not (tmp_path / "results" / "code").exists():
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    assert (tmp_path / "results" / "code").read_text().split() == ["1", "1", "0"], done.stderr
    kept = {file.name: file.read_text() for file in (tmp_path / "results" / "before").iterdir()}
    after = {file.name: file.read_text() for file in (tmp_path / "results" / "after").glob("*.txt")}
    assert 0 < len(kept) < len(after) == 30
    assert all(after[name] == text for name, text in kept.items())
    assert records_of(tmp_path / "results" / "after") == dict.fromkeys(names(30), 1)
    assert done.stderr.startswith(f"{len(kept)} captioned, 0 failed in")
    assert " ".join(done.stderr.split()).count("The disk is full: the captions so far are kept") == 2


REAL = {
    "audio_only.webm": "it contains only audio",
    "decompression_bomb.gif": "Invalid data",
    "invalid_codec.mp4": "codec that FFmpeg does not know",
    "no_stream.mp4": "no stream at all",
}


def test_every_real_clip_gets_a_caption_or_an_error(real_clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*DEMO, str(real_clips), "-o", str(out), "--format", "jsonl", "--allow-demo"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == ExitCode.SOME_FAILED, done.stderr
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = {path.name for path in real_clips.iterdir() if path.suffix != ".md"}
    assert [line["path"] for line in lines] == sorted(expected)
    assert len(lines) == 26
    failed = {line["path"]: line["error"] for line in lines if line["error"] is not None}
    assert failed.keys() == REAL.keys()
    for name, reason in REAL.items():
        assert reason in failed[name]["message"]
        assert failed[name]["stage"] == "open" and failed[name]["hint"]
    assert all(line["caption"] for line in lines if line["path"] not in failed)
    (corrupted,) = (line for line in lines if line["path"] == "corrupted.mp4")
    assert any("the file is damaged" in note for note in corrupted["notes"])
