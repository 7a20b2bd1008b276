"""Errors of loader processes, as they were raised.

A :class:`~torch.utils.data.DataLoader` makes a new error of the text of the one that a worker
raised, with the worker's traceback in it. Errors that are told to the user are handed over instead
of a batch, and raised where batches are received.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch.utils.data import DataLoader, get_worker_info

from vpeft_bench.errors import VpeftBenchError

BatchType = TypeVar("BatchType")
GetItem = TypeVar("GetItem", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Raised:
    """What a worker hands over in place of a batch."""

    error: VpeftBenchError


def hands_over_errors(get_item: GetItem) -> GetItem:
    """The ``__getitem__`` of a data set that :class:`Loader` reads."""

    @functools.wraps(get_item)
    def handing_over(*arguments: Any) -> Any:
        try:
            return get_item(*arguments)
        except VpeftBenchError as error:
            if get_worker_info() is None:
                raise
            return _Raised(error)

    return cast(GetItem, handing_over)


class Loader(DataLoader[BatchType]):
    """A loader that raises what its workers raised."""

    def __iter__(self) -> Iterator[BatchType]:  # type: ignore[override]  # it is only iterated
        """The batches of one pass; its workers start now, not with the first batch."""
        return _raising(super().__iter__())


def _raising(batches: Iterator[BatchType]) -> Iterator[BatchType]:
    for batch in batches:
        if isinstance(batch, _Raised):
            raise batch.error
        yield batch
