"""Tokens as maps, for methods that convolve over the image."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError


@dataclass(frozen=True)
class TokenGrid:
    """How the tokens of a stream lie in the image.

    Attributes:
        prefix_tokens: class and register tokens, which lie nowhere; None where the stream is a map
            already.
        size: rows and columns of the patch embedding, where it has a fixed grid.
    """

    prefix_tokens: int | None
    size: tuple[int, int] | None

    @classmethod
    def of(cls, backbone: Backbone) -> TokenGrid:
        """The grid of ``backbone``; the same for all of its blocks."""
        if backbone.family.stream_is_map:
            return cls(None, None)
        embedding = backbone.model.patch_embed
        return cls(backbone.prefix_tokens, getattr(embedding, "grid_size", None))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix tokens ``(B, P, D)`` and the map ``(B, D, h, w)``.

        Args:
            x: tokens ``(B, P + h * w, D)``, or a map ``(B, h, w, D)``; there P is 0.
        """
        if self.prefix_tokens is None:
            return x[:, 0, :0], x.permute(0, 3, 1, 2)
        prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        return prefix, patches.transpose(1, 2).unflatten(2, self._rows_and_columns(patches))

    def join(self, prefix: Tensor, image: Tensor) -> Tensor:
        """The inverse of :meth:`split`, for any number of channels."""
        if self.prefix_tokens is None:
            return image.permute(0, 2, 3, 1)
        return torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1)

    def _rows_and_columns(self, patches: Tensor) -> tuple[int, int]:
        """The embedding's own grid where the tokens fill it, else a square of them."""
        count = patches.shape[1]
        if self.size is not None and self.size[0] * self.size[1] == count:
            return self.size
        side = isqrt(count)
        if side * side != count:
            raise ValueError(f"{count} patch tokens are neither the grid {self.size} nor a square")
        return side, side


def require_grid(method: str, backbone: Backbone) -> None:
    """Refuse a backbone whose tokens form no grid, for :meth:`Method.check`.

    Raises:
        UnsupportedBackboneError: the model drops patches at random.
    """
    if backbone.drops_patches:
        raise UnsupportedBackboneError(
            f"method {method} does not support patch dropout: the tokens that are left form no "
            "grid to convolve over (build the model with patch_drop_rate=0)"
        )
