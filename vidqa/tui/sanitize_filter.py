"""The last gate before the terminal: what would be obeyed instead of drawn is not sent.

Whoever draws untrusted text makes it visible with safe_text; this is for what is drawn as it is, such as
the text that a person edits.
"""

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from vidqa.utils.safe_text import safe_text


class SanitizeFilter(LineFilter):
    """Applied to every line that is drawn. The codes have no width, so nothing moves without them."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments without controls and reordering; pictures' own codes are marked as such, and stay."""
        return [
            segment if segment.control or segment.text.isprintable() else segment._replace(text=_plain(segment.text))
            for segment in segments
        ]


def _plain(text: str) -> str:
    return "".join(character for character in text if character not in "\n\t" and safe_text(character) == character)
