"""`vidqa warmup`: compile ahead what the first answer would wait for.

Renders what vidqa.diagnostics.kernel_warmup does; compiles nothing itself.
"""

import argparse
import os
import sys
from typing import Any

from vidqa.cli.arguments import add_model_options, settings_for
from vidqa.cli.console import ExitCode
from vidqa.utils.safe_text import safe_line


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "warmup",
        help="compile for this GPU ahead of the first question",
        description="Tries the attention kernels and, on a GPU, compiles the decode step's: once per GPU, model size "
        "and version of Triton. The first answer does it where this was not done.",
    )
    add_model_options(parser)
    parser.add_argument("--flex", action="store_true", help="compile FlexAttention too, for --attn flex")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each thing that was made ready; returns 1 where one was not."""
    from vidqa.devices.allocator import compiler_environment
    from vidqa.devices.device import find_device
    from vidqa.models.registry import AUTO, find_checkpoints

    settings = settings_for(arguments)
    device = find_device(settings.device)
    spec = find_checkpoints(settings.model or AUTO, local=False)[0].spec
    os.environ.update(compiler_environment(os.environ))
    from vidqa.devices.torch_device import torch_device
    from vidqa.diagnostics.kernel_warmup import warm_up
    from vidqa.models.attention.selector import device_dtype

    code = ExitCode.OK
    dtype = device_dtype(device.kind, device.bf16)
    for one in warm_up(spec, torch_device(device.torch_name), dtype, flex=arguments.flex):
        sys.stdout.write(f"{one.name:16} {one.seconds:6.1f} s  {safe_line(one.detail)}\n")
        sys.stdout.flush()
        code = code if one.done else ExitCode.FAILED
    return code
