"""Times in an answer as links of our own. Text in, Markdown out."""

from vidqa.history.timestamps import find_timestamps

SCHEME = "vidqa:"


def with_links(text: str) -> str:
    """The Markdown with every time that it names turned into a link."""
    pieces, place = [], 0
    for moment in find_timestamps(text):
        pieces += [text[place : moment.start], f"[{text[moment.start : moment.end]}]({SCHEME}{moment.seconds:g})"]
        place = moment.end
    return "".join([*pieces, text[place:]])


def linked_seconds(address: str) -> float | None:
    """The time that a link of ours leads to; None for any other address."""
    try:
        return float(address.removeprefix(SCHEME)) if address.startswith(SCHEME) else None
    except ValueError:
        return None
