"""Textual's SVG screenshots, made smaller for the repository."""

import re

_RECT = re.compile(r'<rect fill="(#\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"[^/]*/>')
_SAME = 0.11  # coordinates are printed with one digit


def slim(svg: str) -> str:
    """Return the same picture without remote fonts, clipping and blanks, and with neighbouring rectangles merged."""
    svg = re.sub(r"@font-options \{.*?\}\s*", "", svg, flags=re.S)
    svg = re.sub(r'<clipPath id="[\w-]+-line-\d+">.*?</clipPath>\s*', "", svg, flags=re.S)
    svg = re.sub(r' clip-path="url\(#[\w-]+-line-\d+\)"', "", svg)
    svg = re.sub(r"<text [^>]*>(&#160;|\s)*</text>", "", svg)
    svg = re.sub(r"terminal-\d+-", "", svg)
    svg = re.sub(r"(?:" + _RECT.pattern + r"\s*)+", _merged, svg)
    return re.sub(r"[ \t]+\n", "\n", svg.replace("</text><text", "</text>\n<text"))


def words(svg: str) -> list[str]:
    """Return the texts of a picture."""
    return [text.replace("&#160;", " ").strip() for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)]


def _merged(match: re.Match[str]) -> str:
    """Return neighbours of one colour as one rectangle."""
    rects: list[tuple[str, float, str, float, str]] = []
    for fill, x, y, width, height in _RECT.findall(match.group()):
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
