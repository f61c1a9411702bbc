"""Completion in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vidqa.cli.main import run
from vidqa.video.path_completion import complete_path, is_video_name

ROOT = Path(__file__).parents[2]
# What bash does at Tab: the registered function is called with the line in COMP_LINE and fills COMPREPLY.
_TAB = """
eval "$(vidqa completion bash)"
function_name=$(complete -p vidqa | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
while IFS= read -r line; do
  COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
  "$function_name" vidqa
  printf '%s\\t' "${COMPREPLY[@]}"; printf '\\n'
done
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of clips and others, a `vidqa` on the path, and a cached model."""
    command = tmp_path / "bin" / "vidqa"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vidqa "$@"\n')
    command.chmod(0o755)
    clips = tmp_path / "clips"
    (clips / "my clips").mkdir(parents=True)
    for name in ("a.mp4", "b c.MKV", "notes.txt", ".hidden.mp4", "still.png", "evil\x1b[2J.mp4", "my clips/x.mov"):
        (clips / name).touch()
    supported, other = '{"model_type": "qwen2_vl"}', '{"model_type": "llama"}'
    for name, config in (("Some--Model-2B", supported), ("Other--Text", other), ("Broken--One", "[")):
        snapshot = tmp_path / "hub" / f"models--{name}" / "snapshots" / "1"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(config)
    return tmp_path


def tab(place: Path, lines: list[str]) -> list[list[str]]:
    """The completions of bash for each line."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    environment = os.environ | {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_CACHE": str(place / "hub"),
        "HOME": str(place),
    }
    done = subprocess.run(
        [bash, "--norc", "-c", _TAB], cwd=place / "clips", env=environment, input="\n".join(lines) + "\n",
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [[word for word in line.split("\t") if word] for line in done.stdout.splitlines()]


def test_bash_completes_commands_options_videos_and_models(place: Path) -> None:
    wanted = {
        "vidqa co": ["config", "completion"],
        "vidqa ask ": ["a.mp4", "b\\ c.MKV", "my\\ clips/"],
        "vidqa ask my\\ clips/": ["my\\ clips/x.mov "],
        'vidqa ask "my clips/': ["my clips/x.mov"],
        "vidqa ask ~/clips/a": ["~/clips/a.mp4 "],
        "vidqa ask .h": [".hidden.mp4 "],
        "vidqa ask nowhere/": [],
        "vidqa ask a.mp4 ": [],  # a question: no file names
        "vidqa ask a.mp4 what --qu": ["--quality", "--quiet"],
        "vidqa ask a.mp4 what --quality ": ["fast", "balanced", "best"],
        "vidqa ask a.mp4 what --quality=f": ["fast "],
        "vidqa ask a.mp4 what --frames ": [],
        "vidqa ask --model ": [
            "demo",
            "auto",
            "2b",
            "7b",
            "72b",
            "2.5-vl-3b",
            "2.5-vl-7b",
            "3-vl-2b",
            "3-vl-4b",
            "3-vl-8b",
            "Some/Model-2B",
        ],
        "vidqa ask --model ./": ["./my\\ clips/"],
        "vidqa ask --device c": ["cpu", "cuda"],
        "vidqa plan a.mp4 --gpu rtx406": ["rtx4060", "rtx4060ti-8", "rtx4060ti-16"],
        "vidqa frames a.mp4 -o n": ["notes.txt "],
        "vidqa pull Qwen/Qwen2-VL-7B": ["Qwen/Qwen2-VL-7B-Instruct "],
        "vidqa config ": ["show", "set", "path", "init", "validate"],
        "vidqa config show --im": ["--images "],
        "vidqa caption ": ["a.mp4", "b\\ c.MKV", "my\\ clips/", "still.png"],
        "vidqa caption a.mp4 m": ["my\\ clips/"],
        "vidqa caption --files-from n": ["notes.txt "],
        "vidqa completion ": ["bash", "zsh", "fish"],
    }
    offered = tab(place, list(wanted))
    assert dict(zip(wanted, offered, strict=True)) == wanted


@pytest.mark.parametrize(("shell", "check"), [("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_every_shells_code_is_its_language(
    shell: str, check: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "vidqa" in code and "_ARGCOMPLETE" in code
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here to read it")
    (tmp_path / "code").write_text(code)
    done = subprocess.run([shell, *check, str(tmp_path / "code")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_completion_imports_nothing_heavy(place: Path) -> None:
    line = "vidqa ask --model "
    environment = os.environ | {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\t", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(place / "words"), "HF_HUB_CACHE": str(place / "hub"),
    }  # fmt: skip
    command = [sys.executable, "-X", "importtime", "-m", "vidqa"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Some/Model-2B" in (place / "words").read_text()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argcomplete" in imported and not imported & {"torch", "transformers", "av", "numpy", "textual"}


def test_paths_of_folders_and_videos(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "clips")
    monkeypatch.setenv("HOME", str(place))
    assert complete_path("") == ["a.mp4", "b c.MKV", "my clips/"]
    assert (complete_path("~"), complete_path("~/cl"), complete_path("~no-such-user/")) == (["~/"], ["~/clips/"], [])
    assert complete_path(str(place / "clips" / "my")) == [str(place / "clips" / "my clips") + "/"]
    assert is_video_name("X.MP4") and not is_video_name("mp4") and not is_video_name("x.mp4.txt")
