"""`vidqa caption` with the scripted session in a process: `python -m tests.batch.child ARGUMENTS…`.

Only the session and the choice of the checkpoint are scripted. SCRIPTED_SECONDS is how long a group takes;
SCRIPTED_BEGUN is a file that lists the clips of every group.
"""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.batch.scripted import MODEL, ScriptedEngine
from vidqa.batch.captioner import BatchEngine, Opener
from vidqa.cli import caption
from vidqa.cli.main import run
from vidqa.config import EngineConfig
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS, RELEASED
from vidqa.models.registry import Checkpoint
from vidqa.types import Request


def make_engine(config: EngineConfig, opener: Opener) -> BatchEngine:
    return ScriptedEngine(config, opener, work)


def work(group: Sequence[Request]) -> None:
    if begun := os.environ.get("SCRIPTED_BEGUN"):
        with Path(begun).open("a", encoding="utf-8") as file:
            file.writelines(f"{request.video}\n" for request in group)
    time.sleep(float(os.environ.get("SCRIPTED_SECONDS", "0")))


def scripted_checkpoint(*_: object) -> Checkpoint:
    return Checkpoint(MODEL, RELEASED[MODEL], REFERENCE_BOUNDS, Path(__file__).parent)


if __name__ == "__main__":
    caption.run = partial(caption.run, make_engine=make_engine, choose=scripted_checkpoint)
    raise SystemExit(run(["caption", "--model", MODEL, "--device", "cpu", *sys.argv[1:]]))
