"""`vidqa caption PATH…`: captions every clip of a folder, resumable."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.batch.caption_formats import RUN_FILES, SIDECARS
from vidqa.batch.sidecars import ON_EXISTING
from vidqa.cli.arguments import (
    add_plan_options,
    add_sampling_options,
    add_video_options,
    choose_model,
    make_config,
    make_request,
    settings_for,
)
from vidqa.cli.console import ExitCode, ReceivedSignal, StderrReporter, handle_signals
from vidqa.errors import Interrupted, UsageError, VidqaError
from vidqa.video.subtitle_files import AUTO, CHOICES, EMBEDDED, SUFFIXES, read_subtitle_file

if TYPE_CHECKING:
    from vidqa.batch.caption_run import CaptionRun, ClipSelector, RunPolicy
    from vidqa.batch.captioner import CaptionerConfig, EngineFactory
    from vidqa.batch.clip_record import Captioner, Clip, RunFingerprint
    from vidqa.batch.journal import Journal, JournalPlace
    from vidqa.batch.run_fingerprint import CheckpointChooser
    from vidqa.batch.shards import Shard
    from vidqa.cli.caption_progress import CaptionProgress


def add_caption_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa caption`."""
    parser.description = (
        "Caption every video and image of a folder, each once. A bad file does not stop the run, and the same command "
        "resumes it."
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", help="a folder or a file")
    _add_selection(parser.add_argument_group("clips"))
    _add_output(parser.add_argument_group("output"))
    _add_run(parser.add_argument_group("execution"))
    group = parser.add_argument_group("prompt")
    group.add_argument(
        "--prompt", metavar="TEXT|@FILE|NAME", default="short",
        help="a prompt, a file with one, or the name of one (short, detailed, tags, training, your own); may name "
        "{name} {stem} {parent} {duration} {width} {height} {fps} {existing} (default: short)",
    )  # fmt: skip
    group.add_argument("--segments", metavar="N|scenes", help="a caption for every N seconds, or for every scene")
    add_sampling_options(group)
    add_video_options(parser)
    add_plan_options(parser, sample="uniform")  # a scan of every clip costs as much as decoding it
    parser.set_defaults(run=run, video="")


def _add_selection(group: Any) -> None:
    group.add_argument("--recursive", "-r", action="store_true", help="include folders within folders")
    group.add_argument("--glob", metavar="PATTERN", help="only names that match, for example 'holiday*/*.mp4'")
    group.add_argument("--files-from", metavar="FILE", help="read paths from a file, one a line; - is stdin")
    group.add_argument("-0", "--null", action="store_true", help="paths in --files-from end with NUL")
    group.add_argument("--shard", metavar="I/N", help="only part I of N (default: from SLURM's array variables)")
    group.add_argument("--limit", type=int, metavar="N", help="at most N clips in this run")
    group.add_argument("--retry-failed", action="store_true", help="only clips that failed before")


def _add_output(group: Any) -> None:
    group.add_argument("-o", "--output", metavar="FOLDER", help="where captions go (default: beside the clips)")
    group.add_argument(
        "--format", choices=(*SIDECARS, *RUN_FILES), default="txt",
        help="a file beside each clip (txt, json, srt, vtt), or one for all (jsonl, csv); default txt",
    )  # fmt: skip
    group.add_argument(
        "--on-existing", choices=ON_EXISTING, default="skip",
        help="what to do with captions that vidqa did not write (default skip)",
    )  # fmt: skip
    group.add_argument("--prefix", default="", metavar="TEXT", help="before every caption")
    group.add_argument("--suffix", default="", metavar="TEXT", help="after every caption")


def _add_run(group: Any) -> None:
    group.add_argument("--batch", default="auto", metavar="auto|N", help="how many clips to answer at once")
    group.add_argument("--gpus", metavar="all|0,1", help="start a process for each of these GPUs")
    group.add_argument(
        "--ray", nargs="?", const="auto", metavar="ADDRESS", help="run on a Ray cluster (needs vidqa[ray])"
    )
    group.add_argument(
        "--allow-demo", action="store_true",
        help="let the demo model caption videos unlike those that it knows (default: such clips fail)",
    )  # fmt: skip
    group.add_argument("--max-failures", metavar="N|P%", help="stop when more clips than this failed")
    group.add_argument("--dry-run", action="store_true", help="find and plan clips without captioning")
    group.add_argument("--status", action="store_true", help="print the journal's totals without captioning")
    group.add_argument("--json", action="store_true", help="progress as JSON lines on stderr")
    group.add_argument("--quiet", action="store_true", help="print only errors on stderr")


@dataclass(frozen=True, slots=True)
class _Selection:
    """All clips of the run, those of this shard, the folder of captions and journal, and the clips' folder.

    `roots` are the real paths of the named folders where captions go beside the clips.
    """

    all_clips: "Sequence[Clip]"
    clips: "Sequence[Clip]"
    folder: Path
    shard: "Shard"
    source: Path
    roots: frozenset[Path] = frozenset()


def run(
    arguments: argparse.Namespace,
    make_engine: "EngineFactory | None" = None,
    choose: "CheckpointChooser | None" = None,
) -> int:
    """Run the command; returns the exit code. Tests pass their own engine and choice of checkpoint."""
    from vidqa.batch.journal import JournalPlace
    from vidqa.cli.caption_dry_run import show_plans, show_status

    reporter = StderrReporter(arguments.quiet or arguments.json)
    selection = _select(arguments, reporter)
    if arguments.status:
        return show_status(selection.folder, selection.all_clips, as_json=arguments.json)
    if not selection.all_clips:  # a shard may be empty
        raise UsageError("There is nothing to caption.", "Name a folder with videos or images; -r looks below it.")
    config, fingerprint = _configure(arguments, selection, reporter, choose)
    if arguments.dry_run:
        place = JournalPlace(selection.folder, selection.shard)
        selector = _selector(arguments, selection, config, fingerprint, place, _policy(arguments))
        return show_plans(selection.clips, config, selector, as_json=arguments.json)
    return _caption(arguments, selection, config, fingerprint, make_engine)


def _select(arguments: argparse.Namespace, reporter: StderrReporter) -> _Selection:
    from vidqa.batch.discover import discover, given_folders, read_list, relative_to_common_folder
    from vidqa.batch.shards import Shard, parse_shard, shard_clips, slurm_shard

    listed = read_list(arguments.files_from, nul=arguments.null) if arguments.files_from else []
    paths = [*arguments.paths, *listed]
    if not paths:
        raise UsageError("No folder and no file was named.", "For example: vidqa caption clips/")
    found = discover(arguments.paths, listed=listed, recursive=arguments.recursive, glob=arguments.glob)
    for note in found.notes:
        reporter.say(f"note: {note}")
    shard = parse_shard(arguments.shard) if arguments.shard else slurm_shard() or Shard()
    folders = given_folders(paths)
    source, relative_clips = relative_to_common_folder(folders, found.clips)
    if arguments.output:
        folder = _output_folder(arguments.output)
        return _Selection(found.clips, shard_clips(found.clips, shard), folder, shard, source)
    roots = frozenset(Path(os.path.realpath(folder)) for folder in folders)
    return _Selection(relative_clips, shard_clips(relative_clips, shard), source, shard, source, roots)


def _output_folder(named: str) -> Path:
    """Return the folder of `-o`; raises UsageError for a new one that is named as a file of captions."""
    kind = Path(named).suffix.lower().removeprefix(".")
    if kind in (*SIDECARS, *RUN_FILES) and not named.endswith(os.sep) and not os.path.isdir(named):
        raise UsageError(f"-o names a folder, and {named} is the name of a file.", f"Use -o FOLDER --format {kind}.")
    return Path(named)


def _configure(
    arguments: argparse.Namespace,
    selection: _Selection,
    reporter: StderrReporter,
    choose: "CheckpointChooser | None",
) -> "tuple[CaptionerConfig, RunFingerprint]":
    """Return the captioner's configuration and the run's fingerprint; raises VidqaError before a model is loaded."""
    from vidqa.batch.caption_requests import CaptionRequest
    from vidqa.batch.captioner import CaptionerConfig, PrefetchOptions
    from vidqa.batch.prompt_templates import find_prompt
    from vidqa.batch.run_fingerprint import choose_checkpoint, make_fingerprint
    from vidqa.batch.segmentation import parse_segments
    from vidqa.devices.host import usable_cores
    from vidqa.planner.request_checks import check_limits, check_text

    settings = settings_for(arguments)
    request = make_request(arguments, settings, "")
    request = replace(request, subs=_subtitles(request.subs, arguments, len(selection.all_clips)))
    check_limits(request)
    check_text("The prompt (--prompt)", arguments.prompt)
    segments = parse_segments(arguments.segments) if arguments.segments else None
    caption_request = CaptionRequest(find_prompt(arguments.prompt), request, segments)
    engine = make_config(arguments, settings, choose_model(arguments, settings, reporter))
    checkpoint = (choose or choose_checkpoint)(engine, caption_request, selection.clips)
    # One core is left to the decoder processes: OpenMP's threads spin while they wait for one that lost its core.
    # Captioning shows no tensor sizes, so they are not counted.
    engine = replace(engine, model=checkpoint.name, cpu_threads=max(usable_cores() - 1, 1), count_tensors=False)
    engine = replace(engine, refuse_out_of_domain=not arguments.allow_demo)
    fingerprint = make_fingerprint(caption_request, engine, checkpoint)
    prefetch = PrefetchOptions(clip_deadline_seconds=engine.clip_deadline_seconds)
    config = CaptionerConfig(engine, caption_request, fingerprint.key, _batch_size(arguments.batch), prefetch)
    return config, fingerprint


def _subtitles(subs: str, arguments: argparse.Namespace, clips: int) -> str:
    """Return the choice of subtitles; raises UsageError for one file for several clips, VideoError for one that is bad.

    Where captions themselves become .srt or .vtt files beside the clips, those are no subtitles.
    """
    if subs not in CHOICES:
        if clips != 1:
            raise UsageError(
                f"--subs {subs} is one file for {clips} clips.",
                "Put NAME.srt beside each clip and leave --subs away, or caption one clip.",
            )
        read_subtitle_file(subs)  # the run's fingerprint has its content: what is wrong with it is said before
    own = subs == AUTO and f".{arguments.format}" in SUFFIXES and not arguments.output
    return EMBEDDED if own else subs


def _selector(
    arguments: argparse.Namespace,
    selection: _Selection,
    config: "CaptionerConfig",
    fingerprint: "RunFingerprint",
    journal: "Journal | JournalPlace",
    policy: "RunPolicy",
) -> "ClipSelector":
    """Return what decides which clips the run takes; creates no file."""
    from vidqa.batch.caption_formats import CaptionAffixes
    from vidqa.batch.caption_run import ClipSelector
    from vidqa.batch.caption_writer import CaptionWriter
    from vidqa.batch.journal import JournalIndex

    index, names = JournalIndex(selection.folder), [clip.name for clip in selection.all_clips]
    affixes = CaptionAffixes(arguments.prefix, arguments.suffix)
    writer = CaptionWriter(
        journal, index, fingerprint, names, arguments.format, arguments.on_existing, affixes, selection.roots
    )
    return ClipSelector(
        fingerprint.key, policy, index, writer, "existing" in config.request.prompt.fields,
        config.request.request.subs == AUTO,
    )  # fmt: skip


def _policy(arguments: argparse.Namespace) -> "RunPolicy":
    from vidqa.batch.caption_run import RunPolicy

    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit} leaves no clip.", "Use 1 or more.")
    return RunPolicy(arguments.retry_failed, *_max_failures(arguments.max_failures), arguments.limit)


def _caption(
    arguments: argparse.Namespace,
    selection: _Selection,
    config: "CaptionerConfig",
    fingerprint: "RunFingerprint",
    make_engine: "EngineFactory | None",
) -> int:
    from vidqa.batch.caption_run import CaptionRun
    from vidqa.batch.journal import Journal
    from vidqa.cli.caption_progress import make_progress

    policy = _policy(arguments)
    progress = make_progress(len(selection.clips), policy.limit, as_json=arguments.json, quiet=arguments.quiet)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(selection.folder, selection.shard))
        if arguments.output:
            journal.bind_source(selection.source)
        captioner = stack.enter_context(closing(_make_captioner(arguments, config, progress, make_engine)))
        received = stack.enter_context(handle_signals(partial(_finish, captioner, progress), again=captioner.stop))
        selector = _selector(arguments, selection, config, fingerprint, journal, policy)
        caption_run = CaptionRun(selection.clips, fingerprint, selector, captioner, journal)
        _follow(caption_run, progress, received)
    if received.number is not None:
        return received.exit_code()
    return ExitCode.SOME_FAILED if caption_run.summary.failed else ExitCode.OK


def _follow(caption_run: "CaptionRun", progress: "CaptionProgress", received: ReceivedSignal) -> None:
    """Show a run's results, and its summary even if an error ends it."""
    rendered, summary = None, caption_run.summary
    try:
        try:
            for result in caption_run.events():
                progress.on_result(result)
        except Interrupted:
            summary.ended = "stopped; clips in work are done again next time"
        rendered = caption_run.render()
        if received.number is not None and not summary.ended:
            summary.ended = "stopped; the same command continues"
    except VidqaError:
        summary.ended = "an error"
        raise
    finally:
        progress.on_end(summary, rendered)


def _finish(captioner: "Captioner", progress: "CaptionProgress") -> None:
    """End after the current clips."""
    progress.on_stopping()
    captioner.finish()


def _make_captioner(
    arguments: argparse.Namespace,
    config: "CaptionerConfig",
    progress: "CaptionProgress",
    make_engine: "EngineFactory | None",
) -> "Captioner":
    """Return a captioner: in this process, with a process for each GPU, or on a Ray cluster."""
    if arguments.gpus and arguments.ray:
        raise UsageError("--gpus and --ray exclude each other.", "Ray finds the GPUs of its nodes by itself.")
    if arguments.ray:
        from vidqa.batch.ray_cluster import RayPool

        return RayPool(config.to_object(), config.run, arguments.ray)
    if arguments.gpus:
        from vidqa.batch.gpu_pool import GpuPool, find_gpus

        return GpuPool(config.to_object(), config.run, find_gpus(arguments.gpus))
    from vidqa.batch.captioner import SessionCaptioner, make_session

    return SessionCaptioner(config, make_engine or make_session, progress.on_event)


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text} is not a number of clips.", "Use auto, or 1 or more.")
    return int(text)


def _max_failures(text: str | None) -> tuple[int | None, float | None]:
    """Return a count, or a fraction from 0 to 1."""
    if text is None:
        return None, None
    number = text.removesuffix("%")
    if not number.isdecimal() or (text.endswith("%") and int(number) >= 100):
        raise UsageError(f"--max-failures {text} is neither a count nor a percentage.", "Use for example 10 or 5%.")
    return (None, int(number) / 100) if text.endswith("%") else (int(number), None)
