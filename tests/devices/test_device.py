"""Devices and their free memory: a scripted driver, folders in place of /proc and /sys, and the real GPU."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.devices.scripted_nvml import GIB, MIB, OWN, Card, ScriptedNvml, machine, no_driver
from vidqa.devices.device import allocator_environment, find_device, list_devices, reread, reusable_bytes
from vidqa.devices.host import host_memory, usable_cores
from vidqa.devices.nvml import ASSUMED_CONTEXT_BYTES
from vidqa.errors import UsageError
from vidqa.types import Device

UNKNOWN = 2**64 - 1


def cuda(card: Card, **where: Any) -> Device:
    return find_device("cuda", machine(ScriptedNvml(card), **where))


def test_a_card_with_other_processes_in_numbers() -> None:
    card = Card(free=7 * GIB, computing=[(OWN, 1 * GIB), (7, 3 * GIB)], drawing=[(8, 100 * MIB)])
    device = cuda(card)
    assert device.total_bytes == 12 * GIB - 380 * MIB  # as CUDA counts: without what the driver keeps
    assert (device.free_bytes, device.process_bytes) == (7 * GIB, 1 * GIB)
    assert device.other_bytes == 12 * GIB - 380 * MIB - 7 * GIB - 1 * GIB
    assert (device.compute_capability, device.bf16) == ((8, 6), True)
    assert device.bandwidth_bytes_per_second == 360e9
    assert device.notes == ("graphics programs hold 100.0 MiB of this GPU",)


@pytest.mark.parametrize(
    ("driver_free", "computing", "drawing", "free_own_other"),
    [
        (5, None, None, (5, 0, 3)),  # not reported: by what is in use
        (5, [(7, None)], [(7, None)], (5, 0, 3)),
        (5, [(7, UNKNOWN), (OWN, UNKNOWN)], [], (5, 0, 3)),
        (6, [(OWN, 1 * GIB), (7, 3 * GIB)], [], (4, 1, 3)),  # the processes hold more than is in use
        (5, [(7, 3 * GIB)], [(7, 3 * GIB)], (5, 0, 3)),  # one process, which computes and draws
    ],
)
def test_free_memory_by_the_driver_and_by_processes(
    driver_free: int, computing: Any, drawing: Any, free_own_other: tuple[int, int, int]
) -> None:
    device = cuda(Card(total=8 * GIB, reserved=0, free=driver_free * GIB, computing=computing, drawing=drawing))
    found = device.free_bytes, device.process_bytes, device.other_bytes
    assert found == tuple(size * GIB for size in free_own_other)


def test_an_old_driver_without_reserved_bytes() -> None:
    nvml = ScriptedNvml(Card(free=7 * GIB), second_version=False)
    device = find_device("cuda", machine(nvml))
    assert (device.total_bytes, device.free_bytes) == (12 * GIB, 7 * GIB)
    assert nvml.open == 1  # once, for as long as the process runs


def test_a_gpu_that_shares_the_hosts_memory() -> None:
    device = cuda(Card(name="Orin", reports_memory=False, capability=(8, 7)))
    assert device.total_bytes == psutil.virtual_memory().total
    assert 0 < device.free_bytes <= device.total_bytes
    assert "share the host's" in device.notes[0]


@pytest.mark.parametrize(
    ("display", "drawing", "note"),
    [
        (1, None, "does not report its memory"),
        (None, [(8, None)], "does not report its memory"),
        (1, [(8, 400 * MIB)], "hold 400.0 MiB"),
    ],
)
def test_a_display_gives_a_note(display: int | None, drawing: Any, note: str) -> None:
    assert note in " ".join(cuda(Card(display=display, drawing=drawing)).notes)
    assert cuda(Card(display=0)).notes == ()


def test_wsl_gives_a_note(tmp_path: Path) -> None:
    write(tmp_path, {"proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2"})
    assert "host memory" in cuda(Card(), root=tmp_path).notes[0]


def mig() -> Card:
    parts = [
        Card(f"NVIDIA A100-SXM4-80GB MIG {size}", f"MIG-{size[0]}", total, 0, total // 2, (8, 0), None, None)
        for size, total in (("3g.40gb", 40 * GIB), ("1g.10gb", 10 * GIB))
    ]
    return Card("NVIDIA A100-SXM4-80GB", "GPU-whole", 80 * GIB, 0, 75 * GIB, (8, 0), instances=parts)


def test_mig_instances_are_devices() -> None:
    first = cuda(mig())
    assert (first.name, first.total_bytes, first.free_bytes) == (
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40 * GIB, 20 * GIB,
    )  # fmt: skip
    second = cuda(mig(), environment={"CUDA_VISIBLE_DEVICES": "MIG-1"})
    assert (second.total_bytes, second.other_bytes) == (10 * GIB, 5 * GIB)
    assert second.bandwidth_bytes_per_second == pytest.approx(2039e9 / 8)
    assert second.notes == ("MIG instance: a part of a GPU",)


def test_a_gpu_in_mig_mode_without_instances_is_unusable() -> None:
    card = mig()
    card.instances = []
    with pytest.raises(UsageError, match="no usable GPU"):
        cuda(card)


PAIR = (Card(uuid="GPU-aaaa", free=1 * GIB), Card(uuid="GPU-bbbb", free=9 * GIB))


@pytest.mark.parametrize(
    ("visible", "free_gib"),
    [
        (None, [1, 9]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [9]),
        ("1,0", [9, 1]),
        (" 1 , 0 ", [9, 1]),
        ("1gpu", [9]),
        ("0,7,1", [1]),
        ("1,1", []),
        ("0,-1,1", [1]),
        ("GPU-bbbb", [9]),
        ("GPU-b,GPU-a", [9, 1]),
        ("GPU-cccc", []),
    ],
)
def test_cuda_visible_devices(visible: str | None, free_gib: list[int]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    *gpus, cpu = list_devices(machine(ScriptedNvml(*PAIR), environment))
    assert [gpu.free_bytes for gpu in gpus] == [free * GIB for free in free_gib]
    assert [gpu.index for gpu in gpus] == list(range(len(free_gib)))
    assert cpu.kind == "cpu"


def test_hidden_and_missing_gpus_have_different_errors() -> None:
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES='' hides every GPU"):
        cuda(Card(), environment={"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(UsageError, match="No NVIDIA driver answers"):
        find_device("cuda", machine(no_driver()))


UNLIKE = (Card(uuid="GPU-slow"), Card("NVIDIA GeForce RTX 4090", "GPU-fast", 24 * GIB, free=23 * GIB))


def names(environment: dict[str, str], modules: dict[str, Any] | None = None) -> list[str]:
    *gpus, _ = list_devices(machine(ScriptedNvml(*UNLIKE), environment, modules))
    return [f"{gpu.name[-4:]}{'?' if gpu.notes else ''}" for gpu in gpus]


def test_different_gpus_have_cudas_order() -> None:
    assert names({}) == ["4090?", "3060?"]
    assert names({"CUDA_VISIBLE_DEVICES": "1"}) == ["3060?"]
    assert names({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == ["3060", "4090"]


def started_torch(*uuids: str, free: int = 64 * GIB, started: bool = True) -> dict[str, Any]:
    """Return a loaded torch module with the functions that are called."""
    properties = [SimpleNamespace(uuid=uuid) for uuid in uuids]
    return {
        "torch": SimpleNamespace(
            cuda=SimpleNamespace(
                is_initialized=lambda: started,
                device_count=lambda: len(properties),
                get_device_properties=lambda index: properties[index],
                mem_get_info=lambda index: (free, 80 * GIB),
                memory_reserved=lambda index: 900 * MIB,
                memory_allocated=lambda index: 600 * MIB,
            )
        )
    }


def test_started_cudas_order_counts() -> None:
    assert names({"CUDA_VISIBLE_DEVICES": "0"}, started_torch("slow", "fast")) == ["3060", "4090"]
    assert names({}, started_torch("slow", "fast", started=False)) == ["4090?", "3060?"]
    assert names({}, started_torch("stranger")) == ["4090?", "3060?"]


def test_started_cudas_free_memory_counts_too() -> None:
    host = machine(ScriptedNvml(Card(free=9 * GIB)), modules=started_torch("aaaa", free=5 * GIB))
    device = find_device("cuda", host)
    assert (device.free_bytes, device.process_bytes) == (5 * GIB, 900 * MIB + ASSUMED_CONTEXT_BYTES)
    assert reusable_bytes(device, host) == 300 * MIB
    assert reusable_bytes(device, machine(ScriptedNvml(Card()))) == 0


def test_no_context_is_created_on_another_gpu() -> None:
    torch = started_torch("aaaa", "bbbb")["torch"]
    torch.cuda.memory_reserved = lambda index: 100 * MIB if index == 0 else 0
    asked: list[int] = []
    torch.cuda.mem_get_info = lambda index: (asked.append(index), (64 * GIB, 80 * GIB))[1]
    list_devices(machine(ScriptedNvml(*PAIR), modules={"torch": torch}))
    assert asked == [0]


def test_auto_takes_the_gpu_with_most_free_memory() -> None:
    host = machine(ScriptedNvml(*PAIR))
    assert find_device("auto", host).index == 1
    assert reread(find_device("cuda:0", host), host).free_bytes == 1 * GIB
    assert find_device("auto", machine(no_driver())).kind == "cpu"


def test_a_torch_without_cuda_cannot_use_the_gpu() -> None:
    host = machine(ScriptedNvml(Card()), torch_version=lambda: "2.15.0+cpu")
    assert find_device("auto", host).kind == "cpu"
    with pytest.raises(UsageError, match=r"torch 2\.15\.0\+cpu is built without CUDA"):
        find_device("cuda", host)


@pytest.mark.parametrize(
    ("choice", "what"),
    [("cuda:2", "CUDA shows 2"), ("gpu", "no device 'gpu'"), ("cuda:x", "no device"), ("mps", "MPS")],
)
def test_missing_devices_are_refused(choice: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        find_device(choice, machine(ScriptedNvml(*PAIR)))


def test_apples_gpu_has_a_share_of_the_memory() -> None:
    host = machine(no_driver(), system="darwin")
    device = find_device("auto", host)
    memory = psutil.virtual_memory().total
    assert device.kind == "mps"
    assert device.total_bytes in {memory * 2 // 3, memory * 3 // 4}
    assert 0 < device.free_bytes <= device.total_bytes
    assert [one.kind for one in list_devices(host)] == ["mps", "cpu"]


def test_apples_gpu_as_torch_reports_it() -> None:
    torch = SimpleNamespace(
        cuda=None,
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True)),
        mps=SimpleNamespace(recommended_max_memory=lambda: 512 * MIB, driver_allocated_memory=lambda: 200 * MIB),
    )
    device = find_device("mps", machine(no_driver(), modules={"torch": torch}, system="darwin"))
    assert (device.total_bytes, device.free_bytes, device.process_bytes) == (512 * MIB, 312 * MIB, 200 * MIB)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


SECOND = {"memory.max": "1073741824", "memory.current": "700000000", "memory.stat": "anon 1\ninactive_file 100000000\n"}
FIRST = {
    "memory.limit_in_bytes": "1073741824",
    "memory.usage_in_bytes": "700000000",
    "memory.stat": "inactive_file 5\ntotal_inactive_file 100000000\n",
}


@pytest.mark.parametrize(
    ("membership", "folder", "files"),
    [
        ("0::/user/run.scope", "sys/fs/cgroup/user/run.scope", SECOND),
        ("0::/user/run.scope", "sys/fs/cgroup/user", SECOND),  # the limit is an ancestor's
        ("0::/", "sys/fs/cgroup", SECOND),  # a container with a namespace of its own
        ("0::/../../other", "sys/fs/cgroup", SECOND),
        ("5:cpu:/\n4:memory:/docker/abc\n0::/", "sys/fs/cgroup/memory/docker/abc", FIRST),
        ("4:hugetlb,memory:/docker/abc", "sys/fs/cgroup/memory", FIRST),  # the host's path, not there inside
    ],
)
def test_a_control_group_limits_memory(tmp_path: Path, membership: str, folder: str, files: dict[str, str]) -> None:
    write(tmp_path, {"proc/self/cgroup": membership} | {f"{folder}/{name}": text for name, text in files.items()})
    memory = host_memory(machine(no_driver(), root=tmp_path))
    assert (memory.total_bytes, memory.free_bytes) == (GIB, GIB - 600_000_000)
    device = find_device("cpu", machine(no_driver(), root=tmp_path))
    assert device.notes == ("a control group limits this process to 1.0 GiB",)


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "250000 100000"}, 2),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "250000 100000", "sys/fs/cgroup/a/b/cpu.max": "100000 100000"}, 1),
        ("0::/", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),  # half a core
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ("3:cpu,cpuacct:/d\n0::/", {"sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "300000\n",
                                     "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000\n"}, 3),
        ("3:cpu:/d", {"sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "1"}, 8),
        ("0::/", {"sys/fs/cgroup/cpu.max": "200000 0"}, 8),
    ],
)  # fmt: skip
def test_a_control_group_limits_cores(
    tmp_path: Path, membership: str, files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    write(tmp_path, {"proc/self/cgroup": membership} | files)
    here = machine(no_driver(), root=tmp_path)
    assert usable_cores(here) == cores
    fewer = replace(here, environment={"OMP_NUM_THREADS": "2"})
    assert usable_cores(fewer) == min(cores, 2)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "", "nonsense"])
def test_without_a_limit_the_machine_counts(tmp_path: Path, limit: str) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": limit})
    write(tmp_path, {"sys/fs/cgroup/memory.current": "5", "proc/cpuinfo": "model name\t: A Processor\n"})
    device = find_device("cpu", machine(no_driver(), root=tmp_path))
    assert (device.total_bytes, device.name, device.notes) == (psutil.virtual_memory().total, "A Processor", ())
    assert 0 < device.free_bytes <= device.total_bytes


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", True),
        ("model name\t: Intel Xeon\nflags\t\t: fpu amx_bf16 amx_tile amx_int8\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\nCPU part\t: 0xd40\n", True),
        ("model name\t: Intel Core\nflags\t\t: fpu avx2 avx512f avx512_vnni\nbugs\t\t: bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", False),
        ("", False),
    ],
    ids=["EPYC", "Xeon", "Graviton", "no bf16", "old ARM", "no file"],
)
def test_a_cpu_that_multiplies_bf16(tmp_path: Path, cpuinfo: str, bf16: bool) -> None:
    write(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert find_device("cpu", machine(no_driver(), root=tmp_path)).bf16 is bf16


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": ""}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, "expandable_segments:False"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, "backend:cudaMallocAsync"),
        (
            {"PYTORCH_ALLOC_CONF": "roundup_power2_divisions:[256:1,512:2], garbage_collection_threshold:0.8"},
            "roundup_power2_divisions:[256:1,512:2],garbage_collection_threshold:0.8,expandable_segments:True",
        ),
    ],
)
def test_the_allocators_options_are_merged(before: dict[str, str], options: str) -> None:
    assert allocator_environment(before) == {"PYTORCH_ALLOC_CONF": options}


@pytest.mark.parametrize(
    ("system", "files"),
    [
        ("linux", {"proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2"}),
        ("linux", {"proc/device-tree/compatible": "nvidia,p3768-0000\0nvidia,tegra234"}),
        ("win32", {}),
    ],
)
def test_no_expandable_segments_where_mapping_fails(tmp_path: Path, system: str, files: dict[str, str]) -> None:
    write(tmp_path, files)
    host = machine(no_driver(), root=tmp_path, system=system)
    assert allocator_environment({}, host) == {}
    asked = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert allocator_environment(asked, host) == asked
    other = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    assert allocator_environment(other, host) == other


def test_the_allocators_older_variable_is_read_and_set_alike() -> None:
    before = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False,max_split_size_mb:32"}
    merged = "expandable_segments:False,max_split_size_mb:64"
    after = allocator_environment(before | {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"})
    assert after == {"PYTORCH_ALLOC_CONF": merged, "PYTORCH_CUDA_ALLOC_CONF": merged}


@pytest.mark.needs_cuda
def test_the_real_gpu_agrees_with_torch() -> None:
    import torch

    torch.zeros(1, device="cuda")
    for index in range(torch.cuda.device_count()):
        device = find_device(f"cuda:{index}")
        free, total = torch.cuda.mem_get_info(index)
        assert device.name == torch.cuda.get_device_name(index)
        assert device.compute_capability == torch.cuda.get_device_capability(index)
        assert device.total_bytes == pytest.approx(total, rel=0.01)
        assert device.free_bytes == pytest.approx(free, rel=0.02)
        assert device.process_bytes >= torch.cuda.memory_reserved(index)
