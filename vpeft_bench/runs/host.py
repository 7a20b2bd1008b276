"""How host and device are set up for training, and what is left of it: memory and arithmetic."""

from __future__ import annotations

import ctypes
import gc

import torch

from vpeft_bench.config.sections import Precision

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_OWN_MAPPING_FROM = 128 * 1024
_OLD_LARGEST = 32 * 2**20
_UNLIMITED = 2**30
_AHEAD = 256 * 2**20


def keep_freed_memory() -> None:
    """Let freed memory wait for the next step instead of going back to the system.

    Every step of training frees its activations. Given back, each page of them is cleared and
    mapped anew in the next step, which takes a sizable part of a CPU's time.
    """
    _malloc_option(_MMAP_THRESHOLD, _OLD_LARGEST)  # versions before 2.35 refuse more
    _malloc_option(_MMAP_THRESHOLD, _UNLIMITED)
    _malloc_option(_TRIM_THRESHOLD, _UNLIMITED)
    _malloc_option(_TOP_PAD, _AHEAD)


def give_large_blocks_back() -> None:
    """Give every large tensor a mapping of its own, which ends when the tensor is freed.

    Resident memory then is the memory of what lives.
    """
    _malloc_option(_MMAP_THRESHOLD, _OWN_MAPPING_FROM)


def give_back_freed() -> None:
    """Return to the system what is freed by now and still kept."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # the GNU library's
        trim(0)


def flush_denormals() -> None:
    """Let numbers below 1.2e-38 be zero on a CPU.

    A CPU takes up to a hundred times as long for them, and training makes them: the tails of a
    sharp softmax and their gradients. Threads take this over from the one that starts them, so it
    is to be called before PyTorch starts its own.
    """
    torch.set_flush_denormal(True)


def set_float32(precision: Precision) -> None:
    """Let a GPU compute in float32 what is to be, or in TF32 where that was asked for.

    PyTorch's own default is neither: convolutions in TF32, products of matrices in float32, unless
    a container's environment says otherwise.
    """
    # The switches of torch 2.9 (``fp32_precision``) say the same, but parts of PyTorch that still
    # ask for these, such as its exporter, raise where they were used.
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.tf32
    torch.backends.cudnn.allow_tf32 = precision is Precision.tf32


def free_device_memory() -> None:
    """Let nothing of a finished or failed run stay on a GPU: the next one finds it as it was."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors took on an accelerator since :func:`forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Let what was allocated before not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; PyTorch has a type for that on accelerators only."""
    texts = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def device_is_lost() -> str | None:
    """What a GPU answers to every call after an illegal access or a failed assertion, or None."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return " ".join(str(error).split())
    return None


def _malloc_option(option: int, value: int) -> None:
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(option, value)
