"""SCT: a linear layer on the channels that matter most for the task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, MergeableModule, Method, option
from vpeft_bench.methods.data_pass import Selection, SelectionData, evaluating, require_finite
from vpeft_bench.methods.registry import register


class ChannelTuning(nn.Module):
    """x_I <- x_I + s (W x_I + b), or s x_I + (W x_I + b) with ``scale_on=stream``.

    Args:
        channels: I, ascending: row and column j of W belong to the j-th smallest channel.
    """

    channels: Tensor

    def __init__(self, channels: Tensor, scale: float, scale_on: str) -> None:
        super().__init__()
        self.register_buffer("channels", channels.clone())  # the selection is stored besides
        self.linear = nn.Linear(len(channels), len(channels))
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.on_stream, self.on_branch = (scale, 1.0) if scale_on == "stream" else (1.0, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(..., D)``; the channels outside I stay as they are."""
        salient = x.index_select(-1, self.channels)
        tuned = self.on_stream * salient + self.on_branch * self.linear(salient)
        return x.index_copy(-1, self.channels, tuned.to(x.dtype))


class TunedOutput(MergeableModule):
    """:class:`ChannelTuning` of a linear's output features, one for each part of them."""

    def __init__(self, parts: Mapping[str, ChannelTuning]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Tune the output y; the input x is not used."""
        for part in self.parts.values():
            y = part(y)
        return y

    def obstacle(self, leaf: nn.Module) -> str | None:
        """A bias needs a bias to go into."""
        return None if getattr(leaf, "bias", None) is not None else "it has no bias for b"

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """y <- A y + c gives W <- A W and bias <- A bias + c, in float64."""
        assert isinstance(leaf, nn.Linear)
        affine = copy.deepcopy(self).double()
        columns, bias = leaf.weight.T.double(), leaf.bias.double()
        leaf.weight.copy_((affine(columns, columns) - affine(bias, torch.zeros_like(bias))).T)
        leaf.bias.copy_(affine(bias, bias))


@register
@dataclass
class SCT(Method):
    """x_I <- x_I + s (W x_I + b) on K salient channels I of every block.

    The importance of a channel is its L2 norm over all pictures and patch tokens of a class in the
    frozen backbone, averaged over the classes; the K largest are tuned.
    """

    name = "sct"
    title = "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels"
    arxiv = "2309.08513"
    source = "class-aware importance and placement of the authors' code, sct_attn by default"
    category = Category.ADDITION
    idea = (
        "A pass over the training data finds the channels with the largest norm, class by class. "
        "One K x K linear layer per block then tunes these channels and leaves all others alone."
    )
    deviations = (
        "The authors' ViT code and V-PETL Bench read scale and scaleonx from their files and "
        "ignore both: they run scale=1 scale_on=branch, the default here. The authors' Swin code "
        "does scale: scale_on=branch, or scale_on=stream for their scaleonx.",
        "placement=mlp selects by the block's output though it tunes the MLP's, as the reference "
        "does. With LayerScale it stands before it, which keeps it foldable.",
        "The reference takes what lies strictly above the (K+1)-th largest importance; here it is "
        "the K largest, the same but for ties.",
        "The class token takes no part in the importance; registers are left out like it. In a "
        "Swin all tokens of the picture count.",
    )

    channels: int = option(96, "K, channels per site (authors and V-PETL Bench: 96)", minimum=1)
    placement: str = option(
        "attn",
        "attn: residual stream after the attention; mlp: the MLP's output; qkv: query and value",
        choices=("attn", "mlp", "qkv"),
    )
    scale: float = option(
        1.0, "s (1 is what V-PETL Bench's ViT runs; its files say 0.1 to 1)", search=(0.1, 0.5, 1.0)
    )
    scale_on: str = option(
        "branch",
        "branch: x + s (W x + b); stream: s x + (W x + b), the authors' scaleonx",
        choices=("branch", "stream"),
    )

    @property
    def merge_refusal(self) -> str | None:
        """The stream's own path has no weights to fold into; the linears have."""
        if self.placement == "attn":
            return "placement=attn changes the residual path itself (placement=mlp and qkv can be)"
        return None

    @property
    def selects(self) -> bool:
        """The channels come from training data."""
        return True

    def check(self, backbone: Backbone) -> None:
        """As every method; and every block must have as many channels as are to be tuned."""
        super().check(backbone)
        narrowest = min(block.width for block in backbone.blocks)
        if self.channels > narrowest:
            raise UnsupportedBackboneError(
                f"method.channels={self.channels}: the narrowest block has {narrowest} channels"
            )

    def select(self, backbone: Backbone, data: SelectionData) -> Selection:
        """The K most important channels of every site, ascending."""
        seen: dict[str, Tensor] = {}
        energies: dict[tuple[str, int], Tensor] = {}  # squares summed, by block and class: (D,)
        hooks = [self._watch(backbone, block, seen) for block in backbone.blocks]
        try:
            with evaluating(backbone.model), torch.no_grad():
                for images, labels in data.training():
                    backbone.model(images)
                    for path, features in seen.items():
                        # The windows of one picture follow each other.
                        tokens = features.reshape(len(images), -1, features.shape[-1])
                        energy = tokens[:, backbone.prefix_tokens :].double().square().sum(1)
                        for label in labels.unique().tolist():
                            total = energies.get((path, label), torch.zeros_like(energy[0]))
                            energies[path, label] = total + energy[labels == label].sum(0)
        finally:
            for hook in hooks:
                hook.remove()
        require_finite(energies.values(), "energy of the data pass")
        selection: Selection = {}
        for block in backbone.blocks:
            of_block = [total for (path, _), total in energies.items() if path == block.path]
            importance = torch.stack(of_block).sqrt().mean(0)
            if self.placement == "qkv":
                query, _, value = importance.chunk(3)
                selection[f"{block.path}.q"] = self._largest(query)
                selection[f"{block.path}.v"] = self._largest(value)
            else:
                selection[block.path] = self._largest(importance)
        return selection

    def _watch(self, backbone: Backbone, block: Block, seen: dict[str, Tensor]) -> RemovableHandle:
        """Keep in ``seen`` what the importance is taken of."""
        if self.placement == "attn":
            return block.mlp_reader.register_forward_pre_hook(
                lambda _, inputs: seen.update({block.path: inputs[0]})
            )
        watched = block.module if self.placement == "mlp" else block.leaf("qkv")
        backbone.call_whole(watched)
        return watched.register_forward_hook(
            lambda _, __, output: seen.update({block.path: output})
        )

    def _largest(self, importance: Tensor) -> Tensor:
        return importance.topk(self.channels).indices.sort().values

    def place_selected(self, backbone: Backbone, selection: Selection) -> None:
        """One linear on the selected channels of every site."""
        for block in backbone.blocks:
            path = block.path
            if self.placement == "attn":
                block.place("stream_mid", self._tuning(selection[path]))
            elif self.placement == "mlp":
                block.place("fc2", TunedOutput({"out": self._tuning(selection[path])}))
            else:
                query = self._tuning(selection[f"{path}.q"])
                value = self._tuning(selection[f"{path}.v"] + 2 * block.width)
                block.place("qkv", TunedOutput({"q": query, "v": value}))

    def _tuning(self, channels: Tensor) -> ChannelTuning:
        return ChannelTuning(channels, self.scale, self.scale_on)

    def parameter_count(self, backbone: Backbone) -> int:
        """K^2 + K per site: 111,744 for ViT-B/16 at K = 96; twice that for placement=qkv."""
        sites = len(backbone.blocks) * (2 if self.placement == "qkv" else 1)
        return sites * self.channels * (self.channels + 1)

    @property
    def identity_at_start(self) -> bool:
        """W starts small, not zero."""
        return False
