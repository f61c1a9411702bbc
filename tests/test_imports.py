"""Imports at run time, which import-linter cannot check."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vidqa

DEMO = str(Path(__file__).parents[1] / "assets" / "demo.mp4")
RUN = "from vidqa.cli.main import run\ntry: run([{}])\nexcept SystemExit: pass"
HEAVY = ("torch", "transformers", "av", "numpy", "textual", "huggingface_hub", "torchvision", "bitsandbytes")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import vidqa", HEAVY),
        ("import vidqa.cli.main", HEAVY),
        ("from vidqa import EngineConfig, Request, Session, VidqaError", ("torch", "transformers", "av", "textual")),
        ("import vidqa.video.frame_sampling, vidqa.models.families.qwen2_vl.spec, vidqa.planner.model_choice", HEAVY),
        ("import vidqa.history.store, vidqa.history.export, vidqa.history.timestamps", (*HEAVY, "psutil")),
        ("import vidqa.video.probe", ("torch", "numpy")),
        ("from vidqa.video.reader import check_file, open_video", (*HEAVY, "vidqa.video.probe")),
        ("import vidqa.planner.fallback, vidqa.planner.alternatives, vidqa.devices.device", HEAVY),
        ("import vidqa.cli.sweep, vidqa.cli.profile, vidqa.profiling.sweep_runner", HEAVY),
        ("import vidqa.cli.doctor, vidqa.profiling.memory_trace", (*HEAVY, "psutil", "pynvml")),
        ("import vidqa.video.image_source", ("torch", "pillow_heif")),
        ("import vidqa.cli.charts", (*HEAVY, "matplotlib")),
        ("import vidqa.tui.launch", tuple(name for name in HEAVY if name != "textual")),
        ("import vidqa.video.decoder_worker", ("torch", "transformers", "textual")),
        (RUN.format("'--help'"), (*HEAVY, "vidqa.types", "vidqa.settings", "vidqa.cli.ask", "argcomplete")),
        (RUN.format("'pull', '--help'"), (*HEAVY, "vidqa.cli.ask", "vidqa.cli.caption", "vidqa.cli.arguments")),
        (RUN.format(f"'plan', {DEMO!r}, '--gpu', 'all', '--model', 'demo'"), tuple({*HEAVY} - {"av"})),
    ],
)
def test_nothing_heavy_is_imported(code: str, absent: tuple[str, ...]) -> None:
    probe = f"{code}\nimport sys\nsys.stderr.write(' '.join(name for name in {absent!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_public_names_are_those_listed() -> None:
    for name in vidqa.__all__:
        assert getattr(vidqa, name).__module__.startswith("vidqa.")
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = vidqa.Nonsense  # type: ignore[attr-defined]


def test_no_module_below_the_commands_imports_the_package_itself() -> None:
    """The package names Session for type checkers, so that an import of it would close a circle through the engine."""
    root = Path(vidqa.__file__).parent
    users = [path.name for path in root.rglob("*.py") if re.search(r"(?m)^\s*import vidqa$", path.read_text())]
    assert users == ["main.py"]
