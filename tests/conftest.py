"""Marks and fixtures; tests use no network and not the user's state folder."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["VIDQA_CALIBRATE"] = "false"  # plans in tests are the same on every machine
# Triton decides when it is imported whether kernels run on a GPU, or on a processor in its interpreter.
if not any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/dxg", "/dev/nvhost-gpu")):
    os.environ.setdefault("TRITON_INTERPRET", "1")
ROOT = Path(__file__).parents[1]
REAL_CLIPS = ROOT.parent / "shared" / "videos"
_STATES = "TESTS_STATE_FOLDERS"  # the variable that names the folder of all processes' state folders


def _make_state_folder() -> None:
    """Give this process a state folder: what tests measure is not the user's. The first process removes all."""
    if _STATES not in os.environ:
        os.environ[_STATES] = tempfile.mkdtemp(prefix="vidqa-tests-")
        atexit.register(_remove, os.environ[_STATES], os.getpid())
    os.environ["VIDQA_STATE"] = tempfile.mkdtemp(dir=os.environ[_STATES])


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)


_make_state_folder()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the longer proofs too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="a longer proof: scripts/test --long"))
        if item.get_closest_marker("needs_cuda") and not _has_cuda() and os.environ.get("VIDQA_REQUIRE") != "cuda":
            item.add_marker(pytest.mark.skip(reason="no CUDA device (VIDQA_REQUIRE=cuda makes this a failure)"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    """Seed torch's generators, so that a test which draws numbers ends the same way on every run."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips, where it is there."""
    if not REAL_CLIPS.is_dir():
        pytest.skip(f"the real clips are not here ({REAL_CLIPS})")
    return REAL_CLIPS
