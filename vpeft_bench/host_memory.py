"""How the C library treats freed memory: kept for the next step, or given back to the system."""

from __future__ import annotations

import ctypes
import gc

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


def _malloc_option(option: int, value: int) -> None:
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(option, value)
