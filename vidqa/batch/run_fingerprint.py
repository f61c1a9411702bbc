"""The fingerprint of a captioning run: model, revision, prompt and the settings that change answers."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion, request_for
from vidqa.batch.clip_record import Clip, PendingClip, RunFingerprint
from vidqa.config import SUBTITLE_SHARE, EngineConfig
from vidqa.devices.device import find_device
from vidqa.errors import VideoError, VideoUnreadable
from vidqa.models.registry import Checkpoint, find_checkpoints
from vidqa.planner.model_choice import plan_best
from vidqa.planner.problem import planning_problems
from vidqa.utils.content_hash import content_id, hash_of
from vidqa.video.reader import open_video
from vidqa.video.subtitle_files import AUTO, CHOICES

CheckpointChooser = Callable[[EngineConfig, CaptionRequest, Sequence[Clip]], Checkpoint]


def make_fingerprint(caption_request: CaptionRequest, config: EngineConfig, checkpoint: Checkpoint) -> RunFingerprint:
    """Return a run's fingerprint; it depends on settings that change answers, not on the memory that is free."""
    left_out = ("video", "question", "history", "picture_fps", "timestamps", "subs", "segment")
    request = asdict(caption_request.request)
    settings: dict[str, Any] = {key: value for key, value in request.items() if key not in left_out}
    for name, default in (("sample", "uniform"), ("focus", "off")):
        if settings[name] == default:
            del settings[name]  # the default leaves older runs' keys as they were
    settings |= {
        "segments": caption_request.segments, "weights": config.weights, "kv": config.kv, "quality": config.quality,
    }  # fmt: skip
    if config.max_wait_seconds != "auto":  # the default leaves older runs' keys as they were
        settings["max_wait"] = config.max_wait_seconds
    settings |= _subtitle_settings(caption_request.request.subs, config.subtitle_share)
    if config.prune != "off":
        settings["prune"] = config.prune
    revision, prompt = revision_of(checkpoint.local_folder()), caption_request.prompt.text
    encoded = json.dumps(settings, sort_keys=True)
    key = hash_of(checkpoint.name, revision, prompt, encoded)
    return RunFingerprint(key, checkpoint.name, revision, prompt, json.loads(encoded))


def _subtitle_settings(subs: str, share: float) -> dict[str, Any]:
    """Return what subtitles add to the settings; a file beside a clip counts in the clip's content instead.

    The default leaves older runs' keys as they were: their captions of clips without subtitles are what they would be.
    """
    chosen = {} if subs == AUTO else {"subs": subs if subs in CHOICES else content_id(subs)}
    return chosen if share == SUBTITLE_SHARE else chosen | {"subs_share": share}


def revision_of(folder: Path) -> str:
    """Return the commit of a model in the hub's cache; for another folder, a hash of its config and weights."""
    if folder.parent.name == "snapshots":
        return folder.name
    names = sorted(path.name for path in folder.iterdir() if path.suffix in {".json", ".safetensors"})
    return hash_of(*names, *(content_id(str(folder / name)) for name in names))


def choose_checkpoint(config: EngineConfig, caption_request: CaptionRequest, clips: Sequence[Clip]) -> Checkpoint:
    """Return the named model; for `auto`, the one with the best plan for the first readable clip.

    Raises ModelMissing and ModelError if there is none, DoesNotFit if none fits.
    """
    checkpoints = find_checkpoints(config.model, local=True)
    if len(checkpoints) == 1:
        return checkpoints[0]
    for clip in clips:
        with suppress(VideoError), open_video(clip.path) as reader:
            request = request_for(PlannedQuestion(PendingClip(clip, "")), reader.info, caption_request)
            problems = planning_problems(checkpoints, reader.info, request, config, find_device(config.device))
            return checkpoints[plan_best(problems)[0]]
    raise VideoUnreadable("None of the clips can be opened.", "`vidqa frames CLIP` shows why.")
