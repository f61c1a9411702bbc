"""`vidqa caption` where links lead elsewhere and journals are foreign."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_caption import ASSETS, TRUE, caption
from vidqa.batch.clip_record import RunFingerprint
from vidqa.batch.journal import Journal
from vidqa.batch.shards import Shard
from vidqa.cli.console import ExitCode


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a demo clip, a picture, and a clip in a subfolder."""
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config" / "none.toml"))
    path = tmp_path / "clips"
    (path / "deep").mkdir(parents=True)
    for name in ("demo-two.mp4", "deep/demo.mp4"):
        shutil.copyfile(ASSETS / Path(name).name, path / name)
    Image.new("RGB", (140, 112), "black").save(path / "still.png")
    return path


def test_the_status_escapes_what_a_journal_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(folder, Shard()) as journal:
        journal.append(RunFingerprint("key", "a\x1b[2Jmodel\n", "r", "a\x1b[2Jprompt", {}))
    assert caption(folder, "--status") == ExitCode.OK
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"a\x1b[2Jmodel\n" in out and r"a\x1b[2Jprompt" in out


def test_a_link_to_a_folder_is_captioned_where_it_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(folder / "demo-two.mp4", elsewhere)
    (folder / "link").symlink_to(elsewhere)
    assert caption(folder, folder / "link", "--dry-run") == ExitCode.OK
    out, err = capsys.readouterr()
    assert "2 clips: 2 to caption" in out and "not followed" not in err
    assert caption(folder, folder / "link") == ExitCode.OK
    assert (elsewhere / "demo-two.txt").read_text().strip() == TRUE["demo-two"]
    assert caption(folder, folder / "link") == ExitCode.OK
    assert "skipped: 2 done" in capsys.readouterr().err
    assert caption(folder, "--dry-run") == ExitCode.OK
    assert "name the folder to have its clips" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("mode", ["skip", "overwrite", "append"])
def test_a_clip_whose_caption_would_leave_the_output_folder_fails_alone(
    mode: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for one in (out, elsewhere):
        one.mkdir()
    (out / "deep").symlink_to(elsewhere)
    how = ("-r", "-o", out, "--on-existing", mode)
    assert caption(folder, *how, "--dry-run") == ExitCode.SOME_FAILED
    assert "cannot: deep/demo.mp4: deep/demo.txt leads out of" in capsys.readouterr().out
    assert caption(folder, *how) == ExitCode.SOME_FAILED
    assert "failed: deep/demo.mp4 (output): deep/demo.txt leads out of" in capsys.readouterr().err
    assert {path.stem for path in out.glob("*.txt")} == {"demo-two", "still"} and not list(elsewhere.iterdir())


def test_a_done_clip_whose_output_became_a_link_fails_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert caption(folder, "-r", "-o", out) == ExitCode.OK
    shutil.move(out / "deep", tmp_path / "elsewhere")
    (out / "deep").symlink_to(tmp_path / "elsewhere")
    assert caption(folder, "-r", "-o", out) == ExitCode.SOME_FAILED
    err = capsys.readouterr().err
    assert "failed: deep/demo.mp4 (output): deep/demo.txt leads out of" in err and "skipped: 2 done" in err


def test_a_clip_that_was_away_for_one_run_is_still_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = folder.parent / "named.txt"
    named.write_text(f"{folder}/demo-two.mp4\n{folder}/still.png\n")
    how = ("--files-from", named, "-o", folder / "out")
    assert caption(*how) == ExitCode.OK
    shutil.move(folder / "demo-two.mp4", folder.parent)
    assert caption(*how) == ExitCode.SOME_FAILED
    shutil.move(folder.parent / "demo-two.mp4", folder)
    capsys.readouterr()
    assert caption(*how) == ExitCode.OK
    assert "skipped: 2 done" in capsys.readouterr().err
