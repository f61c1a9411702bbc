"""The section about the tests that need a GPU: a pytest process, with a row for each test."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from benchlib.bench import Bench
from benchlib.rows import ROOT, Row
from benchlib.sections import Skipped

_RESULT = re.compile(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_NOT_IMPORTED = re.compile(r"ERROR (tests/[^\s:]+\.py)(?: - (.*))?$")
_ENDS = {"PASSED": 1.0, "XPASS": 1.0, "XFAIL": 1.0, "FAILED": 0.0, "ERROR": 0.0}
_FOUND = (0, 1, 5)  # pytest's exit codes: all passed, some failed, none there


def needs_cuda_files() -> list[str]:
    """Return the test files with `needs_cuda` tests by their path in the checkout; those with many processes last."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    names = [str(path.relative_to(ROOT)) for path in paths if "pytest.mark.needs_cuda" in path.read_text("utf-8")]
    return sorted(names, key=lambda name: "sweep" in name)


def device_tests(bench: Bench) -> Iterator[Row]:
    """Run the tests. In a rehearsal, a test without a GPU is skipped, not failed."""
    if find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    bench.drop_model()
    required = {} if bench.tiny else {"VIDQA_REQUIRE": "cuda"}
    files = needs_cuda_files()[-1:] if bench.tiny else needs_cuda_files()
    command = [sys.executable, "-m", "pytest", "-v", "-m", "needs_cuda", "--color=no", "-p", "no:cacheprovider",
               "--continue-on-collection-errors", "-W", "default", *files]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | required, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield from _rows(process)
    finally:
        process.kill()
        process.wait()


def _rows(process: "subprocess.Popen[str]") -> Iterator[Row]:
    """Yield a row per finished test, then the numbers of passed, failed and skipped tests."""
    ends, last = list[float | None](), ""
    assert process.stdout is not None
    for line in process.stdout:
        row = row_of(line)
        last = line.strip() or last
        if row is not None:
            ends.append(row.value)
            yield row
    if process.wait() not in _FOUND:
        raise RuntimeError(f"pytest ended with exit code {process.returncode}: {last}")
    shared: dict[str, Any] = {"unit": "tests", "formula": "", "note": last}
    yield Row("tests", "passed", ends.count(1.0), **shared)
    yield Row("tests", "failed", ends.count(0.0), **shared)
    yield Row("tests", "skipped", ends.count(None), **shared)


def row_of(line: str) -> Row | None:
    """Return the row of a line of pytest about a test or a file that cannot be imported, else None."""
    if match := _RESULT.match(line):
        return Row("tests", match[1], _ENDS.get(match[2]), "", "1 where it passed", note=match[2].lower())
    if match := _NOT_IMPORTED.match(line):
        return Row("tests", match[1], 0.0, "", "1 where it passed", note=f"cannot be imported: {match[2] or ''}")
    return None
