"""A long answer in sections: split where nothing can change any more, folded out of view."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tui.scripted import AppHarness, asked, part, pilot_test, says, screen_text, until
from vidqa.tui.widgets.answer_text import AnswerSection, split_markdown
from vidqa.tui.widgets.transcript import Transcript

PARAGRAPHS = [f"Paragraph {number} says what happened at 0:{number:02d}.\n\n" for number in range(60)]
PIECES = ("word ", "\n", "\n\n", "- one", "2", ". two", "# head", "```\n", "> ", "    ", "|a|b|\n|-|-|\n", "---", "<p>")


def test_short_text_is_one_piece() -> None:
    assert split_markdown("one\n\ntwo") == ["one\n\ntwo"]


def test_pieces_are_of_some_lines_and_begin_with_a_block() -> None:
    pieces = split_markdown("".join(PARAGRAPHS))
    assert [piece.count("\n\n") for piece in pieces] == [6] * 10
    assert all(piece.startswith("Paragraph") for piece in pieces)


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        ("```\n" + "a line\n\n" * 20 + "```\n\n", "Behind it", 2),
        ("```\n" + "a line\n\n" * 20, "still code", 1),
        ("- item\n" * 20 + "\n", "2", 1),  # may become the next item
        ("- item\n" * 20 + "\n", "A paragraph", 2),
        ("> said\n" * 20 + "\n", "A paragraph", 1),
        ("a line\n" * 20, "# head", 1),  # "#head" would go on with the paragraph
        ("a line\n" * 20 + "\n", "# head", 2),
    ],
)
def test_no_cut_where_the_block_before_can_still_change(before: str, after: str, count: int) -> None:
    assert len(split_markdown(before + after)) == count


@given(st.lists(st.sampled_from(PIECES), max_size=120))
def test_a_piece_that_was_cut_stays_whatever_comes(words: list[str]) -> None:
    text = "".join(words)
    whole = split_markdown(text)
    assert "".join(whole) == text
    for end in range(0, len(text), 17):
        *complete, _ = split_markdown(text[:end])
        assert whole[: len(complete)] == complete


@pilot_test
async def test_a_long_answer_is_folded_out_of_view_and_whole_in_view() -> None:
    async with AppHarness(says(*PARAGRAPHS, "The end.")).running() as pilot:
        await asked(pilot)
        transcript = part(pilot, Transcript)
        await until(pilot, lambda: "The end." in screen_text(pilot.app), "the end is in view")
        await until(pilot, lambda: transcript.query(AnswerSection).first().folded, "the beginning is folded")
        height = transcript.virtual_size.height
        transcript.scroll_home(animate=False)
        await until(pilot, lambda: "Paragraph 0 says" in screen_text(pilot.app), "the beginning is in view")
        await until(pilot, lambda: transcript.query(AnswerSection).last().folded, "the end is folded")
        assert transcript.virtual_size.height == height
        await pilot.resize_terminal(60, 20)
        transcript.scroll_end(animate=False)
        await until(pilot, lambda: "The end." in screen_text(pilot.app), "the end is in view at another width")
        assert "vidqa:59" in list(transcript.query(AnswerSection))[-2].source
        assert "".join(section.text for section in transcript.query(AnswerSection)) == "".join(
            [*PARAGRAPHS, "The end."]
        )
