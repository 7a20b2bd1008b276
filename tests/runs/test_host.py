"""What the host is told about memory and arithmetic."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vpeft_bench.config.sections import Precision
from vpeft_bench.runs.host import out_of_memory

PROGRAM = """
import torch
from vpeft_bench.runs.host import flush_denormals
torch.set_num_threads(2)
if {flush}:
    flush_denormals()
tiny = torch.full((1_000_000,), 1e-30)
print((tiny * 1e-10).count_nonzero().item())
"""


@pytest.mark.parametrize("flush", [pytest.param(False, marks=pytest.mark.slow), True])
def test_denormals_are_zero_in_every_thread(flush: bool) -> None:
    program = PROGRAM.format(flush=flush)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (0 if flush else 1_000_000)


FLOAT32 = """
import torch
from vpeft_bench.config.sections import Precision
from vpeft_bench.runs.host import set_float32
for name in ("tf32", "fp32", "tf32", "bf16"):
    set_float32(Precision(name))
    both = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    print(both == (True, True), both == (False, False), end=" ")
torch.backends.cudnn.flags(deterministic=True).__enter__()
"""


def test_products_and_convolutions_have_the_same_arithmetic() -> None:
    """PyTorch's default has convolutions alone in TF32. In a process of its own: it is global."""
    done = subprocess.run([sys.executable, "-c", FLOAT32], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "False", "True"] * 2
    assert {p.value for p in Precision} == {"fp32", "tf32", "bf16", "fp16"}


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(ValueError("a note about running out of memory"))
