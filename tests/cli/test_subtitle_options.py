"""`--subs` of ask, plan, frames and caption as users run it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.batch.commands import plans_of
from tests.clips import add_sound
from tests.conftest import ROOT
from tests.subtitle_files import CUES, srt, with_stream
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run

DEMO = ROOT / "assets" / "demo.mp4"
OPTIONS = ("--model", "demo", "--device", "cpu", "--decode-in-process")
LINES = {"source": "clip.srt", "language": "", "lines": 3, "left_out": 0}


@pytest.fixture(autouse=True)
def no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config" / "none.toml"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A clip with subtitles beside it."""
    path = tmp_path / "clips" / "clip.mp4"
    path.parent.mkdir()
    shutil.copyfile(DEMO, path)
    path.with_suffix(".srt").write_text(srt())
    return path


def asked(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[dict[str, Any], str]:
    assert run(["ask", *map(str, arguments), "what happens?", "--json", *OPTIONS]) == ExitCode.OK
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_ask_says_what_it_reads(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer, err = asked(capsys, clip)
    assert answer["answer"] == "a red circle moves right."
    assert answer["plan"]["subtitles"] == LINES and "note: subtitles: 3 lines of clip.srt\n" in err
    off, err = asked(capsys, clip, "--subs", "off")
    assert "subtitles" not in off["plan"] and "subtitles" not in err and off["answer"] == answer["answer"]
    assert off["plan"]["prompt_tokens"] < answer["plan"]["prompt_tokens"]


def test_a_file_from_elsewhere_and_one_that_is_not_there(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.de.srt"
    other.write_text(srt(CUES[:1]))
    answer, _ = asked(capsys, clip, "--subs", other)
    assert answer["plan"]["subtitles"] == {"source": "other.de.srt", "language": "de", "lines": 1, "left_out": 0}
    assert run(["ask", str(clip), "what?", "--subs", str(tmp_path / "gone.srt"), *OPTIONS]) == ExitCode.UNREADABLE_VIDEO
    assert "There is no subtitle file" in capsys.readouterr().err


def test_plan_counts_and_names_them(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("demo", "3-vl-4b"):
        assert run(["plan", str(clip), "--model", model, "--gpu", "rtx4090"]) == ExitCode.OK
        assert "note      subtitles: 3 lines of clip.srt" in capsys.readouterr().out
    loud = add_sound(DEMO, clip.with_name("loud.mp4"), 4.0)
    run(["plan", str(loud), "--model", "demo"])
    assert "note      the sound is not heard: --subs FILE" in capsys.readouterr().out
    run(["plan", str(clip), "--model", "demo", "--json"])
    assert json.loads(capsys.readouterr().out)["plan"]["subtitles"] == LINES


@pytest.mark.parametrize("share", ["0", "1", "25%", "nan", "much"])
def test_a_share_that_is_none(share: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(clip), "--model", "demo", "--subs-share", share]) == ExitCode.USAGE
    assert f"--subs-share {share} is not allowed. Allowed: a share above 0 and below 1" in capsys.readouterr().err


def caption(*arguments: str | Path) -> int:
    return run(["caption", *map(str, arguments), *OPTIONS])


def test_captions_read_each_clips_own(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip.parent
    with_stream(DEMO, folder / "stream.mkv", srt(CUES[:2]), "srt")
    add_sound(DEMO, folder / "loud.mp4", 4.0)
    assert caption(folder, "--batch", "2") == ExitCode.OK
    plans = plans_of(folder)
    assert plans["clip.mp4"]["subtitles"] == LINES and "unheard" not in plans["clip.mp4"]
    assert plans["stream.mkv"]["subtitles"] == {"source": "stream 1", "language": "eng", "lines": 2, "left_out": 0}
    assert "subtitles" not in plans["loud.mp4"] and plans["loud.mp4"]["unheard"] is True
    assert {path.read_text().strip() for path in folder.glob("*.txt")} == {"a red circle moves right."}
    assert capsys.readouterr().err.count("the sound of 1 clip is not heard") == 1


def test_a_clip_is_captioned_again_where_its_subtitles_changed(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip.parent
    shutil.copyfile(DEMO, folder / "bare.mp4")
    caption(folder)
    assert caption(folder) == ExitCode.OK and "skipped: 2 done" in capsys.readouterr().err
    clip.with_suffix(".srt").write_text(srt(CUES[:1]))
    caption(folder)
    assert "1 captioned" in (err := capsys.readouterr().err) and "skipped: 1 done" in err
    assert plans_of(folder)["clip.mp4"]["subtitles"]["lines"] == 1
    clip.with_suffix(".srt").unlink()
    caption(folder)
    assert "1 captioned" in capsys.readouterr().err and "subtitles" not in plans_of(folder)["clip.mp4"]
    caption(folder, "--subs", "off")
    assert "2 captioned" in capsys.readouterr().err  # another run: its captions may differ


def test_one_file_is_for_one_clip(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.srt"
    other.write_text(srt(CUES[:1]))
    assert caption(clip, "--subs", other) == ExitCode.OK
    assert plans_of(clip.parent)["clip.mp4"]["subtitles"]["source"] == "other.srt"
    shutil.copyfile(DEMO, clip.with_name("second.mp4"))
    capsys.readouterr()
    assert caption(clip.parent, "--subs", other) == ExitCode.USAGE
    assert "is one file for 2 clips" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("name", "said"), [("gone.srt", "There is no subtitle file"), ("..", "are not a regular file")]
)
def test_a_file_that_cannot_be_read_ends_a_run_before_its_first_clip(
    name: str, said: str, options: tuple[str, ...], clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption(clip, "--subs", clip.with_name(name), *options) == ExitCode.UNREADABLE_VIDEO
    out, err = capsys.readouterr()
    assert out == "" and said in (shown := " ".join(err.split())) and "use --subs off" in shown
    assert sorted(path.name for path in clip.parent.iterdir()) == ["clip.mp4", "clip.srt"]


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_captions_are_not_read_as_subtitles(kind: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip.parent
    clip.with_suffix(".srt").unlink()
    assert caption(folder, "--format", kind) == ExitCode.OK
    assert "moves right" in clip.with_suffix(f".{kind}").read_text()
    capsys.readouterr()
    assert caption(folder, "--format", kind) == ExitCode.OK and "skipped: 1 done" in capsys.readouterr().err
    assert caption(folder, "--format", kind, "--prompt", "what moves?") == ExitCode.OK
    assert all("subtitles" not in plan for plan in plans_of(folder).values())
