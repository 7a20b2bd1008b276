"""Modules of several methods in one slot, each for some pictures of a batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpeft_bench.errors import NotStackableError


class Rows:
    """Which pictures of a batch belong together.

    Args:
        keys: one for each picture; equal ones belong together.
    """

    def __init__(self, keys: Sequence[Hashable]) -> None:
        self.count = len(keys)
        self.keys = list(dict.fromkeys(keys))
        self._rows = [[i for i, key in enumerate(keys) if key == one] for one in self.keys]
        self._found: dict[tuple[int, torch.device], tuple[list[Any], Tensor | None]] = {}

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts of ``x`` ``(B, ...)``, or ``(B * W, ...)`` with W windows of each picture."""
        indices, _ = self._indices(x)
        return [x[index] for index in indices]

    def join(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """The inverse of :meth:`split` for parts of ``like``, changed."""
        joined = torch.cat(list(parts))
        _, back = self._indices(like)
        return joined if back is None else joined[back]

    def _indices(self, x: Tensor) -> tuple[list[Any], Tensor | None]:
        """For each part a slice where it is one, else indices; and how to undo their order."""
        windows = len(x) // self.count
        if (windows, x.device) not in self._found:
            whole = torch.arange(len(x), device=x.device).view(self.count, windows)
            parts: list[Any] = [whole[rows].flatten() for rows in self._rows]
            order = torch.cat(parts)
            for i, rows in enumerate(self._rows):
                if rows == list(range(rows[0], rows[-1] + 1)):
                    parts[i] = slice(rows[0] * windows, (rows[-1] + 1) * windows)
            sorted_already = bool((order[1:] > order[:-1]).all())
            self._found[windows, x.device] = (parts, None if sorted_already else order.argsort())
        return self._found[windows, x.device]


class ByRow(nn.Module):
    """What stands in a slot while each picture has a method of its own.

    Args:
        modules: by key of ``rows``; those of other keys have nothing here.
    """

    def __init__(self, slot: str, rows: Rows, modules: Mapping[Hashable, nn.Module]) -> None:
        super().__init__()
        self.slot = slot
        self.rows = rows
        self.held = nn.ModuleList(modules.values())
        self._modules_of = [modules.get(key) for key in rows.keys]  # no mapping

    def forward(self, *given: Tensor) -> Any:
        """As each module for its rows of what is given."""
        parts = zip(*(self.rows.split(x) for x in given), strict=True)
        found = [
            self._nothing(*part) if module is None else module(*part)
            for module, part in zip(self._modules_of, parts, strict=True)
        ]
        if self.slot != "keys_values":
            return self._joined(found, given[0])
        keys, values = zip(*found, strict=True)
        return self._joined(keys, given[0]), self._joined(values, given[0])

    def _nothing(self, *part: Tensor) -> Any:
        """What goes on where nothing is placed."""
        if self.slot == "keys_values":
            return part
        return torch.zeros_like(part[0]) if "parallel" in self.slot else part[-1]

    def _joined(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        sizes = {part.shape[1:] for part in parts}
        if len(sizes) > 1:
            listed = ", ".join(
                f"{key!r} {tuple(part.shape[1:])}"
                for key, part in zip(self.rows.keys, parts, strict=True)
            )
            raise NotStackableError(
                f"rows of one batch must be equally long, and are not at {self.slot}: {listed}"
            )
        return self.rows.join(parts, like)
