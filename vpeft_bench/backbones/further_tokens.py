"""Further tokens in the residual stream: where prompts stand beside the image's own tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class TokenPlace(Protocol):
    """A place for further tokens in a stream."""

    def put(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The stream x with ``tokens`` ``(B, p, D)`` in it."""

    def split(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The inverse: ``count`` tokens, and the stream without them."""


@dataclass(frozen=True)
class InSequence:
    """In a stream ``(B, N, D)``: after its first ``at`` tokens, or after all where it is None."""

    at: int | None

    def put(self, x: Tensor, tokens: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, N + p, D)``."""
        at = x.shape[1] if self.at is None else self.at
        return torch.cat([x[:, :at], tokens, x[:, at:]], dim=1)

    def split(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """``(B, N + p, D)`` to ``(B, p, D)`` and ``(B, N, D)``."""
        at = x.shape[1] - count if self.at is None else self.at
        return x[:, at : at + count], torch.cat([x[:, :at], x[:, at + count :]], dim=1)


@dataclass(frozen=True)
class AboveMap:
    """In a stream ``(B, H, W, D)``: in rows of their own above the map, the last filled with zeros.

    The stream stays one tensor with its channels last, so that whatever works on each token by
    itself (norms, MLPs, most of what methods place) works on the tokens and on the map alike.
    """

    def put(self, x: Tensor, tokens: Tensor) -> Tensor:
        """``(B, H, W, D)`` to ``(B, H + ceil(p / W), W, D)``."""
        width = x.shape[2]
        filled = nn.functional.pad(tokens, (0, 0, 0, -tokens.shape[1] % width))
        return torch.cat([filled.unflatten(1, (-1, width)), x], dim=1)

    def split(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The inverse: ``(B, p, D)`` and ``(B, H, W, D)``."""
        rows = -(-count // x.shape[2])
        return x[:, :rows].flatten(1, 2)[:, :count], x[:, rows:]
