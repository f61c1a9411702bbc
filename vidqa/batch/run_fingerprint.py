"""What a run asks of every clip, as the journal knows it: which model in which revision, which prompt and settings."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion, request_of
from vidqa.batch.clip_record import Clip, Pending, RunFingerprint
from vidqa.batch.content_hash import hash_of, identify
from vidqa.config import EngineConfig
from vidqa.devices.device import find_device
from vidqa.errors import VideoError, VideoUnreadable
from vidqa.models.registry import Checkpoint, find_checkpoints
from vidqa.planner.model_choice import plan_best
from vidqa.planner.problem import planning_problems
from vidqa.video.reader import open_video

Chooser = Callable[[EngineConfig, CaptionRequest, Sequence[Clip]], Checkpoint]


def make_task(asking: CaptionRequest, config: EngineConfig, checkpoint: Checkpoint) -> RunFingerprint:
    """The task of a run. Settings that change what is answered count; what memory there is now does not."""
    request = asdict(asking.request)
    left_out = ("video", "question", "history")
    settings: dict[str, Any] = {key: value for key, value in request.items() if key not in left_out}
    settings |= {"segments": asking.segments, "weights": config.weights, "kv": config.kv, "quality": config.quality}
    revision = revision_of(checkpoint.local_folder())
    told = json.dumps(settings, sort_keys=True)
    key = hash_of(checkpoint.name, revision, asking.prompt.text, told)
    return RunFingerprint(key, checkpoint.name, revision, asking.prompt.text, json.loads(told))


def revision_of(folder: Path) -> str:
    """The commit of a model from the hub's cache; of another folder, a hash of its config and weights."""
    if folder.parent.name == "snapshots":
        return folder.name
    names = sorted(path.name for path in folder.iterdir() if path.suffix in {".json", ".safetensors"})
    return hash_of(*names, *(identify(str(folder / name)) for name in names))


def choose_checkpoint(config: EngineConfig, asking: CaptionRequest, clips: Sequence[Clip]) -> Checkpoint:
    """The model of a run: the named one; of `auto`, what fits the first clip that can be opened best.

    Raises ModelMissing and ModelError where there is none, DoesNotFit where none fits.
    """
    checkpoints = find_checkpoints(config.model, local=True)
    if len(checkpoints) == 1:
        return checkpoints[0]
    for clip in clips:
        with suppress(VideoError), open_video(clip.path) as reader:
            job = PlannedQuestion(Pending(clip, ""))
            request = request_of(job, reader.info, asking)
            tasks = planning_problems(checkpoints, reader.info, request, config, find_device(config.device))
            return checkpoints[plan_best(tasks)[0]]
    raise VideoUnreadable("None of the clips can be opened.", "Look at one with `vidqa frames`.")
