"""Writes the captions of a run: a sidecar for each clip, or one file for all."""

import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from vidqa.batch import sidecars
from vidqa.batch.caption_formats import SIDECARS, CaptionAffixes, run_lines, sidecar_text
from vidqa.batch.clip_record import ClipRecord, RunFingerprint, utc_now
from vidqa.batch.journal import Journal, JournalIndex, JournalPlace, render_lock
from vidqa.batch.sidecars import OnExisting
from vidqa.utils.atomic_write import replace_file, sync_folder


class CaptionWriter:
    """The output files of a run, in its journal's folder."""

    def __init__(
        self,
        journal: Journal | JournalPlace,
        index: JournalIndex,
        run: RunFingerprint,
        names: Iterable[str],
        format_name: str = "txt",
        on_existing: OnExisting = "skip",
        affixes: CaptionAffixes = CaptionAffixes(),  # noqa: B008
        roots: Collection[Path] = (),
    ) -> None:
        """`names` are those of all clips, other shards' too; `roots` the real paths of the folders that were named.

        Raises UsageError if the files cannot be written.
        """
        self._folder, self._shard, self._created_ns = journal.folder, journal.shard, journal.created_ns
        self._index, self._run = index, run
        self._format, self._on_existing, self._affixes = format_name, on_existing, affixes
        self._roots = frozenset(roots)
        self._sidecars = sidecars.sidecar_names(names, f".{format_name}") if format_name in SIDECARS else {}
        sidecars.check_mode(f".{format_name}", on_existing)
        folders = (self._folder / os.path.dirname(name) for name in self._sidecars.values())
        sidecars.check_writable({self._folder, *folders})

    def sidecar(self, name: str) -> str | None:
        """Return the name of a clip's sidecar, None if the format has none."""
        return self._sidecars.get(name)

    def check_sidecar(self, name: str) -> None:
        """Raise UsageError if a clip's sidecar would leave the folder."""
        if (sidecar := self.sidecar(name)) is not None:
            sidecars.check_inside(self._folder, sidecar, self._roots)

    def has_foreign_caption(self, name: str) -> bool:
        """Return whether a clip has a caption that vidqa did not write and must not replace.

        A sidecar without a journaled hash that is newer than the folder's first run may be vidqa's, with the end of
        the journal lost. Then the clip is captioned again, and the sidecar is replaced only by equal content.
        """
        sidecar = self.sidecar(name)
        own_hash = self._index.last_hash(sidecar) if sidecar is not None else None
        if sidecar is None or sidecars.may_write(self._folder, sidecar, self._on_existing, own_hash, self._roots):
            return False
        return own_hash is not None or sidecars.is_older(self._folder, sidecar, self._created_ns, self._roots)

    def existing_text(self, name: str) -> str:
        """Return the text of a clip's sidecar, empty if there is none."""
        sidecar = self.sidecar(name)
        return sidecars.existing_text(self._folder, sidecar, self._roots) if sidecar is not None else ""

    def with_planned_write(self, record: ClipRecord) -> ClipRecord:
        """Return the record with its sidecar's planned write as `output`, for the journal."""
        sidecar = self.sidecar(record.name)
        if sidecar is None or record.status != "done":
            return record
        own_hash, text = self._index.last_hash(sidecar), self._text(record)
        planned = sidecars.plan_write(self._folder, sidecar, text, self._on_existing, own_hash, self._roots)
        return replace(record, output=planned)

    def write(self, record: ClipRecord) -> bool:
        """Carry out the record's planned write; raises OSError.

        Returns False if its caption is due and not in the sidecar, which was changed or removed since it was examined.
        """
        if record.name not in self._sidecars or record.status != "done":
            return True
        if record.output is None:
            return False
        written = sidecars.apply_write(self._folder, record.output, self._text(record), self._roots)
        return written in ("unchanged", "written")

    def repair(self, record: ClipRecord) -> ClipRecord | None:
        """Write a sidecar that a crash prevented; return a new record if the sidecar is to differ from the journal's.

        It differs for another format, another --prefix or after a run with another prompt; none needs a new caption.
        The new record has the present time: of two journals the later write counts.
        """
        sidecar = self.sidecar(record.name)
        if sidecar is None:
            return None
        present, planned = record.output, self.with_planned_write(record).output
        adds = self._on_existing in ("append", "prepend")
        if (
            present is not None
            and present.name == sidecar
            and (adds or planned is None or planned.after == present.after == self._index.last_hash(sidecar))
        ):
            self.write(record)
            return None
        return replace(record, output=planned, at=utc_now()) if planned is not None else None

    def render(self) -> Path | None:
        """Write the file for all clips, if the format has one, from all journals as they are now; raises OSError.

        Every shard does so at its end; the last one has all records.
        """
        if self._format in SIDECARS:
            return None
        path = self._folder / f"captions.{self._format}"
        temporary = path.with_name(f".{path.name}.{self._shard.number}-of-{self._shard.count}.tmp")
        with render_lock(self._folder):
            pairs = ((record, self._run) for record in JournalIndex(self._folder).records(self._run.key))
            lines = (line.encode() for line in run_lines(self._format, pairs, self._affixes))
            replace_file(path, lines, temporary)
            sync_folder(self._folder)
        return path

    def _text(self, record: ClipRecord) -> str:
        return sidecar_text(self._format, record, self._run, self._affixes)
