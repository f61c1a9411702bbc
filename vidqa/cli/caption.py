"""`vidqa caption PATH…`: a caption for every clip of a folder, resumable.

Arguments become clips, a task and a captioner; the run's events become progress and a summary.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.batch.caption_formats import RUN_FILES, SIDECARS
from vidqa.batch.sidecars import ON_EXISTING
from vidqa.cli.arguments import add_plan_options, add_video_options, make_config, make_request, settings_for
from vidqa.cli.console import ExitCode, StderrReporter
from vidqa.cli.signals import Received, heeding_signals
from vidqa.errors import Interrupted, UsageError, VidqaError

if TYPE_CHECKING:
    from vidqa.batch.caption_run import CaptionRun
    from vidqa.batch.captioner import EngineFactory
    from vidqa.batch.captioner_config import CaptionerConfig
    from vidqa.batch.clip_record import Captioner, Clip, RunFingerprint
    from vidqa.batch.run_fingerprint import Chooser
    from vidqa.batch.shards import Shard
    from vidqa.cli.caption_progress import Progress


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "caption",
        help="caption folders of videos and images",
        description="Captions every video and image of a folder: each once, resumable, a bad file stops nothing.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", help="a folder or a file")
    _add_selection(parser.add_argument_group("which clips"))
    _add_output(parser.add_argument_group("what is written"))
    _add_run(parser.add_argument_group("how it runs"))
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--prompt", metavar="TEXT|@FILE|NAME", default="short",
        help="a prompt, a file with one, or the name of one (short, detailed, tags, training, your own); may name "
        "{name} {stem} {parent} {duration} {width} {height} {fps} {existing} (default: short)",
    )  # fmt: skip
    group.add_argument("--segments", metavar="N|scenes", help="a caption for every N seconds, or for every scene")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default 1)")
    group.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
    add_video_options(parser)
    add_plan_options(parser)
    parser.set_defaults(run=run, video="")


def _add_selection(group: Any) -> None:
    group.add_argument("--recursive", "-r", action="store_true", help="folders within folders too")
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
        help="what happens to captions that vidqa did not write (default skip)",
    )  # fmt: skip
    group.add_argument("--prefix", default="", metavar="TEXT", help="before every caption")
    group.add_argument("--suffix", default="", metavar="TEXT", help="behind every caption")


def _add_run(group: Any) -> None:
    group.add_argument("--batch", default="auto", metavar="auto|N", help="clips that are answered at once")
    group.add_argument("--gpus", metavar="all|0,1", help="a process for each of these GPUs")
    group.add_argument(
        "--ray", nargs="?", const="auto", metavar="ADDRESS", help="run on a Ray cluster (needs vidqa[ray])"
    )
    group.add_argument("--max-failures", metavar="N|P%", help="stop when more clips failed")
    group.add_argument("--dry-run", action="store_true", help="find and plan, caption nothing")
    group.add_argument("--status", action="store_true", help="say what the journal holds, caption nothing")
    group.add_argument("--json", action="store_true", help="progress as JSON lines on stderr")
    group.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")


@dataclass(frozen=True, slots=True)
class _Selection:
    """All clips of the run, those of this shard, the folder for captions and journal, and the one the clips are in."""

    everything: "Sequence[Clip]"
    clips: "Sequence[Clip]"
    folder: Path
    shard: "Shard"
    source: Path


def run(
    arguments: argparse.Namespace, make_engine: "EngineFactory | None" = None, choose: "Chooser | None" = None
) -> int:
    """Caption; returns the exit code. A test gives what makes the session, and what finds the model."""
    from vidqa.cli.caption_dry_run import show_plans, show_status

    talk = StderrReporter(arguments.quiet or arguments.json)
    selection = _select(arguments, talk)
    if arguments.status:
        return show_status(selection.folder, selection.everything, as_json=arguments.json)
    if not selection.everything:  # a shard may have none
        raise UsageError("There is nothing to caption.", "Name a folder with videos or images; -r looks below it.")
    setup, task = _setup(arguments, selection, talk, choose)
    if arguments.dry_run:
        return show_plans(selection.clips, setup, as_json=arguments.json)
    return _caption(arguments, selection, setup, task, make_engine)


def _select(arguments: argparse.Namespace, talk: StderrReporter) -> _Selection:
    from vidqa.batch.discover import based, discover, read_list
    from vidqa.batch.shards import Shard, parse_shard, shard_clips, slurm_shard

    listed = read_list(arguments.files_from, nul=arguments.null) if arguments.files_from else []
    paths = [*arguments.paths, *listed]
    if not paths:
        raise UsageError("No folder and no file was named.", "For example: vidqa caption clips/")
    found = discover(arguments.paths, listed=listed, recursive=arguments.recursive, glob=arguments.glob)
    for note in found.notes:
        talk.say(f"note: {note}")
    shard = parse_shard(arguments.shard) if arguments.shard else slurm_shard() or Shard()
    source, beside = based(paths, found.clips)
    folder, clips = (Path(arguments.output), found.clips) if arguments.output else (source, beside)
    return _Selection(clips, shard_clips(clips, shard), folder, shard, source)


def _setup(
    arguments: argparse.Namespace, selection: _Selection, talk: StderrReporter, choose: "Chooser | None"
) -> "tuple[CaptionerConfig, RunFingerprint]":
    """What is asked of which model; raises VidqaError before anything is read or loaded."""
    from vidqa.batch.caption_requests import CaptionRequest
    from vidqa.batch.captioner import PreparedClips
    from vidqa.batch.captioner_config import CaptionerConfig
    from vidqa.batch.prompt_templates import find_prompt
    from vidqa.batch.run_fingerprint import choose_checkpoint, make_task
    from vidqa.batch.segmentation import parse_segments
    from vidqa.cli.default_model import choose_model
    from vidqa.devices.host import usable_cores
    from vidqa.planner.request_checks import check_limits, check_text

    settings = settings_for(arguments)
    request = make_request(arguments, settings, "")
    check_limits(request)
    check_text("The prompt (--prompt)", arguments.prompt)
    segments = parse_segments(arguments.segments) if arguments.segments else None
    asking = CaptionRequest(find_prompt(arguments.prompt), request, segments)
    config = make_config(arguments, settings, choose_model(settings.model, talk))
    checkpoint = (choose or choose_checkpoint)(config, asking, selection.clips)
    # Those who decode need a core: threads that wait for each other by spinning take it from them many times over.
    cores = max(usable_cores() - 1, 1)
    # No line of caption's shows tensors, so none are counted.
    config = replace(config, model=checkpoint.name, cpu_threads=cores, count_tensors=False)
    reading = PreparedClips(clip_deadline_seconds=config.clip_deadline_seconds)
    task = make_task(asking, config, checkpoint)
    return CaptionerConfig(config, asking, task.key, _batch(arguments.batch), reading), task


def _caption(
    arguments: argparse.Namespace,
    selection: _Selection,
    setup: "CaptionerConfig",
    task: "RunFingerprint",
    make_engine: "EngineFactory | None",
) -> int:
    from vidqa.batch.caption_formats import Decorate
    from vidqa.batch.caption_run import CaptionRun, RunPolicy
    from vidqa.batch.caption_writer import CaptionWriter
    from vidqa.batch.journal import Journal, Ledger
    from vidqa.cli.caption_progress import make_progress

    policy = RunPolicy(
        arguments.retry_failed, *_most_failures(arguments.max_failures), _at_least_one("--limit", arguments.limit)
    )
    decorate = Decorate(arguments.prefix, arguments.suffix)
    names = [clip.name for clip in selection.everything]
    progress = make_progress(len(selection.clips), as_json=arguments.json, quiet=arguments.quiet)
    with ExitStack() as held:
        journal = held.enter_context(Journal(selection.folder, selection.shard))
        if arguments.output:
            journal.claim(selection.source)
        captioner = held.enter_context(closing(_captioner(arguments, setup, progress, make_engine)))
        received = held.enter_context(heeding_signals(partial(_finish, captioner, progress), again=captioner.stop))
        ledger = Ledger(selection.folder)
        output = CaptionWriter(
            selection.folder, arguments.format, arguments.on_existing, decorate, task, names, ledger.written,
            journal.begun_ns,
        )  # fmt: skip
        wants = "existing" in setup.asking.prompt.fields
        running = CaptionRun(selection.clips, task, policy, captioner, journal, ledger, output, wants_existing=wants)
        _follow(running, progress, received)
    if received.number is not None:
        return received.exit_code()
    return ExitCode.SOME_FAILED if running.summary.failed else ExitCode.OK


def _follow(running: "CaptionRun", progress: "Progress", received: Received) -> None:
    """Show a run to its end, and its sum also where an error ends it: what was captioned by then is kept."""
    rendered, summary = None, running.summary
    try:
        try:
            for told in running.events():
                progress.settle(told)
        except Interrupted:
            summary.ended = "stopped at once; what was begun is done again next time"
        rendered = running.render()
        if received.number is not None and not summary.ended:
            summary.ended = "stopped; the same command goes on"
    except VidqaError:
        summary.ended = "an error"
        raise
    finally:
        progress.end(summary, rendered)


def _finish(captioner: "Captioner", progress: "Progress") -> None:
    """End with the current clips."""
    progress.stopping()
    captioner.finish()


def _captioner(
    arguments: argparse.Namespace, setup: "CaptionerConfig", progress: "Progress", make_engine: "EngineFactory | None"
) -> "Captioner":
    """What captions: this process, one for each GPU, or a Ray cluster."""
    if arguments.gpus and arguments.ray:
        raise UsageError("--gpus and --ray exclude each other.", "Ray finds the GPUs of its nodes by itself.")
    if arguments.ray:
        from vidqa.batch.ray_cluster import RayPool

        return RayPool(setup.to_object(), setup.task_key, arguments.ray)
    if arguments.gpus:
        from vidqa.batch.gpu_pool import GpuPool
        from vidqa.batch.gpu_selection import find_gpus

        return GpuPool(setup.to_object(), setup.task_key, find_gpus(arguments.gpus))
    return setup.runner(make_engine, tell=progress.hear)


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text} is not a number of clips.", "Use auto, or 1 or more.")
    return int(text)


def _most_failures(text: str | None) -> tuple[int | None, float | None]:
    """A count, or a share from 0 to 1."""
    if text is None:
        return None, None
    number = text.removesuffix("%")
    if not number.isdecimal() or (text.endswith("%") and int(number) >= 100):
        raise UsageError(f"--max-failures {text} is no count and no share.", "Use for example 10 or 5%.")
    return (None, int(number) / 100) if text.endswith("%") else (int(number), None)


def _at_least_one(flag: str, count: int | None) -> int | None:
    if count is not None and count < 1:
        raise UsageError(f"{flag} {count} leaves no clip.", "Use 1 or more.")
    return count
