"""The set-up scripts with a scripted Python and pip."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A stand-in for python: `-m venv` makes a folder with itself in it, `-m pip install` notes the call and may fail.
FAKE_PYTHON = """#!/usr/bin/env bash
log="$FAKE_LOG"
case "$*" in
  "-c "*) exit 0 ;;
  "-m venv "*) echo venv >>"$log"; mkdir -p "$3/bin"; [ "${FAKE_DIE_IN:-}" = venv ] && kill -9 $PPID $$
     cp "$0" "$3/bin/python"; printf '#!/bin/sh\\necho ran "$@"\\npwd\\n' >"$3/bin/vidqa"; chmod +x "$3/bin/vidqa" ;;
  "-m pip --version") [ -f "$(dirname "$0")/vidqa" ] ;;
  "-m pip install"*) echo "pip $*" >>"$log"
     [ "${FAKE_DIE_IN:-}" = pip ] && kill -9 $PPID $$
     [ -z "${FAKE_PIP_FAILS:-}" ] || { echo "no space left" >&2; exit 1; }
     [ -z "${FAKE_PIP_SLEEPS:-}" ] || sleep "$FAKE_PIP_SLEEPS" ;;
  "-m pytest"*) echo "1 passed" ;;
esac
exit 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts in a folder with a space in its name, with a fake python3 on the PATH."""
    root = tmp_path / "with a space"
    for name in ("vidqa", "test", "lib/setup.sh"):
        target = root / "scripts" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, target)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return root


def environment(checkout: Path, **more: str) -> dict[str, str]:
    binaries = f"{checkout.parent / 'bin'}:/usr/bin:/bin"
    return {"PATH": binaries, "HOME": str(checkout), "FAKE_LOG": str(checkout / "log"), **more}


def call(checkout: Path, script: str = "vidqa", *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "scripts" / script), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(checkout, **more), check=False)


def log(checkout: Path) -> list[str]:
    path = checkout / "log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_the_first_run_sets_up_and_the_second_does_not(checkout: Path) -> None:
    first = call(checkout, "vidqa", "ask", "my clip.mp4")
    assert first.returncode == 0
    assert first.stdout.splitlines()[0] == "ran ask my clip.mp4"
    assert "setting up" in first.stderr
    assert log(checkout) == ["venv", "pip"]
    second = call(checkout, "vidqa")
    assert second.stderr == ""
    assert log(checkout) == ["venv", "pip"]


def test_stdout_and_the_working_directory_are_those_of_the_command_also_through_a_link(
    checkout: Path, tmp_path: Path
) -> None:
    link = tmp_path / "vidqa-link"
    link.symlink_to(checkout / "scripts" / "vidqa")
    command = [str(link), "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(checkout), cwd=tmp_path, check=True)
    assert done.stdout == f"ran x\n{tmp_path}\n"


@pytest.mark.parametrize(("step", "steps"), [("venv", ["venv"]), ("pip", ["venv", "pip"])])
def test_an_interrupted_first_run_is_deleted_and_begun_again(checkout: Path, step: str, steps: list[str]) -> None:
    """pip itself would take a package that it was killed in the middle of for installed."""
    assert call(checkout, FAKE_DIE_IN=step).returncode != 0
    partial = checkout / ".venv" / "part-of-a-package"
    partial.touch()
    assert call(checkout).stdout.startswith("ran")
    assert not partial.exists()
    assert log(checkout) == [*steps, "venv", "pip"]


def test_an_interrupted_installation_is_repeated(checkout: Path) -> None:
    call(checkout)
    assert call(checkout, "test", FAKE_DIE_IN="pip").returncode != 0
    assert "setting up" in call(checkout).stderr


def test_the_test_environment_serves_the_command_too(checkout: Path) -> None:
    call(checkout, "test")
    assert call(checkout).stderr == ""
    assert log(checkout) == ["venv", "pip"]


def test_a_running_pip_of_a_killed_script_is_waited_for(checkout: Path) -> None:
    first = subprocess.Popen([str(checkout / "scripts" / "vidqa")], env=environment(checkout, FAKE_PIP_SLEEPS="1"))
    while "pip" not in log(checkout):
        time.sleep(0.02)
    first.kill()
    first.wait(timeout=10)
    begun = time.monotonic()
    assert call(checkout).stdout.startswith("ran")
    assert time.monotonic() - begun > 0.5


def test_a_failed_installation_is_reported_and_repeated(checkout: Path) -> None:
    failed = call(checkout, FAKE_PIP_FAILS="1")
    assert failed.returncode == 1
    assert "no space left" in failed.stderr and "could not be installed" in failed.stderr
    assert failed.stdout == ""
    assert call(checkout).stdout.startswith("ran")


def test_changed_requirements_are_installed(checkout: Path) -> None:
    call(checkout)
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("# changed\n")
    call(checkout)
    assert log(checkout) == ["venv", "pip", "pip"]


def test_a_moved_checkout_is_set_up_again(checkout: Path, tmp_path: Path) -> None:
    call(checkout)
    moved = tmp_path / "moved"
    checkout.rename(moved)
    assert "setting up" in call(moved).stderr


def test_two_first_runs_at_once_install_once(checkout: Path) -> None:
    command = [str(checkout / "scripts" / "vidqa")]
    where = environment(checkout, FAKE_PIP_SLEEPS="0.5")
    runs = [subprocess.Popen(command, env=where, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert all(run.communicate(timeout=30)[0].startswith("ran") for run in runs)
    assert log(checkout).count("pip") == 1


def test_the_test_script_ends_with_the_summary(checkout: Path) -> None:
    assert call(checkout, "test", "-q").stdout.splitlines()[-1] == "1 passed"


def test_without_python_the_error_has_a_remedy(checkout: Path) -> None:
    (checkout.parent / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    done = subprocess.run(
        [str(checkout / "scripts" / "vidqa")], capture_output=True, text=True, check=False,
        env=environment(checkout) | {"PATH": f"{checkout.parent / 'bin'}:{_tools(checkout)}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr


def _tools(checkout: Path) -> Path:
    """A folder with the shell's tools and no Python."""
    folder = checkout.parent / "tools"
    folder.mkdir()
    for name in ("bash", "env", "dirname", "readlink", "sha256sum", "cat", "rm", "mv", "flock", "sh", "mkdir"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder
