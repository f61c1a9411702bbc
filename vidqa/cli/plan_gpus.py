"""`vidqa plan --gpu all`: what to run on every card of the catalog; `--model all` prints every model's plan."""

import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vidqa.cli.console import ExitCode, StderrReporter, format_table, write_json
from vidqa.cli.json_output import SCHEMA_VERSION, plan_object
from vidqa.errors import ModelError
from vidqa.messages import base_name
from vidqa.types import Plan, VideoInfo
from vidqa.utils.safe_text import safe_text
from vidqa.utils.units import format_bytes, format_decimal_bytes, format_span

if TYPE_CHECKING:
    from vidqa.config import EngineConfig
    from vidqa.models.registry import Checkpoint
    from vidqa.planner.model_choice import GpuRow
    from vidqa.types import Device, Request

_EVERY_MODEL = "all"
_CARD_COLUMNS = 44
_GIB = 2**30
_HEADS = ("cards", "best model", "weights", "frames", "size", "first word", "memory", "head-room")


def print_gpus(as_json: bool, config: "EngineConfig", video: VideoInfo, request: "Request", *, named: bool) -> int:
    """Print the best plan for every GPU of the catalog, or with `--model all` every model's; returns the exit code."""
    from vidqa.devices.gpu_catalog import CATALOG, as_device
    from vidqa.models.registry import find_checkpoints
    from vidqa.planner.model_choice import gpu_model_matrix

    every = config.model == _EVERY_MODEL
    checkpoints = find_checkpoints(config.model, local=False) if named and not every else _known_checkpoints()
    table = gpu_model_matrix(checkpoints, [as_device(gpu) for gpu in CATALOG], video, request, config)
    if as_json:
        write_json(_matrix_object(table, config.weights))
        return ExitCode.OK
    lines = [*_matrix_lines(table), *_focus_lines(table, every=True)] if every else _best_lines(table)
    sys.stdout.write(safe_text("\n".join(lines)) + "\n")
    return ExitCode.OK


def _known_checkpoints() -> "list[Checkpoint]":
    """Return the models that run, as they are in the cache, or as they were released where their files are broken."""
    from vidqa.models.registry import find_checkpoints, runnable_checkpoints

    found: list[Checkpoint] = []
    for released in runnable_checkpoints():
        try:
            found += find_checkpoints(released.name, local=False)
        except ModelError as error:
            found.append(released)
            StderrReporter(False).say(f"{released.name} is planned as it was released: {error}")
    return found


def _best_lines(table: Sequence["GpuRow"]) -> list[str]:
    """Return a recommendation, and a row for the cards of one memory that run the same plan, the smallest first."""
    groups: dict[tuple[int, tuple[str, str, str, str]], list[tuple[Device, Plan]]] = {}
    without = [row.device for row in table if row.best is None]
    for row in sorted(table, key=lambda row: row.device.total_bytes):
        if row.best is not None:
            run_config = row.best.run_config
            size = f"{run_config.width}×{run_config.height}"
            key = (base_name(row.best.model), run_config.weights, str(run_config.frames), size)
            groups.setdefault((round(row.best.budget_bytes / _GIB), key), []).append((row.device, row.best))
    cells: list[Sequence[str]] = [_HEADS]
    for (_, same), cards in groups.items():
        first, *more = textwrap.wrap(", ".join(_card(device) for device, _ in cards), _CARD_COLUMNS)
        cells.append((first, *same, *_spreads(plan for _, plan in cards)))
        cells += [(line, *[""] * (len(_HEADS) - 1)) for line in more]
    plans = [plan for cards in groups.values() for _, plan in cards]
    one_model = len(table[0].plans) == 1
    lines = [f"{base_name(table[0].plans[0][0])} fits on {len(plans)} of {len(table)} cards"] if one_model else []
    lines += [*([] if one_model else _recommendation(plans)), ""]
    lines += format_table(cells, "<<<>>>>>")
    if without:
        lines.append(f"nothing fits on: {', '.join(map(_card, without))}")
    lines += _focus_lines(table, every=False)
    lines.append("Predicted, with all of a card's memory free. --model all shows every model, --gpu NAME one card.")
    return lines


def _focus_lines(table: Sequence["GpuRow"], *, every: bool) -> list[str]:
    """Return in how many of the plans a question selects the frames; where it is alike in all, as each of them says it.

    The plans are those of every model, or the best of each card.
    """
    rows = [[plan for _, plan in row.plans] if every else [row.best] for row in table]
    plans = [plan for row in rows for plan in row if plan is not None]
    said = {next((choice for choice in plan.choices if choice.startswith("focus: ")), "") for plan in plans}
    if said <= {""}:
        return []
    if len(said) == 1:
        return [*said]
    selecting, what = sum(bool(plan.candidates) for plan in plans), "plans" if every else "cards"
    where = "in" if every else "on"
    others = f"; --gpu NAME says why not {where} the others" if selecting < len(plans) else ""
    return [f"focus: a question selects the frames {where} {selecting} of {len(plans)} {what}{others}"]


def _spreads(plans: Iterable[Plan]) -> tuple[str, str, str]:
    """Return the time to the first word, the memory with its margin, and what is left of the budget."""
    found = list(plans)
    return (
        _spread([plan.seconds.first_token_seconds for plan in found], format_span),
        _spread([plan.required_bytes for plan in found], format_bytes),
        _spread([plan.budget_bytes - plan.required_bytes for plan in found], format_bytes),
    )


def _spread(values: Sequence[Any], shown: Any) -> str:
    """Return one value, or the smallest and the largest where they differ as shown; a shared unit once."""
    low, high = shown(min(values)), shown(max(values))
    if low == high:
        return str(high)
    number, _, unit = low.rpartition(" ")
    return f"{number}–{high}" if high.endswith(f" {unit}") else f"{low}–{high}"


def _recommendation(plans: Sequence[Plan]) -> list[str]:
    """Return the model that is best on most cards and how to get it, and the others that are best on some."""
    from vidqa.models.checkpoint import download_bytes
    from vidqa.models.hub import cached_names
    from vidqa.models.registry import released, short_name

    if not plans:
        return ["recommended: none of these models fits on any card of the catalog"]
    (first, count), *others = Counter(plan.model for plan in plans).most_common()
    how = (
        f" (vidqa pull {short_name(first)}, {format_decimal_bytes(download_bytes(first))})"
        if first in released()
        else ""
    )
    how = " (on this machine)" if first in cached_names() else how
    lines = [f"recommended: {base_name(first)}{how}: the best expected score on {count} of {len(plans)} cards"]
    lines += [f"             {base_name(name)} on {cards} (--model {short_name(name)})" for name, cards in others]
    return lines


def _card(device: "Device") -> str:
    return device.name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _matrix_lines(table: Sequence["GpuRow"]) -> list[str]:
    """Return each model's plan for every GPU: frames, size, precision and expected score."""
    heads = [base_name(model) for model, _ in table[0].plans]
    rows = [("", *heads), *((row.device.name, *(_cell(plan) for _, plan in row.plans)) for row in table)]
    return format_table(rows, "<" + ">" * len(heads))


def _cell(plan: Plan | None) -> str:
    if plan is None:
        return "–"
    run_config = plan.run_config
    return f"{run_config.frames} × {run_config.width}×{run_config.height} {run_config.weights} {plan.score:.0f}"


def _matrix_object(table: Sequence["GpuRow"], weights: str | None) -> dict[str, Any]:
    cells = [
        {
            "gpu": row.device.name, "model": model, "weights": weights or "auto",
            "best": plan is not None and plan is row.best, "plan": None if plan is None else plan_object(plan),
        }
        for row in table
        for model, plan in row.plans
    ]  # fmt: skip
    return {"schema_version": SCHEMA_VERSION, "matrix": cells}
