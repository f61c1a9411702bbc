"""`vidqa warmup`: the results of vidqa.diagnostics.kernel_warmup, a line for each kernel."""

import argparse
import os
import sys

from vidqa.cli.arguments import add_model_options, settings_for
from vidqa.cli.console import ExitCode
from vidqa.utils.safe_text import safe_line


def add_warmup_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa warmup`."""
    parser.description = (
        "Tries the attention kernels and, on a GPU, compiles the decode step's: once per GPU, model size "
        "and version of Triton. The first answer does it where this was not done."
    )
    add_model_options(parser)
    parser.add_argument("--flex", action="store_true", help="compile FlexAttention too, for --attn flex")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile kernels and print a line for each; returns 1 if one failed."""
    from vidqa.devices.device import compiler_environment, find_device
    from vidqa.models.registry import AUTO, find_checkpoints

    settings = settings_for(arguments)
    device = find_device(settings.device)
    spec = find_checkpoints(settings.model or AUTO, local=False)[0].spec
    os.environ.update(compiler_environment(os.environ))
    from vidqa.devices.torch_device import torch_device
    from vidqa.diagnostics.kernel_warmup import warm_up
    from vidqa.models.loader import DTYPES
    from vidqa.planner.placement import compute_dtype

    code = ExitCode.OK
    dtype = DTYPES[compute_dtype(device, spec)]
    for result in warm_up(spec, torch_device(device.torch_name), dtype, flex=arguments.flex):
        sys.stdout.write(f"{result.name:16} {result.seconds:6.1f} s  {safe_line(result.detail)}\n")
        sys.stdout.flush()
        code = code if result.done else ExitCode.FAILED
    return code
