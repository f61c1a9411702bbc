"""Structure of the code base: sizes, docstrings, unique names, and imports without circles."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "vidqa").rglob("*.py"))
ALL = SOURCES + sorted((ROOT / "scripts").rglob("*.py")) + sorted((ROOT / "tests").rglob("*.py"))
MOST_TOP_LEVEL_MODULES = 5
# That `vidqa ask` enters functions of; four of them are what model families share, one lists the specs of a family that
# the demo model is not of, and five keep the question in the history.
MOST_FILES_OF_A_QUESTION = 95


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and number of lines of every function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


def repeated(names: Iterator[str]) -> set[str]:
    """Return the names that come more than once."""
    return {name for name, count in Counter(names).items() if count > 1}


def test_no_file_is_above_400_lines() -> None:
    long = {str(path): lines for path in ALL if (lines := path.read_text(encoding="utf-8").count("\n")) > 400}
    assert not long


def test_no_function_is_above_60_lines() -> None:
    long = {f"{path}:{name}": lines for path in ALL for name, lines in functions(path) if lines > 60}
    assert not long


def test_the_median_function_is_at_most_8_lines() -> None:
    assert median(lines for path in SOURCES for _, lines in functions(path)) <= 8


def test_every_file_has_a_docstring() -> None:
    silent = [path for path in ALL if path.name != "__init__.py" and not ast.get_docstring(tree(path))]
    assert not silent


def test_no_two_files_have_one_name() -> None:
    """Families are parallel by design: each has the same files."""
    names = (path.name for path in SOURCES if path.parent.parent.name != "families")
    assert repeated(names) <= {"__init__.py"}


def test_no_two_classes_have_one_name() -> None:
    nodes = (node for path in SOURCES for node in ast.walk(tree(path)) if path.parent.parent.name != "families")
    assert not repeated(node.name for node in nodes if isinstance(node, ast.ClassDef))


def test_the_top_level_has_few_modules() -> None:
    modules = [path.name for path in SOURCES if path.parent == ROOT / "vidqa" and not path.name.startswith("__")]
    assert len(modules) <= MOST_TOP_LEVEL_MODULES, modules


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return the modules that each module imports, at any place, also for types only.

    A name imported from a package is the submodule of that name, if there is one, else the package.
    """
    graph: dict[str, set[str]] = {}
    for name, module in modules.items():
        found: set[str] = set()
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(one if one in modules else node.module for one in inner)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        graph[name] = {one for one in found if one in modules and one != name}
    return graph


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, the first one twice; empty without a circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


@pytest.mark.parametrize(
    ("sources", "circle"),
    [
        ({"a": "from b import x", "b": "import c", "c": ""}, set()),
        ({"a": "from b import x", "b": "def f():\n    import c", "c": "if TYPE_CHECKING:\n    from a import X"},
         {"a", "b", "c"}),
        ({"p": "", "p.a": "from p import b", "p.b": "from p import a"}, {"p.a", "p.b"}),
    ],
)  # fmt: skip
def test_circles_are_found(sources: dict[str, str], circle: set[str]) -> None:
    assert set(find_circle(imports({name: ast.parse(text) for name, text in sources.items()}))) == circle


def test_imports_have_no_circles() -> None:
    assert find_circle(imports({module_name(path): tree(path) for path in SOURCES})) == []


def test_a_question_enters_few_files() -> None:
    script = [
        sys.executable,
        str(ROOT / "scripts" / "trace_question.py"),
        "--most-files",
        str(MOST_FILES_OF_A_QUESTION),
    ]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
