"""A real Ray cluster on this machine, a head and two nodes with a logical GPU each, and a scripted captioner."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.batch.scripted_captioner import RUN, SCRIPTED, clips, numbered, once_each
from tests.conftest import ROOT
from vidqa.batch.clip_record import PendingClip
from vidqa.batch.ray_cluster import RayPool, rows_per_block
from vidqa.errors import ModelMissing, UsageError, VidqaError

pytest.importorskip("ray", reason="Ray is not installed (vidqa[ray])")
pytestmark = [  # Ray's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]

NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80_000_000}
# Detects a lost node in two seconds instead of ten.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
Make = Callable[..., RayPool]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000, "_system_config": QUICK}
        started = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            started.add_node(**NODE)
        yield started
        started.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make(cluster: Any, tmp_path: Path) -> Iterator[Make]:
    pools: list[RayPool] = []

    def make_pool(kind: type[RayPool] = RayPool, **settings: Any) -> RayPool:
        settings = {"batch": 4, "workers": 2, "folder": str(tmp_path)} | settings
        pools.append(kind(settings, RUN, cluster.address, SCRIPTED))
        return pools[-1]

    yield make_pool
    for pool in pools:
        pool.close()


def let_go(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / f"go {name}").touch()


@pytest.mark.parametrize(
    "deadly",
    [
        {"kill-2.mp4": "was killed by SIGKILL"},
        pytest.param(  # it kills Ray's actor, which Ray restarts three times
            {"station-3.mp4": "died with its process or its node"}, marks=pytest.mark.long
        ),
    ],
)
def test_every_clip_is_done_once_by_all_nodes_and_deadly_clips_are_found(
    deadly: dict[str, str], make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    pending = clips("all-0.mp4", *numbered(40), "fail-1.mp4", *deadly, "line\nbreak \udcff.mp4")
    records = once_each(make().captions(iter(pending)), pending)
    errors = {name: record.error.message for name, record in records.items() if record.error is not None}
    assert set(errors) == {"fail-1.mp4", *deadly}
    assert all(reason in errors[name] for name, reason in deadly.items())
    assert len({record.caption for record in records.values() if record.caption}) >= 2
    assert capfd.readouterr().out == ""


@pytest.mark.long
def test_a_node_that_dies_loses_no_clip_and_doubles_none(
    make: Make, cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = (f"more {name}" for name in numbered(30))
    pending = clips("all-0.mp4", *numbered(30), "wait-1.mp4", *more, "wait-2.mp4")
    records = []
    for record in make().captions(iter(pending)):
        records.append(record)
        if len(records) == 1:
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            let_go(tmp_path, ("wait-1.mp4", "wait-2.mp4"))
            cluster.add_node(**NODE)
    assert all(record.status == "done" for record in once_each(records, pending).values())
    assert len(list(tmp_path.glob("notes *"))) > 2
    assert capfd.readouterr().out == ""


@pytest.mark.long
def test_lost_rows_go_into_another_dataset_and_doubled_ones_count_once(make: Make) -> None:
    class Forgetful(RayPool):
        def _start_dataset(self, clips: Sequence[PendingClip]) -> int:
            started.append(len(clips))
            return super()._start_dataset([*clips[:20], *clips[:3]])

    started: list[int] = []
    pending = clips(*numbered(30))
    once_each(make(Forgetful).captions(iter(pending)), pending)
    assert started == [30, 10]


def test_datasets_without_a_record_end_the_run(make: Make) -> None:
    class Failing(RayPool):
        def _start_dataset(self, clips: Sequence[PendingClip]) -> int:
            started.append(len(clips))
            self._messages.put({"ended": "NodeDiedError: it is\x1b gone"})
            self._messages.put(None)
            return 1

    started: list[int] = []
    with pytest.raises(VidqaError, match=r"3 datasets without a caption: NodeDiedError: it is\\x1b gone"):
        list(make(Failing).captions(iter(clips(*numbered(3)))))
    assert started == [3, 3, 3]


@pytest.mark.long
def test_finish_records_clips_in_work_and_no_more(make: Make, tmp_path: Path) -> None:
    pool, waiting = make(), [f"wait-{number}.mp4" for number in range(200)]
    records = []
    for record in pool.captions(iter(clips("all-0.mp4", *numbered(40), *waiting))):
        records.append(record.name)
        if len(records) == 1:
            pool.finish()
            let_go(tmp_path, waiting)
    assert 0 < len(records) < 150
    assert len(set(records)) == len(records)


def test_stop_ends_in_the_middle_of_a_clip(make: Make, tmp_path: Path) -> None:
    pool = make()

    def stop_once_a_clip_is_begun() -> None:
        while not any("batch" in path.read_text() for path in tmp_path.glob("notes *")):
            time.sleep(0.02)
        pool.stop()

    Thread(target=stop_once_a_clip_is_begun, daemon=True).start()
    assert list(pool.captions(iter(clips(*(f"wait-{number}.mp4" for number in range(32)))))) == []


@pytest.mark.long
def test_a_cluster_on_which_no_worker_can_start_ends_with_the_reason(make: Make) -> None:
    with pytest.raises(ModelMissing, match="There is no model"):
        list(make(no_model=True).captions(iter(clips("a.mp4"))))


def test_a_missing_cluster_is_an_error() -> None:
    with pytest.raises(UsageError, match="no Ray cluster at nowhere"):
        RayPool({}, RUN, "nowhere", SCRIPTED)


@pytest.mark.parametrize(
    ("clip_count", "workers", "rows"), [(100_000, 8, 64), (4000, 4, 32), (100, 4, 8), (10, 4, 3), (1, 4, 1)]
)
def test_blocks_fill_batches_reach_every_worker_and_are_bounded(clip_count: int, workers: int, rows: int) -> None:
    assert rows_per_block(clip_count, workers) == rows
