"""How a CPU treats what training does to it: freed memory, and numbers next to zero."""

from __future__ import annotations

import ctypes
import gc

import torch

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


def _malloc_option(option: int, value: int) -> None:
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(option, value)
