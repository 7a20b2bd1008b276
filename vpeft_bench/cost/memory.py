"""Memory of a training step: its peak, and what it consists of.

On a GPU the allocator keeps the peak. On a CPU it is the growth of the process's anonymous resident
memory since before the model was built: mapped library code does not count. So that it is the
memory of live tensors, as on a GPU, and not what ``malloc`` keeps for later, large tensors get
mappings of their own while it is measured, which go back to the system the moment they are freed.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vpeft_bench.records.cost_card import Memory
from vpeft_bench.runs.host import give_back_freed, give_large_blocks_back, keep_freed_memory


class Peak(NamedTuple):
    """The peak of some steps, bytes; see :class:`vpeft_bench.records.cost_card.Memory`."""

    allocated: int | None = None
    reserved: int | None = None
    resident_growth: int | None = None


class PeakMeter(Protocol):
    """Measures the peak of memory; made before anything large is allocated."""

    def start(self) -> None:
        """What is allocated from now on counts."""
        ...

    def peak(self, run: Callable[[], object]) -> Peak:
        """The peak during ``run()``."""
        ...

    def finish(self) -> None:
        """Nothing more will be measured."""
        ...


def peak_meter(device: torch.device) -> PeakMeter:
    """The one for ``device``."""
    return AllocatedMemory(device) if device.type == "cuda" else ResidentMemory()


class AllocatedMemory:
    """What PyTorch's allocator has given out on an accelerator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        """The allocator counts from the start of the process; what is freed does not matter."""

    def peak(self, run: Callable[[], object]) -> Peak:
        """The peak during ``run()``."""
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return Peak(
            allocated=torch.cuda.max_memory_allocated(self.device),
            reserved=torch.cuda.max_memory_reserved(self.device),
        )

    def finish(self) -> None:
        """Nothing was changed."""


class ResidentMemory:
    """Growth of the process's anonymous resident memory."""

    def __init__(self) -> None:
        give_large_blocks_back()
        self._before: int | None = None

    def start(self) -> None:
        """What is allocated from now on counts."""
        give_back_freed()
        self._before = anonymous_memory()

    def peak(self, run: Callable[[], object]) -> Peak:
        """The peak during ``run()``; unknown where the system has no ``/proc``."""
        give_back_freed()
        if self._before is None:
            run()
            return Peak()
        if _reset_high_water_mark():
            run()
            status = _status()
            highest = status["VmHWM"] - status["RssFile"] - status["RssShmem"]
        else:
            with _sampling() as sampled:
                run()
            highest = max(sampled)
        return Peak(resident_growth=highest - self._before)

    def finish(self) -> None:
        """Let ``malloc`` keep freed memory again, as in a run."""
        keep_freed_memory()


def anonymous_memory() -> int | None:
    """Bytes of memory in use that are no part of a file; None where the system does not tell."""
    return _status().get("RssAnon")


def _status() -> dict[str, int]:
    """Sizes of this process by their names in ``/proc``, bytes; empty where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # a kernel without it, or a container that forbids it
        return False
    return True


@contextlib.contextmanager
def _sampling(seconds: float = 0.001) -> Iterator[list[int]]:
    """Read the memory again and again from a thread; short peaks may be missed."""
    samples, done = [anonymous_memory() or 0], threading.Event()

    def sample() -> None:
        while not done.wait(seconds):
            samples.append(anonymous_memory() or 0)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()
        samples.append(anonymous_memory() or 0)


# ---- what it consists of ------------------------------------------------------------------------


def split(
    peak: Peak, model: nn.Module, optimizer: torch.optim.Optimizer, saved_for_backward: int
) -> Memory:
    """The peak and its parts; the gradients of the last step must still be there."""
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    states = (value for state in optimizer.state.values() for value in state.values())
    weights = storage_bytes([*parameters, *model.buffers()])
    gradients = storage_bytes(p.grad for p in parameters if p.grad is not None)
    optimizer_state = storage_bytes(
        value for value in states if isinstance(value, Tensor) and value.device == device
    )
    highest = peak.allocated if peak.allocated is not None else peak.resident_growth
    parts = weights + gradients + optimizer_state
    return Memory(
        allocated=peak.allocated,
        reserved=peak.reserved,
        resident_growth=peak.resident_growth,
        weights=weights,
        gradients=gradients,
        optimizer_state=optimizer_state,
        activations=None if highest is None else highest - parts,
        saved_for_backward=saved_for_backward,
    )


def saved_for_backward(forward: Callable[[], Tensor], given: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of ``forward()`` for the backward pass, each storage once.

    Args:
        given: tensors that are there anyway and do not count: parameters, buffers, the batch.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.update(_storages([tensor]))
        return tensor.detach()  # an output that holds itself would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()  # held, with all that it saved, until the sum is taken
    there = _storages(given)
    total = sum(size for address, size in saved.items() if address not in there)
    del loss
    return total


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of some tensors; a shared storage counts once."""
    return sum(_storages(tensors).values())


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address."""
    dense: list[Tensor] = []
    for tensor in tensors:
        dense += [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]
    storages = (tensor.untyped_storage() for tensor in dense)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
