"""What one run of a process leaves for the next: models as they were loaded, pictures as decoded.

Nothing is kept unless several runs are to come (:func:`keep`). What is kept is named by all that it
depends on, and is what the next run would have made itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class _State:
    wanted = False


def keep() -> None:
    """Let this process keep things from now on: it does several runs."""
    _State.wanted = True


def wanted() -> bool:
    """Whether this process keeps things."""
    return _State.wanted


class Kept(Generic[T]):
    """Things of one kind; the least recently used ones give way to new ones."""

    def __init__(self) -> None:
        self._things: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def find(self, key: Hashable) -> T | None:
        """What is kept under ``key``, used most recently from now on."""
        if key not in self._things:
            return None
        self._things.move_to_end(key)
        return self._things[key][0]

    def put(self, key: Hashable, thing: T, size: int, limit: int) -> None:
        """Keep a thing, where there is room for it.

        Args:
            key: names it.
            thing: is not changed any more by anyone.
            size: of it.
            limit: of all things together, in the same unit.
        """
        while self._things and size + sum(s for _, s in self._things.values()) > limit:
            self._things.popitem(last=False)
        if size <= limit:
            self._things[key] = (thing, size)

    def forget(self) -> None:
        """Let go of everything."""
        self._things.clear()
