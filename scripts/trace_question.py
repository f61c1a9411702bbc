"""Count the files and functions of vidqa that one `vidqa ask` enters: `trace_question.py [--most-files N]`.

Runs the demo model on `assets/demo.mp4` in this process; the decoder process is not counted. Prints the lines and the
number of entered functions of each file, and the totals. Exits with 1 if there are more than `--most-files` files.
"""

import argparse
import contextlib
import io
import sys
import threading
from collections import defaultdict
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PACKAGE = str(ROOT / "vidqa")


def trace(arguments: list[str]) -> dict[str, set[CodeType]]:
    """Run a command line and return the entered functions by file, without the bodies of modules and classes."""
    entered: dict[str, set[CodeType]] = defaultdict(set)

    def enter(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & CO_OPTIMIZED and code.co_filename.startswith(PACKAGE):
            entered[code.co_filename].add(code)

    from vidqa.cli.main import run

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = run(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if status:
        raise SystemExit(f"vidqa {' '.join(arguments)} ended with {status}")
    return entered


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most-files", type=int)
    most = parser.parse_args().most_files
    entered = trace(["ask", str(ROOT / "assets/demo.mp4"), "what happens?", "--model", "demo", "--quiet"])
    lines = {path: Path(path).read_text(encoding="utf-8").count("\n") for path in entered}
    for path in sorted(entered):
        print(f"{lines[path]:5} {len(entered[path]):3}  {Path(path).relative_to(ROOT)}")
    functions = sum(map(len, entered.values()))
    print(f"{len(entered)} files, {sum(lines.values())} lines, {functions} functions")
    return int(most is not None and len(entered) > most)


if __name__ == "__main__":
    raise SystemExit(main())
