"""The model of a command where none is named or it is not on this machine: an offer to fetch one, or an error."""

import sys
from typing import TYPE_CHECKING

from vidqa.cli.console import StderrReporter, is_terminal
from vidqa.errors import Interrupted, ModelMissing
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_decimal_bytes, format_span

if TYPE_CHECKING:
    from pathlib import Path

    from vidqa.config import EngineConfig
    from vidqa.models.download import DownloadProgress
    from vidqa.planner.model_choice import UsableModel
    from vidqa.types import Device, Request

_DEMO = ("use the demo model (coloured shapes only)", "demo")
_STOP = ("stop here", None)


def offer_model(named: str | None, config: "EngineConfig", reporter: StderrReporter, request: "Request | None") -> str:
    """Return the named model, fetched if the person at the terminal agrees; without a name the first cached one.

    Without either, return the choice of the person among the models to fetch that fit the request's video, or a typical
    one. `auto` chooses among cached models: where none runs, it is as no name. Raises ModelMissing without a terminal,
    or where no choice is made.
    """
    from vidqa.models.registry import first_model

    if (found := first_model(named)) is not None:
        return found if named is None else _fetched(found, reporter)
    device = _device(config)
    offers = _usable(config, request, device)
    if not offers:
        raise ModelMissing(
            "No model is on this machine, and no released one fits the memory, time and disk of "
            f"{safe_line(device.name)}.",
            "`vidqa plan VIDEO` says what is missing; --max-wait and --vram set the limits. --model demo runs "
            "everywhere (coloured shapes only).",
        )
    if is_terminal():
        return _offer_models(offers, reporter)
    raise ModelMissing(
        "No model was named and none that runs is cached.",
        f"Fetch the best that fits here with `vidqa pull {offers[0].short_name}` "
        f"({format_decimal_bytes(offers[0].download_bytes)}), or add --model demo (coloured shapes only).",
    )


def assumed_model(
    named: str | None,
    config: "EngineConfig",
    reporter: StderrReporter,
    request: "Request",
    device: "Device | None" = None,
) -> str:
    """Return the model that would answer on a device, and say which it is where none was named. Fetches nothing."""
    from vidqa.models.checkpoint import download_bytes, suggested_model
    from vidqa.models.registry import first_model, short_name

    if named is not None:
        return named
    if cached := first_model(None):
        reporter.say(f"model: {cached} is assumed, the first one on this machine; --model names another")
        return cached
    offers = _usable(config, request, device or _device(config))
    name, rank = (offers[0].repository, "best that fits") if offers else (suggested_model(), "smallest")
    reporter.say(
        f"model: {name} is assumed, the {rank}; no model is on this machine, `vidqa pull {short_name(name)}` fetches "
        f"this one ({format_decimal_bytes(download_bytes(name))})"
    )
    return name


def fetch(repository: str, reporter: StderrReporter) -> "Path":
    """Download a model with its progress on stderr; Ctrl-C stops it, and a later call goes on from there."""
    from vidqa.models.download import partial_bytes, pull_model
    from vidqa.models.registry import short_name

    def show(progress: "DownloadProgress") -> None:
        reporter.bar(safe_line(repository), progress.done_bytes, progress.total_bytes, progress.text)

    reporter.say(f"fetching {repository}; Ctrl-C stops, and a later call goes on from there")
    try:
        return pull_model(repository, show)
    except KeyboardInterrupt:
        reporter.clear()
        here = format_decimal_bytes(partial_bytes(repository))
        raise Interrupted(
            f"Stopped: {here} of {repository} are here.", f"`vidqa pull {short_name(repository)}` goes on from there."
        ) from None
    finally:
        reporter.clear()


def _fetched(repository: str, reporter: StderrReporter) -> str:
    """Return a model, fetched first if it is not on this machine and the person at the terminal agrees."""
    from vidqa.models.checkpoint import check_supported, download_bytes
    from vidqa.models.registry import has_model, released

    if repository not in released() or has_model(repository):
        return repository  # what is wrong with it, if anything, is said when it is opened
    check_supported(released()[repository], repository)
    size = format_decimal_bytes(download_bytes(repository))
    choices = [(f"fetch it ({size}) and go on", repository), _DEMO, _STOP]
    return _chosen(f"{repository} is not on this machine.", choices, reporter)


def _device(config: "EngineConfig") -> "Device":
    from vidqa.devices.device import find_device

    return find_device(config.device)


def _usable(config: "EngineConfig", request: "Request | None", device: "Device") -> "list[UsableModel]":
    """Return the models to fetch that fit memory, time and disk, the best first."""
    from vidqa.models.hub import free_cache_bytes
    from vidqa.planner.model_choice import typical_video, usable_models
    from vidqa.types import Request
    from vidqa.video.reader import probe_facts

    if request is None:
        video, request = typical_video(), Request("", "what happens?")
    else:
        video = probe_facts(request.video, request.stream, request.picture_times, request.subs)
    return usable_models(video, request, config, device, download_limit=free_cache_bytes())


def _offer_models(offers: "list[UsableModel]", reporter: StderrReporter) -> str:
    """Offer the best model and the smallest download."""
    best, smallest = offers[0], min(offers, key=lambda one: one.download_bytes)
    choices: list[tuple[str, str | None]] = [(_offer_text(best, "the best that fits here"), best.repository)]
    if smallest is not best:
        choices.append((_offer_text(smallest, "the smallest"), smallest.repository))
    return _chosen("No model is on this machine.", [*choices, _DEMO, _STOP], reporter)


def _offer_text(offer: "UsableModel", rank: str) -> str:
    plan = offer.plan
    wait = format_span(plan.seconds.first_token_seconds)
    return (
        f"fetch {offer.repository}, {rank} ({format_decimal_bytes(offer.download_bytes)}), and go on\n"
        f"     {plan.run_config.frames} frames on {plan.device}, first word in about {wait}"
    )


def _chosen(title: str, choices: "list[tuple[str, str | None]]", reporter: StderrReporter) -> str:
    """Ask which; return the model, fetched. Enter takes the first; raises ModelMissing for none."""
    numbers = [str(number + 1) for number in range(len(choices))]
    lines = [f"  {number}  {text}" for number, (text, _) in zip(numbers, choices, strict=True)]
    sys.stderr.write("\n".join([title, *lines, f"Which one? [{'/'.join(numbers)}, Enter is 1] "]))
    sys.stderr.flush()
    while (line := sys.stdin.readline()).strip() not in {*numbers, ""}:
        sys.stderr.write(f"Type one of {', '.join(numbers)}: ")
        sys.stderr.flush()
    name = choices[int(line.strip() or "1") - 1][1] if line else None
    if name is None:
        raise ModelMissing("No model was chosen.", "Add --model demo, or name one with --model.")
    if name != "demo":
        fetch(name, reporter)
    return name
