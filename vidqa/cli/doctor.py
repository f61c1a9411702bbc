"""`vidqa doctor`: the results of vidqa.diagnostics.health_checks as text or JSON."""

import argparse
import sys
from typing import TYPE_CHECKING

from vidqa.cli.arguments import add_model_options, settings_for
from vidqa.cli.console import ExitCode, write_json
from vidqa.utils.safe_text import safe_line

if TYPE_CHECKING:
    from vidqa.diagnostics.health_checks import Check

_MARKS = {"ok": "✓", "bad": "✗", "absent": "–"}
_PLAIN_MARKS = {"ok": "ok", "bad": "BAD", "absent": "-"}  # for a terminal without these characters
_NAME_WIDTH = 27


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa doctor`."""
    parser.description = (
        "Checks driver, torch, device, FFmpeg, kernels and models. ✓ is fine, ✗ is broken, – is absent and not needed."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)
    parser.add_argument("--deep", action="store_true", help="load bitsandbytes and try Triton's kernels too (seconds)")
    parser.add_argument("--flex", action="store_true", help="compile FlexAttention too (half a minute)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each check; returns 1 if no question could be answered."""
    from vidqa.diagnostics.health_checks import Subject, findings, passed, run_checks

    settings = settings_for(arguments)
    subject = Subject(settings.model, settings.device, arguments.flex, deep=arguments.deep)
    checks = []
    for check in run_checks(subject):
        checks.append(check)
        if not arguments.json:
            _show(check)
    if arguments.json:
        write_json(findings(checks, subject.device_or_none()))
    return ExitCode.OK if passed(checks) else ExitCode.FAILED


def _show(check: "Check") -> None:
    """Print a check, and its remedy on a second line."""
    lines = [f"{_mark(check.status)} {safe_line(check.name):{_NAME_WIDTH}} {safe_line(check.detail)}"]
    if check.remedy:
        lines.append(f"{'':{_NAME_WIDTH + 2}} → {safe_line(check.remedy)}")
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    sys.stdout.flush()


def _mark(status: str) -> str:
    try:
        "✓✗–→".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _PLAIN_MARKS[status]
    return _MARKS[status]
