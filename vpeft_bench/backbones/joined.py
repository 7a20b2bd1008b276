"""Linears that timm keeps in pieces, as the one linear that methods know.

Some of timm's attentions keep the biases of query and value beside the ``qkv`` linear (the key has
none), some have three linears, and some MLPs have one linear for the gate and one for what is
gated. :class:`JoinedLinear` is the whole of them: it owns nothing, and an opened attention or block
calls it in the place of its pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class JoinedLinear(nn.Linear):
    """One linear over the pieces; its output features are theirs, one after another.

    Args:
        pieces: timm's linears.
        owner: the attention that holds ``q_bias`` and ``v_bias`` for a single linear, or None where
            each piece has its own bias.
        key_bias_counts: whether a bias of the keys, where timm has none, would change anything. It
            does not where the scores are plain products of queries and keys: it then adds the same
            to the scores of all keys.
    """

    def __init__(
        self,
        pieces: Sequence[nn.Linear],
        owner: nn.Module | None = None,
        key_bias_counts: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        # In tuples, which nn.Module does not search for modules: they stay where timm has them.
        self.pieces = tuple(pieces)
        self._owner = (owner,)
        self.key_bias_counts = key_bias_counts
        self.in_features = pieces[0].in_features
        self.out_features = sum(piece.out_features for piece in pieces)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``(out_features, in_features)``; the parameter itself where there is one piece."""
        weights = [piece.weight for piece in self.pieces]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """``(out_features,)``, zero where timm has none; None where no piece has any."""
        biases = [bias for bias, _ in self._biases()]
        like = next((bias for bias in biases if bias is not None), None)
        if like is None:
            return None
        rows = self._rows()
        return torch.cat(
            [like.new_zeros(n) if b is None else b for b, n in zip(biases, rows, strict=True)]
        )

    def _rows(self) -> list[int]:
        """Output features of each bias."""
        if self._owner[0] is not None:
            return [self.out_features // 3] * 3
        return [piece.out_features for piece in self.pieces]

    def _biases(self) -> Iterator[tuple[Tensor | None, bool]]:
        """Each bias with whether it is one of keys."""
        owner: Any = self._owner[0]
        found: list[Tensor | None] = [piece.bias for piece in self.pieces]
        if owner is not None:
            found = [owner.q_bias, None, owner.v_bias]
        return ((bias, len(found) == 3 and index == 1) for index, bias in enumerate(found))

    def held_parameters(self) -> list[nn.Parameter]:
        """Weights and biases, wherever timm has them."""
        held = [piece.weight for piece in self.pieces] + [bias for bias, _ in self._biases()]
        return [parameter for parameter in held if isinstance(parameter, nn.Parameter)]

    def forward(self, x: Tensor) -> Tensor:
        """As timm computes it, bit for bit."""
        owner: Any = self._owner[0]
        if owner is None:
            return torch.cat([piece(x) for piece in self.pieces], dim=-1)
        if owner.qkv_bias_separate:
            projected = nn.functional.linear(x, self.weight)
            return projected if self.bias is None else projected + self.bias
        return nn.functional.linear(x, self.weight, self.bias)

    # ---- for folding ---------------------------------------------------------------------------

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """A linear of its own with the same values."""
        weight, bias = self.weight, self.bias
        linear: nn.Linear = skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear

    def obstacle(self, bias: Tensor | None) -> str | None:
        """Why the pieces cannot take over ``bias``, or None where they can."""
        if bias is None:
            return None
        parts = zip(bias.split(self._rows()), self._biases(), strict=True)
        for part, (own, of_keys) in parts:
            if own is None and part.any() and (self.key_bias_counts or not of_keys):
                return "the keys have no bias to fold a shift into, and one would count"
        return None

    @torch.no_grad()
    def take(self, linear: nn.Linear) -> None:
        """Take over the values of ``linear``, which has nothing that the pieces cannot hold."""
        rows = [piece.out_features for piece in self.pieces]
        for piece, part in zip(self.pieces, linear.weight.split(rows), strict=True):
            piece.weight.copy_(part)
        if linear.bias is not None:
            parts = zip(linear.bias.split(self._rows()), self._biases(), strict=True)
            for part, (own, _) in parts:
                if own is not None:
                    own.copy_(part)


def joined_qkv(attention: Any, key_bias_counts: bool) -> nn.Linear | None:
    """The qkv linear of one of timm's attentions: its own, or the whole of its pieces.

    None where there is no such linear (keys and values of fewer heads than queries).
    """
    if getattr(attention, "num_kv_groups", 1) != 1:
        return None
    qkv = getattr(attention, "qkv", None)
    if qkv is None:
        pieces = [getattr(attention, f"{part}_proj", None) for part in "qkv"]
        if not all(isinstance(piece, nn.Linear) for piece in pieces):
            return None
        return JoinedLinear(cast(list[nn.Linear], pieces), None, key_bias_counts)
    if getattr(attention, "q_bias", None) is None:
        return cast(nn.Linear, qkv)
    return JoinedLinear([qkv], attention, key_bias_counts)


def joined_fc1(mlp: Any) -> nn.Linear | None:
    """The first linear of an MLP: its own, or gate and gated in one."""
    if isinstance(fc1 := getattr(mlp, "fc1", None), nn.Linear):
        return fc1
    pieces = [getattr(mlp, name, None) for name in ("fc1_g", "fc1_x")]
    if not all(isinstance(piece, nn.Linear) for piece in pieces):
        return None
    return JoinedLinear(cast(list[nn.Linear], pieces))
