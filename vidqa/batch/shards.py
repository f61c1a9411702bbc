"""Division of a run into shards by a hash of the clips' names, the same on every machine."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vidqa.batch.clip_record import Clip
from vidqa.errors import UsageError

_ARRAY = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `count` disjoint parts; numbers begin at 1."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse `2/8`; raises UsageError."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"{text!r} is not a shard.", "Write NUMBER/COUNT: the first of eight is 1/8, the last 8/8.")
    return Shard(int(match[1]), int(match[2]))


def slurm_shard(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Return the shard of this SLURM array task, None outside of an array; raises UsageError for one with gaps."""
    if f"{_ARRAY}ID" not in environment:
        return None
    try:
        task, first, last, count = (int(environment[f"{_ARRAY}{name}"]) for name in ("ID", "MIN", "MAX", "COUNT"))
        tasks = range(first, last + 1, int(environment.get(f"{_ARRAY}STEP", "1")))
    except (KeyError, ValueError) as error:
        raise UsageError(f"The variables {_ARRAY}* do not define a shard ({error}).", "Give --shard i/n.") from error
    if len(tasks) != count or task not in tasks:
        raise UsageError(
            f"The SLURM array has {count} tasks from {first} to {last}; with gaps they do not define shards.",
            "Submit --array=1-N, or give --shard i/n.",
        )
    return Shard(tasks.index(task) + 1, count)


def shard_clips(clips: Iterable[Clip], shard: Shard) -> list[Clip]:
    """Return the clips of a shard, in their order."""
    return [clip for clip in clips if _stable_hash(clip.name) % shard.count == shard.number - 1]


def _stable_hash(name: str) -> int:
    """Hash a name to the same number in every process, unlike Python's hash()."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")
