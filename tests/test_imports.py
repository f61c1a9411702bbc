"""What is never loaded by whom, seen at run time: the linter cannot see laziness."""

import subprocess
import sys

import pytest

import vidqa

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
        (
            "import vidqa.planner.planner, vidqa.planner.fallback, vidqa.planner.alternatives, vidqa.devices.device",
            HEAVY,
        ),
        (
            "import vidqa.cli.sweep, vidqa.cli.profile, vidqa.profiling.sweep_runner, vidqa.profiling.memory_trace",
            HEAVY,
        ),
        ("import vidqa.video.image_source", ("torch", "pillow_heif")),
        ("import vidqa.cli.charts", (*HEAVY, "matplotlib")),
        ("import vidqa.tui.launch", tuple(name for name in HEAVY if name != "textual")),
        ("import vidqa.video.decoder_worker", ("torch", "transformers", "textual")),
        ("from vidqa.cli.main import run\ntry: run(['--help'])\nexcept SystemExit: pass", HEAVY),
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
