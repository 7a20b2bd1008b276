"""DINOv3, EVA and EVA-02: timm's ``Eva``, with rotary positions and gated MLPs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any, ClassVar, cast

import torch
from timm.layers.attention import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, checkpoint_filter_fn
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, OpenedClasses
from vpeft_bench.backbones.one_stage import (
    OneStage,
    OpenedOneStage,
    OpenedScaledBlock,
    kind_of,
    leaves_of,
)
from vpeft_bench.backbones.sites import OpenedJoinedAttention
from vpeft_bench.backbones.trunk import BoundBlock, Stage
from vpeft_bench.errors import UnsupportedBackboneError


class OpenedEvaBlock(OpenedScaledBlock, EvaBlock):
    """timm's EVA block with its places open."""


class OpenedRotaryAttention(OpenedJoinedAttention):
    """Attention whose queries and keys are turned by their positions, with q, k, v within reach."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Tokens ``(B, N, D)``, the patches last; what is before them has no positions."""
        attention: Any = self
        gate_of = getattr(attention, "gate", None)  # newer timm has one
        gate = None if gate_of is None else gate_of(x).sigmoid()
        if is_causal:
            tokens = x.shape[1]
            future = x.new_full((tokens, tokens), -torch.inf).triu(1)
            attn_mask = future if attn_mask is None else future + attn_mask
        q, k, v = self.split_heads(self.projected(x), 3)
        q, k = attention.q_norm(q), attention.k_norm(k)
        if rope is not None:
            turn = partial(self._turned, rope=rope, half=getattr(attention, "rotate_half", False))
            q, k = turn(q).type_as(v), turn(k).type_as(v)
        out = self.attend(q, k, v, [] if attn_mask is None else [attn_mask])
        out = attention.norm(out.transpose(1, 2).flatten(2))
        if gate is not None:
            out = out * gate
        return cast(Tensor, attention.proj_drop(attention.proj(out)))

    def _turned(self, tokens: Tensor, rope: Tensor, half: bool) -> Tensor:
        prefix = tokens.shape[2] - rope.shape[-2]
        turned = apply_rot_embed_cat(tokens[:, :, prefix:], rope, half=half)
        return torch.cat([tokens[:, :, :prefix], turned], dim=2)


class OpenedEvaAttention(OpenedRotaryAttention, EvaAttention):
    """timm's attention of EVA."""


class OpenedAttentionRope(OpenedRotaryAttention, AttentionRope):
    """timm's attention of the Perception Encoder and the ViTs with rotary positions."""


class OpenedEva(OpenedOneStage, Eva):  # type: ignore[misc]  # takes no mask
    """timm's EVA with something placed around its trunk."""

    def embed(self, images: Tensor) -> Tensor:
        """Class and register tokens, patches and positions, ``(B, N, D)``."""
        x, _ = self._pos_embed(self.patch_embed(images))
        return cast(Tensor, self.norm_pre(x))

    def stages(self) -> list[Stage]:
        """One stage; each block gets the rotary positions of the patches that reach it."""
        blocks: Any = self.blocks
        bound = [BoundBlock(b, partial(self._positions, index)) for index, b in enumerate(blocks)]
        return [Stage(nn.Identity(), bound)]

    def _positions(self, index: int, x: Tensor) -> dict[str, Tensor]:
        """What block ``index`` takes beside the stream x."""
        rope: Any = self.rope
        if rope is None:
            return {}
        if hasattr(rope, "feat_shape") and not self.dynamic_img_size:
            found = rope.get_embed()
        else:
            found = rope.get_embed(shape=self._grid(x.shape[1] - self.num_prefix_tokens))
        return {"rope": found[index] if self.rope_mixed else found}

    def _grid(self, patches: int) -> tuple[int, int]:
        """Rows and columns: the embedding's own grid where the patches fill it, else a square."""
        height, width = self.patch_embed.grid_size
        if height * width == patches:
            return height, width
        side = isqrt(patches)
        if side * side != patches:
            raise ValueError(f"{patches} patches are neither {height} x {width} nor a square")
        return side, side


class EVA(OneStage):
    """EVA and what timm builds from the same class."""

    name = "eva"
    title = "EVA, EVA-02, DINOv3"
    models = (Eva,)
    modules = ("eva",)
    attention_knows_positions = True
    attentions: ClassVar[dict[type[nn.Module], type[nn.Module]]] = {
        EvaAttention: OpenedEvaAttention,
        AttentionRope: OpenedAttentionRope,
    }

    def map(self, model: Any) -> Backbone:
        """Block map of a timm ``Eva``.

        Raises:
            UnsupportedBackboneError: blocks of another kind (norms after the branches, keys and
                values of fewer heads), or patches dropped at random.
        """
        attention = self.attentions.get(type(model.blocks[0].attn), OpenedEvaAttention)
        backbone = self.without_blocks(model, OpenedClasses(OpenedEva, OpenedEvaBlock, attention))
        if backbone.drops_patches:
            raise UnsupportedBackboneError(
                "the block map of EVA covers no patch dropout: a network around the blocks could "
                "not tell the positions of the patches that are left (patch_drop_rate=0)"
            )
        for index, block in enumerate(model.blocks):
            turned = model.rope is not None
            leaves = leaves_of(block, turned) if type(block) is EvaBlock else None
            if leaves is None:
                raise UnsupportedBackboneError(
                    f"blocks.{index} is {kind_of(block)}; the block map of EVA covers timm's "
                    "pre-norm EvaBlock with as many heads for keys as for queries"
                )
            backbone.add_block(f"blocks.{index}", leaves)
        return backbone

    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """The original checkpoints of EVA and DINOv3, and other sizes."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it tries in vain
            return checkpoint_filter_fn(dict(state), model, **options)  # type: ignore[no-any-return]


FAMILY = EVA()
