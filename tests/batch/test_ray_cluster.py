"""A real Ray cluster on this machine, a head and two nodes with a logical GPU each, and a scripted captioner."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.batch.scripted_captioner import TASK, clips
from tests.conftest import ROOT
from vidqa.batch.clip_record import ClipRecord, Pending
from vidqa.batch.gpu_pool import COMMAND
from vidqa.batch.ray_cluster import RayPool, rows_of_a_block
from vidqa.errors import ModelMissing, UsageError, VidqaError

pytest.importorskip("ray", reason="Ray is not installed (vidqa[ray])")
pytestmark = [  # Ray's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]

SCRIPTED = (*COMMAND, "tests.batch.scripted_captioner:make")
NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80_000_000}
# A node that is gone is noticed in two seconds instead of ten.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


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
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def make(cluster: Any, folder: Path) -> Iterator[Any]:
    """Makes a RayCrew on the cluster, which is closed at the end."""
    made: list[RayPool] = []

    def crew(kind: type[RayPool] = RayPool, **settings: Any) -> RayPool:
        told = {"batch": 4, "workers": 2, "folder": str(folder)} | settings
        made.append(kind(told, TASK, cluster.address, SCRIPTED))
        return made[-1]

    yield crew
    for one in made:
        one.close()


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{number}.mp4" for number in range(count))


def once_each(records: list[ClipRecord], pending: list[Pending]) -> dict[str, ClipRecord]:
    assert Counter(record.name for record in records) == Counter(clip.clip.name for clip in pending)
    return {record.name: record for record in records}


def test_every_clip_is_done_once_by_all_nodes_and_deadly_clips_are_found(
    make: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pending = clips("all-0.mp4", *names(40), "fail-1.mp4", "kill-2.mp4", "station-3.mp4", "line\nbreak \udcff.mp4")
    records = once_each(list(make().captions(iter(pending))), pending)
    failed = {name: record.error for name, record in records.items() if record.error is not None}
    assert set(failed) == {"fail-1.mp4", "kill-2.mp4", "station-3.mp4"}
    assert "was killed by SIGKILL" in failed["kill-2.mp4"].message
    assert "died with its process or its node" in failed["station-3.mp4"].message  # it killed Ray's own worker
    assert len({record.caption for record in records.values() if record.caption}) >= 2
    assert capfd.readouterr().out == ""


def test_a_node_that_dies_in_the_middle_loses_no_clip_and_doubles_none(
    make: Any, cluster: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pending = clips("all-0.mp4", *names(30), "wait-1.mp4", *(f"more {name}" for name in names(30)), "wait-2.mp4")
    records = []
    for record in make().captions(iter(pending)):
        records.append(record)
        if len(records) == 1:
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            for name in ("wait-1.mp4", "wait-2.mp4"):
                (folder / f"go {name}").touch()
            cluster.add_node(**NODE)
    once_each(records, pending)
    assert all(record.status == "done" for record in records)
    assert len(list(folder.glob("notes *"))) > 2
    assert capfd.readouterr().out == ""


def test_rows_that_ray_loses_are_done_by_another_dataset_and_those_it_doubles_count_once(make: Any) -> None:
    class Forgetful(RayPool):
        def _begin(self, clips: Sequence[Pending]) -> int:
            given.append(len(clips))
            return super()._begin([*clips[:20], *clips[:3]])

    given: list[int] = []
    pending = clips(*names(30))
    once_each(list(make(Forgetful).captions(iter(pending))), pending)
    assert given == [30, 10]


def test_datasets_that_end_in_vain_are_not_tried_for_ever(make: Any) -> None:
    class Vain(RayPool):
        def _begin(self, clips: Sequence[Pending]) -> int:
            given.append(len(clips))
            self._messages.put({"ended": "NodeDiedError: it is\x1b gone"})
            self._messages.put(None)
            return 1

    given: list[int] = []
    with pytest.raises(VidqaError, match=r"3 datasets without a caption: NodeDiedError: it is\\x1b gone"):
        list(make(Vain).captions(iter(clips(*names(3)))))
    assert given == [3, 3, 3]


def test_finish_records_what_was_begun_and_no_more(make: Any, folder: Path) -> None:
    crew = make()
    records = []
    for record in crew.captions(iter(clips("all-0.mp4", *names(40), *(f"wait-{number}.mp4" for number in range(200))))):
        records.append(record.name)
        if len(records) == 1:
            crew.finish()
            for number in range(200):
                (folder / f"go wait-{number}.mp4").touch()
    assert 0 < len(records) < 150
    assert len(set(records)) == len(records)


def test_stop_ends_at_once_in_the_middle_of_a_clip(make: Any, folder: Path) -> None:
    crew = make()

    def stop_when_a_clip_is_begun() -> None:
        while not any("batch" in path.read_text() for path in folder.glob("notes *")):
            time.sleep(0.02)
        crew.stop()

    Thread(target=stop_when_a_clip_is_begun, daemon=True).start()
    assert list(crew.captions(iter(clips(*(f"wait-{number}.mp4" for number in range(32)))))) == []


def test_a_cluster_where_no_worker_can_begin_says_why(make: Any) -> None:
    with pytest.raises(ModelMissing, match="There is no model"):
        list(make(no_model=True).captions(iter(clips("a.mp4"))))


def test_a_cluster_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match="no Ray cluster at nowhere"):
        RayPool({}, TASK, "nowhere", SCRIPTED)


def test_blocks_fill_batches_reach_every_worker_and_are_never_large() -> None:
    assert rows_of_a_block(100_000, 8) == 64
    assert rows_of_a_block(4000, 4) == 32
    assert rows_of_a_block(100, 4) == 8
    assert rows_of_a_block(10, 4) == 3
    assert rows_of_a_block(1, 4) == 1
