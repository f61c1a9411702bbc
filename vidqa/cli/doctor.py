"""`vidqa doctor`: is everything here that an answer needs, and which kernel will really run?

Renders what vidqa.diagnostics.health_checks finds; looks at nothing itself.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vidqa.cli.arguments import add_model_options, settings_for
from vidqa.cli.console import ExitCode, write_json
from vidqa.utils.safe_text import safe_line

if TYPE_CHECKING:
    from vidqa.diagnostics.health_checks import Check

_MARKS = {"ok": "✓", "bad": "✗", "absent": "–"}
_PLAIN_MARKS = {"ok": "ok", "bad": "BAD", "absent": "-"}  # for a terminal without these characters
_NAME_WIDTH = 27


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="look whether everything is here",
        description="Looks at driver, torch, device, FFmpeg, kernels and models. ✓ is fine, ✗ is broken, "
        "– is neither there nor needed.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)
    parser.add_argument("--flex", action="store_true", help="compile FlexAttention too (half a minute)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line per finding; returns 1 where an answer would be impossible."""
    from vidqa.diagnostics.health_checks import Subject, findings, passed, run_checks

    settings = settings_for(arguments)
    subject = Subject(settings.model, settings.device, arguments.flex)
    checks = []
    for check in run_checks(subject):
        checks.append(check)
        if not arguments.json:
            _show(check)
    if arguments.json:
        write_json(findings(checks, subject.device_or_none()))
    return ExitCode.OK if passed(checks) else ExitCode.FAILED


def _show(check: "Check") -> None:
    """One line as soon as it is known, and its remedy below."""
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
