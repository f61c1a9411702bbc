"""`vidqa caption` with the scripted session, in a process of its own: `python -m tests.batch.child ARGUMENTS…`.

It takes the way of the real command; only the session is scripted, and the model's name is not looked for.
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

SECONDS = float(os.environ.get("SCRIPTED_SECONDS", "0"))  # that a group takes
BEGUN = os.environ.get("SCRIPTED_BEGUN")


def make_engine(config: EngineConfig, opener: Opener) -> BatchEngine:
    return ScriptedEngine(config, opener, work)


def work(group: Sequence[Request]) -> None:
    """As long as a device would; the clips are noted where a test wants to count them."""
    if BEGUN is not None:
        with Path(BEGUN).open("a", encoding="utf-8") as file:
            file.writelines(f"{request.video}\n" for request in group)
    time.sleep(SECONDS)


def scripted_checkpoint(*_: object) -> Checkpoint:
    return Checkpoint(MODEL, RELEASED[MODEL], REFERENCE_BOUNDS, Path(__file__).parent)


if __name__ == "__main__":
    caption.run = partial(caption.run, make_engine=make_engine, choose=scripted_checkpoint)
    raise SystemExit(run(["caption", "--model", MODEL, "--device", "cpu", *sys.argv[1:]]))
