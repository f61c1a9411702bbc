"""What a terminal pastes when a file is dropped on it, back to a path. Looks whether it is there; opens nothing."""

import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vidqa.video.path_completion import is_video_name


def dropped_path(text: str) -> str | None:
    """The video that a dropped text names: a path, quoted or escaped or not, or a file:// address."""
    line = text.strip()
    if not line or "\n" in line:
        return None
    candidates = [line]
    if line.startswith("file://"):
        candidates = [unquote(urlsplit(line).path)]
    else:
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        candidates += words[:1] if len(words) == 1 else []
    return next((path for path in candidates if _is_video(path)), None)


def _is_video(path: str) -> bool:
    try:
        return is_video_name(path) and Path(path).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home to expand
        return False
