"""The pictures in README and docs say what is so: their numbers agree, and the session names no options."""

import re
from pathlib import Path

from tests.tui.svg import words

ROOT = Path(__file__).parents[2]
GIB = 1024  # in MiB


ANSWER, PLAN = ROOT / "assets" / "session-answer.svg", ROOT / "docs" / "img" / "session-plan.svg"


def text_of(path: Path) -> str:
    """All words of a picture in their order, without lines and blocks."""
    svg = path.read_text(encoding="utf-8")
    return " ".join(word for word in words(svg) if re.search(r"\w|✗|›", word))


def mebibytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * {"MiB": 1, "GiB": GIB}[unit]


def planned_parts(shown: str) -> float:
    """The sum in MiB of the five parts that the legend of the budget bar has."""
    parts = re.findall(r"(?:weights|KV cache|activations|runtime|margin) +([\d.]+ [MG]iB)", shown)
    assert len(parts) == 5
    return sum(map(mebibytes, parts))


def test_the_picture_of_a_plan_agrees_with_itself() -> None:
    shown = text_of(PLAN)
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
    assert abs(planned_parts(shown) - mebibytes(allowed) - mebibytes(totals[2])) < 0.1 * GIB


def test_the_picture_of_an_answer_has_the_words_of_the_screen_and_its_figures_agree() -> None:
    shown = text_of(ANSWER)
    totals = re.search(r"([\d.]+ [MG]iB) used ([\d.]+ [MG]iB) planned ([\d.]+ [MG]iB) free", shown)
    budget = re.search(r"\bbudget ([\d.]+ [MG]iB) \(auto\)", shown)
    assert totals is not None and budget is not None
    used, planned, free = totals.groups()
    assert re.search(rf"\bothers +{used}", shown) and abs(planned_parts(shown) - mebibytes(planned)) < 1
    assert abs(mebibytes(planned) + mebibytes(free) - mebibytes(budget[1])) < 0.2 * GIB
    frames = re.search(r"(\d+) frames of \d+×\d+", shown)
    assert frames is not None
    assert len(re.findall(rf"▸ answer in [\d.]+ s · {frames[1]} frames · \d+ tokens", shown)) == 2
    for said in (
        "› what happens? ",
        "first a red circle moves right, then a blue square moves up.",
        " Quit ",
        " Help ",
    ):
        assert said in shown


def test_the_session_names_no_options_of_the_command_line() -> None:
    assert not re.search(r"--[a-z]", text_of(PLAN))
