"""A tiny checkpoint of every family and head layout, loaded by vidqa and by transformers."""

import pytest

from tests.families.cases import CASES
from tests.families.parity import Pair, load_pair, write_checkpoint

_ALL = [(case, layout) for case in CASES for layout in case.specs]
_FIRST = [(case, next(iter(case.specs))) for case in CASES]
_LAST = [(case, list(case.specs)[-1]) for case in CASES]


@pytest.fixture(scope="session")
def _pairs() -> dict[tuple[str, str], Pair]:
    return {}


def _load(request: pytest.FixtureRequest, pairs: dict[tuple[str, str], Pair], factory: pytest.TempPathFactory) -> Pair:
    case, layout = request.param
    key = (str(case), layout)
    if key not in pairs:
        pairs[key] = load_pair(case, write_checkpoint(case, layout, factory.mktemp("model") / layout))
    return pairs[key]


@pytest.fixture(scope="session", params=_ALL, ids=lambda one: f"{one[0]}-{one[1]}")
def pair(
    request: pytest.FixtureRequest, _pairs: dict[tuple[str, str], Pair], tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """Every family in every head layout."""
    return _load(request, _pairs, tmp_path_factory)


@pytest.fixture(scope="session", params=_LAST, ids=lambda one: f"{one[0]}-{one[1]}")
def large(
    request: pytest.FixtureRequest, _pairs: dict[tuple[str, str], Pair], tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """Every family in one head layout: that of its 7B or 8B."""
    return _load(request, _pairs, tmp_path_factory)


@pytest.fixture(scope="session", params=_FIRST, ids=lambda one: f"{one[0]}-{one[1]}")
def small(
    request: pytest.FixtureRequest, _pairs: dict[tuple[str, str], Pair], tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """Every family in one head layout: that of its 2B or 3B."""
    return _load(request, _pairs, tmp_path_factory)
