"""The screen as a small SVG: Textual's own picture without what every one repeats. Knows SVG, no app."""

import re

_RECT = re.compile(r'<rect fill="(#\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"[^/]*/>')
_SAME = 0.11  # coordinates are printed with one digit


def slim(svg: str) -> str:
    """The same picture without fonts from elsewhere, without clipping, blanks and rectangles cell by cell."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    svg = re.sub(r'<clipPath id="[\w-]+-line-\d+">.*?</clipPath>\s*', "", svg, flags=re.S)
    svg = re.sub(r' clip-path="url\(#[\w-]+-line-\d+\)"', "", svg)
    svg = re.sub(r"<text [^>]*>(&#160;|\s)*</text>", "", svg)
    svg = re.sub(r"terminal-\d+-", "", svg)
    svg = re.sub(r"(?:" + _RECT.pattern + r"\s*)+", _merged, svg)
    return re.sub(r"[ \t]+\n", "\n", svg.replace("</text><text", "</text>\n<text"))


def words(svg: str) -> list[str]:
    """The texts of a picture, for people who compare two."""
    return [text.replace("&#160;", " ").strip() for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)]


def _merged(run: re.Match[str]) -> str:
    """Neighbours of one colour as one rectangle."""
    rects: list[tuple[str, float, str, float, str]] = []
    for fill, x, y, width, height in _RECT.findall(run.group()):
        before = rects[-1] if rects else None
        if before and (before[0], before[2]) == (fill, y) and abs(before[1] + before[3] - float(x)) < _SAME:
            rects[-1] = (fill, before[1], y, before[3] + float(width), height)
        else:
            rects.append((fill, float(x), y, float(width), height))
    return "\n".join(
        f'<rect fill="{fill}" x="{x:g}" y="{y}" width="{round(width, 1):g}" height="{height}" '
        'shape-rendering="crispEdges"/>'
        for fill, x, y, width, height in rects
    )
