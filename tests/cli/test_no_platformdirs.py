"""With VIDQA_STATE and VIDQA_CONFIG set, platformdirs is not needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
BLOCKED = "import sys\nsys.modules['platformdirs'] = None  # importing it raises ImportError\n"
SESSION = """
from vidqa import EngineConfig, Request, Session
from vidqa.events import Answered
with Session(EngineConfig(isolate_decoder=False)) as session:
    *_, last = session.ask(Request({demo!r}, "what happens?"))
assert isinstance(last, Answered)
print(last.answer.text)
"""
ASK = """
from vidqa.cli.main import run
sys.exit(run(["ask", {demo!r}, "what happens?", "--model", "demo", "--quiet", "--decode-in-process"]))
"""


@pytest.mark.parametrize("code", [SESSION, ASK], ids=["session", "ask"])
def test_it_answers_without_platformdirs(code: str, tmp_path: Path) -> None:
    environment = dict(os.environ, VIDQA_STATE=str(tmp_path / "state"), VIDQA_CONFIG=str(tmp_path / "none.toml"))
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code.format(demo=DEMO)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "a red circle moves right."), done.stderr
