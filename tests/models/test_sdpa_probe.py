"""The kernel that is reported is the kernel that ran."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidqa.models.attention import sdpa_probe as probing
from vidqa.models.attention.sdpa_probe import AttentionProbe, device_dtype, probe_attention
from vidqa.models.attention.selector import HeadLayout

QWEN_2B = HeadLayout(12, 2, 128)
QWEN_7B = HeadLayout(28, 4, 128)


def on_cpu(layout: HeadLayout) -> AttentionProbe:
    return probe_attention(layout, "cpu", torch.float32)


@pytest.mark.parametrize("layout", [QWEN_2B, QWEN_7B, HeadLayout(6, 2, 32), HeadLayout(4, 4, 16)])
def test_a_processor_has_flash_and_math_and_nothing_else(layout: HeadLayout) -> None:
    probe = on_cpu(layout)
    takes = {one.name: (one.plain, one.plain_masked) for one in probe.backends}
    everything, nothing = (True,) * 2, (False,) * 2
    assert takes == {"flash": everything, "memory-efficient": nothing, "cuDNN": nothing, "math": everything}
    assert [one.reason for one in probe.backends if one.reason] == ["not offered on this device"] * 2
    assert {probe.plain, probe.plain_masked} == {"flash"}
    assert (probe.dtype, probe.element_bytes) == ("float32", 4)


def test_what_falls_through_is_seen_as_math() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        probe = on_cpu(QWEN_2B)
    assert {probe.plain, probe.plain_masked} == {"math"}


def test_the_probe_has_fewer_queries_than_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = set()
    real = probing.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        lengths.add((query.shape[2], key.shape[2]))
        return real(query, key, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(probing, "scaled_dot_product_attention", watched)
    on_cpu(QWEN_2B)
    assert lengths == {(128, 1024)}


@pytest.mark.parametrize(
    ("warned", "reason"),
    [
        ([], ""),
        (["Flash attention kernel not used because: (Triggered internally at a.cpp:1.)"], ""),
        (
            [
                "Memory efficient kernel not used because: (Triggered internally at a.cpp:1.)",
                "Memory Efficient attention has been runtime disabled. (Triggered internally at a.h:2.)",
                "Flash Attention does not support non-null attn_mask. (Triggered internally at a.h:3.)",
            ],
            "Flash Attention does not support non-null attn_mask",
        ),
        (["For dense input, both fused kernels require query, key and value to have the same num_heads. Query: 1"],
         "For dense input, both fused kernels require query, key and value to have the same num_heads"),
    ],
)  # fmt: skip
def test_the_reason_is_the_cause_and_not_the_switch(warned: list[str], reason: str) -> None:
    assert probing._reason(warned) == reason


@pytest.mark.parametrize(
    ("device", "bf16", "dtype"),
    [("cpu", True, torch.float32), ("cuda", True, torch.bfloat16), ("cuda", False, torch.float16),
     ("mps", False, torch.float16)],
)  # fmt: skip
def test_the_precision_is_the_devices(device: str, bf16: bool, dtype: torch.dtype) -> None:
    assert device_dtype(device, bf16) == dtype


@pytest.mark.needs_cuda
@pytest.mark.parametrize("layout", [QWEN_2B, QWEN_7B])
def test_on_a_gpu_what_is_chosen_also_runs_alone(layout: HeadLayout) -> None:
    dtype = device_dtype("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    probe = probe_attention(layout, "cuda", dtype)
    by_name = {one.name: one for one in probe.backends}
    for call in ("plain", "plain_masked"):
        assert getattr(by_name[getattr(probe, call)], call)
    assert not by_name["flash"].plain_masked  # it refuses masks
    assert by_name["flash"].reason
