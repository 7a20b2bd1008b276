"""What plain transformers share: one stage of blocks on a sequence of tokens, all of one width."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.patch_embed import PatchEmbed
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vpeft_bench.backbones import operations
from vpeft_bench.backbones.block_map import LINEARS, Backbone, Block, OpenedClasses
from vpeft_bench.backbones.family import Family
from vpeft_bench.backbones.further_tokens import InSequence
from vpeft_bench.backbones.joined import joined_fc1, joined_qkv
from vpeft_bench.backbones.sites import JOINED, OpenedBlock
from vpeft_bench.backbones.trunk import OpenedModel, Stage
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.traits import Trait


class OpenedOneStage(OpenedModel):
    """A timm model of one stage with something placed around its trunk."""

    def stages(self) -> list[Stage]:
        """One stage; all blocks have one resolution."""
        model: Any = self
        return [Stage(nn.Identity(), list(model.blocks))]

    def pooled(self, stream: Tensor) -> Tensor:
        """Final norm, pooling, norm after the pooling, ``(B, D)``."""
        model: Any = self
        return cast(Tensor, model.fc_norm(model.pool(model.norm(stream))))

    def classify(self, features: Tensor) -> Tensor:
        """Dropout and the linear head."""
        model: Any = self
        return cast(Tensor, model.head(model.head_drop(features)))

    def intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's; ``stop_early`` saves nothing, since the last stream may depend on all."""
        model: Any = self
        streams = self.around(x).streams
        taken, _ = feature_take_indices(len(streams), indices)
        chosen = [model.norm(streams[i]) if norm else streams[i] for i in taken]
        prefixes = [stream[:, : model.num_prefix_tokens] for stream in chosen]
        maps = [stream[:, model.num_prefix_tokens :] for stream in chosen]
        if output_fmt == "NCHW":
            height, width = model.patch_embed.dynamic_feat_size(x.shape[-2:])
            maps = [m.transpose(1, 2).unflatten(2, (height, width)).contiguous() for m in maps]
        intermediates = (
            list(zip(maps, prefixes, strict=True))
            if return_prefix_tokens and prefixes[0].numel()
            else maps
        )
        return intermediates if intermediates_only else (model.norm(streams[-1]), intermediates)


class OpenedScaledBlock(OpenedBlock):
    """A block whose LayerScale factors are its own parameters, and whose MLP may have a gate."""

    SLOTS: ClassVar[tuple[str, ...]] = (*OpenedBlock.SLOTS, JOINED)

    def attn_branch(self, normed: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention and its LayerScale, ``(B, N, D)``."""
        block: Any = self
        branch: Tensor = block.attn(normed, *args, **kwargs)
        return branch if block.gamma_1 is None else block.gamma_1 * branch

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP and its LayerScale, ``(B, N, D)``."""
        block: Any = self
        mlp, joined = block.mlp, self._modules[JOINED]
        if joined is None:
            branch: Tensor = mlp(normed)
        else:
            gate, x = joined(normed).chunk(2, dim=-1)
            gate = gate.contiguous()  # as timm's own, for the same rounding
            branch = mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(mlp.act(gate) * x))))
        return branch if block.gamma_2 is None else block.gamma_2 * branch


class OneStage(Family):
    """Families whose models are one stage of blocks."""

    traits = frozenset({Trait.GLOBAL_ATTENTION, Trait.ONE_RESOLUTION, Trait.FURTHER_TOKENS})

    def without_blocks(self, model: Any, opened: OpenedClasses) -> Backbone:
        """What the block map of every model of one stage begins with.

        Raises:
            UnsupportedBackboneError: patches of another kind, such as a convolutional stem.
        """
        return Backbone(
            model,
            family=self,
            opened=opened,
            patch_leaves=patch_leaves(model.patch_embed),
            final_norm=model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm,
            merge_norms=[],
            prefix_tokens=model.num_prefix_tokens,
        )

    def attended_tokens(self, backbone: Backbone, block: Block) -> int:
        """All of them: prefix and patches."""
        model: Any = backbone.model
        return int(model.patch_embed.num_patches) + backbone.prefix_tokens

    def token_place(self, at: int | None) -> InSequence:
        """Between the image's own tokens."""
        return InSequence(at)

    def count_further_tokens(self, backbone: Backbone, count: int, block: Block | None) -> None:
        """Tokens that stay are prefix tokens to timm: pooling and feature maps leave them out."""
        if block is not None:
            return  # blocks and their attention take any number
        backbone.model.num_prefix_tokens += count  # type: ignore[assignment,operator]  # an int
        if self.attention_knows_positions:
            for one in backbone.blocks:
                backbone.open_attention(one)

    def flops(self, backbone: Backbone, image_size: tuple[int, int]) -> int | None:
        """Patches, blocks, pooling and heads."""
        model: Any = backbone.model
        height, width = model.patch_embed.dynamic_feat_size(image_size)
        tokens = backbone.prefix_tokens + height * width
        of_pool = 0
        if (pool := getattr(model, "attn_pool", None)) is not None:
            if type(pool) is not AttentionPoolLatent:
                return None
            include = getattr(model, "pool_include_prefix", True)
            of_pool = operations.latent_pool(pool, tokens if include else height * width)
        return (
            operations.patches(backbone, height * width)
            + sum(operations.block(block, tokens, tokens, tokens) for block in backbone.blocks)
            + of_pool
            + operations.heads(backbone)
        )


def patch_leaves(patch_embed: Any) -> list[nn.Module]:
    """The convolution of plain patches, then their norm where there is one.

    Raises:
        UnsupportedBackboneError: patches of another kind, such as a convolutional stem.
    """
    if type(patch_embed) is not PatchEmbed:
        raise UnsupportedBackboneError(
            f"patch_embed is a {type(patch_embed).__name__}; the block map covers plain "
            "patches (one convolution), not hybrids with a convolutional stem"
        )
    leaves: list[nn.Module] = [patch_embed.proj]
    if not isinstance(patch_embed.norm, nn.Identity):
        leaves.append(patch_embed.norm)
    return leaves


def leaves_of(block: Any, key_bias_counts: bool = False) -> dict[str, Any] | None:
    """The norms and linears of a block; None where a linear is missing or of another kind.

    Args:
        key_bias_counts: see :class:`~vpeft_bench.backbones.joined.JoinedLinear`.
    """
    leaves = {
        "norm1": block.norm1,
        "qkv": joined_qkv(block.attn, key_bias_counts),
        "proj": getattr(block.attn, "proj", None),
        "norm2": block.norm2,
        "fc1": joined_fc1(block.mlp),
        "fc2": getattr(block.mlp, "fc2", None),
    }
    return leaves if all(isinstance(leaves[name], nn.Linear) for name in LINEARS) else None


def kind_of(block: nn.Module) -> str:
    """A block and its parts by the names of their classes."""
    parts = [f"{n}: {type(m).__name__}" for n, m in block.named_children() if n in ("attn", "mlp")]
    return f"{type(block).__name__}({', '.join(parts)})"
