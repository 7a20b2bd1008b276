"""What the host is told about memory and arithmetic."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from vpeft_bench.runs.host import flush_denormals
torch.set_num_threads(2)
if {flush}:
    flush_denormals()
tiny = torch.full((1_000_000,), 1e-30)
print((tiny * 1e-10).count_nonzero().item())
"""


@pytest.mark.parametrize("flush", [False, True])
def test_denormals_are_zero_in_every_thread(flush: bool) -> None:
    program = PROGRAM.format(flush=flush)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (0 if flush else 1_000_000)
