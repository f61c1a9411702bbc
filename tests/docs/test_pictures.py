"""The pictures in README and docs say what is so: their numbers agree, and the session names no options."""

import re
from pathlib import Path

from tests.tui.svg import words

ROOT = Path(__file__).parents[2]
GIB = 1024  # in MiB


def text_of(name: str) -> str:
    """All words of a picture in their order, without lines and blocks."""
    svg = (ROOT / "docs" / "img" / name).read_text(encoding="utf-8")
    return " ".join(word for word in words(svg) if re.search(r"\w|✗|›", word))


def mebibytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * {"MiB": 1, "GiB": GIB}[unit]


def test_the_picture_of_a_plan_agrees_with_itself() -> None:
    shown = text_of("session-plan.svg")
    refused = re.search(
        r"needs (\S+ GiB) for (\d+) frames of (\d+)x(\d+) .* in (\w+), and (\S+ GiB) are allowed", shown
    )
    assert refused is not None
    needed, frames, width, height, weights, allowed = refused.groups()
    assert re.search(rf"\bframes {frames}\b", shown), "the option has the number of the message"
    assert re.search(rf"\bsize {width}×{height}\b", shown) and re.search(rf"\bweights {weights}\b", shown)
    assert re.search(rf"\bbudget {allowed}\b", shown)
    totals = re.search(r"([\d.]+ GiB) planned ✗ ([\d.]+ [MG]iB) over", shown)
    assert totals is not None and totals[1] == needed
    shares = re.findall(r"(?:weights|KV cache|activations|runtime|margin) +([\d.]+ [MG]iB)", shown)
    assert len(shares) == 5
    assert abs(sum(map(mebibytes, shares)) - mebibytes(allowed) - mebibytes(totals[2])) < 0.1 * GIB


def test_the_session_names_no_options_of_the_command_line() -> None:
    assert not re.search(r"--[a-z]", text_of("session-plan.svg"))
