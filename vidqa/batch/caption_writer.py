"""Where captions of a run go: a sidecar for each clip, or one file for all. Knows records, formats and sidecars."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from vidqa.batch.caption_formats import SIDECARS, Decorate, run_lines, sidecar_text
from vidqa.batch.clip_record import ClipRecord, RunFingerprint
from vidqa.batch.journal import Ledger
from vidqa.batch.shards import Shard
from vidqa.batch.sidecars import (
    OnExisting,
    check_mode,
    check_writable,
    existing_text,
    is_older,
    may_write,
    plan_write,
    settle,
    sidecar_names,
)
from vidqa.utils.atomic_write import replace_file, sync_folder


class CaptionWriter:
    """The files of a run in its folder."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        on_existing: OnExisting,
        decorate: Decorate,
        task: RunFingerprint,
        names: Iterable[str],
        written: Callable[[str], str | None],
        begun_ns: int,
    ) -> None:
        """`names` are those of all clips, of other shards too; `written` gives the hash of what vidqa wrote to a
        sidecar last, and `begun_ns` is when it first came here. Raises UsageError for what cannot be written.
        """
        self._begun_ns = begun_ns
        self._folder, self._kind, self._on_existing = folder, kind, on_existing
        self._decorate, self._task, self._written = decorate, task, written
        self._sidecars = sidecar_names(names, f".{kind}") if kind in SIDECARS else {}
        check_mode(f".{kind}", on_existing)
        check_writable({folder, *(folder / os.path.dirname(name) for name in self._sidecars.values())})

    def is_taken(self, name: str) -> bool:
        """Whether a clip has a caption that is not vidqa's, which is to stay.

        One that no journal knows and that came after the first run here may be vidqa's, the journal's end being lost:
        that shows when the clip is captioned again, and only what says the same is taken for its own.
        """
        sidecar = self._sidecars.get(name)
        ours = self._written(sidecar) if sidecar is not None else None
        if sidecar is None or may_write(self._folder, sidecar, self._on_existing, ours):
            return False
        return ours is not None or is_older(self._folder, sidecar, self._begun_ns)

    def existing(self, name: str) -> str:
        """The text of the clip's sidecar."""
        sidecar = self._sidecars.get(name)
        return existing_text(self._folder, sidecar) if sidecar is not None else ""

    def planned(self, record: ClipRecord) -> ClipRecord:
        """The record with what its sidecar will be, for the journal."""
        sidecar = self._sidecars.get(record.name)
        if sidecar is None or record.status != "done":
            return record
        ours, text = self._written(sidecar), self._text(record)
        return replace(record, output=plan_write(self._folder, sidecar, text, self._on_existing, ours))

    def write(self, record: ClipRecord) -> None:
        """Write the sidecar as the record says; raises OSError."""
        if record.output is not None:
            settle(self._folder, record.output, self._text(record))

    def mended(self, record: ClipRecord) -> ClipRecord | None:
        """Make good what a crash left out; a new record where the sidecar is to be another than it says.

        That is so for another format, or another --prefix: nothing has to be captioned anew for them.
        """
        sidecar = self._sidecars.get(record.name)
        if sidecar is None:
            return None
        there, wanted = record.output, self.planned(record).output
        adds = self._on_existing in ("append", "prepend")
        if there is not None and there.name == sidecar and (adds or wanted is None or wanted.after == there.after):
            settle(self._folder, there, self._text(record))
            return None
        return replace(record, output=wanted) if wanted is not None else None

    def render(self, shard: Shard) -> Path | None:
        """Write the file for all clips, where there is one, from what all journals say now; raises OSError.

        Each shard does at its end, the last one with all there is.
        """
        if self._kind in SIDECARS:
            return None
        path = self._folder / f"captions.{self._kind}"
        pairs = ((record, self._task) for record in Ledger(self._folder).records(self._task.key))
        lines = (line.encode() for line in run_lines(self._kind, pairs, self._decorate))
        replace_file(path, lines, path.with_name(f".{path.name}.{shard.number}-of-{shard.count}.tmp"))
        sync_folder(self._folder)
        return path

    def _text(self, record: ClipRecord) -> str:
        return sidecar_text(self._kind, record, self._task, self._decorate)
