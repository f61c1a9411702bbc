"""The conscience of the code base: short files, short functions."""

import ast
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "vidqa").rglob("*.py"))
ALL = SOURCES + sorted((ROOT / "scripts").rglob("*.py")) + sorted((ROOT / "tests").rglob("*.py"))


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and lines of every function."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in nodes if isinstance(node, kinds)]


def test_no_file_is_above_400_lines() -> None:
    long = {str(path): lines for path in ALL if (lines := path.read_text(encoding="utf-8").count("\n")) > 400}
    assert not long


def test_no_function_is_above_60_lines() -> None:
    long = {f"{path}:{name}": lines for path in ALL for name, lines in functions(path) if lines > 60}
    assert not long


def test_the_median_function_is_at_most_8_lines() -> None:
    assert median(lines for path in SOURCES for _, lines in functions(path)) <= 8


def test_every_file_says_what_it_knows() -> None:
    silent = [path for path in ALL if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent
