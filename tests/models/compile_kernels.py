"""Compile the decode step's kernels to machine code for each GPU: prints name, type, capability, shared memory."""

import sys
import warnings
from itertools import product
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from vidqa.models import triton_kernels

CAPABILITIES = (80, 86, 89, 90, 100, 120)  # A100, RTX 30, RTX 40, H100, B200, RTX 50
NUMBERS = ("rows", "capacity", "width", "splits", "split_tokens")
TYPES = {name: "*fp32" for name in ("cosine", "sine", "sums")} | {name: "i32" for name in NUMBERS}
TYPES |= {"lengths": "*i64", "eps": "fp32", "scaling": "fp32"}
# Of Qwen2-VL-7B.
KERNELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("_add_rms_norm", {"HAS_BRANCH": True, "BLOCK": 4096}),
    ("_silu_and_multiply", {"BLOCK": 1024}),
    ("_sum_splits", {"HEADS": 28, "GROUP": 7, "DIM": 128, "SPLITS_BLOCK": triton_kernels.MAX_SPLITS}),
    ("_rotate_and_append", {"HEADS": 28, "KV_HEADS": 4, "HALF": 64, "QUANTIZED": False}),
    ("_rotate_and_append", {"HEADS": 28, "KV_HEADS": 4, "HALF": 64, "QUANTIZED": True}),
    ("_attend_split", {"KV_HEADS": 4, "GROUP": 7, "GROUP_BLOCK": 16, "DIM": 128, "TILE": triton_kernels.TILE_TOKENS,
                       "QUANTIZED": False}),
    ("_attend_split", {"KV_HEADS": 4, "GROUP": 7, "GROUP_BLOCK": 16, "DIM": 128, "TILE": triton_kernels.TILE_TOKENS,
                       "QUANTIZED": True}),
)  # fmt: skip


def main() -> None:
    """Print a line for each kernel and GPU; raise errors of the compiler."""
    warnings.simplefilter("ignore", UserWarning)  # Triton announces a change of its defaults
    for capability in CAPABILITIES:
        for dtype, (name, fixed) in product(("bf16", "fp32"), KERNELS):
            constants, options = dict(fixed), {}
            if name == "_attend_split":  # as decode_attention chooses
                constants["PRECISION"], options["num_stages"] = ("ieee", 1) if dtype == "fp32" else ("tf32", 3)
            kernel = getattr(triton_kernels, name)
            int8 = {"store": "*i8", "scales": "*fp16"} if constants.get("QUANTIZED") else {}
            types = {argument: (TYPES | int8).get(argument, f"*{dtype}") for argument in kernel.arg_names}
            source = ASTSource(fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
            built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            assert built.asm["cubin"]
            sys.stdout.write(f"{name} {dtype} {capability} {built.metadata.shared}\n")


if __name__ == "__main__":
    main()
