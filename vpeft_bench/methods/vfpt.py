"""VFPT: prompts of which a part is learned in the frequency domain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.further_tokens import TokenPlace
from vpeft_bench.errors import Problem
from vpeft_bench.methods.base import option
from vpeft_bench.methods.registry import register
from vpeft_bench.methods.vpt import ON_MAPS, VPT, InsertPrompts

TOKENS, CHANNELS = -2, -1
AXES = {"all": (TOKENS, CHANNELS), "sequence": (TOKENS,), "hidden": (CHANNELS,)}


class InsertFourierPrompts(InsertPrompts):
    """Inserts [Re FFT(P_f); P_s] for P = [P_f; P_s].

    Args:
        spectral: rows of P_f.
        transform: the axes of the (unnormalised) FFT.
    """

    def __init__(
        self,
        prompts: Tensor,
        place: TokenPlace,
        projection: nn.Linear | None,
        dropout: float,
        spectral: int,
        transform: str,
    ) -> None:
        super().__init__(prompts, place, projection, dropout)
        self.spectral = spectral
        self.axes = AXES[transform]

    def inserted(self, prompts: Tensor) -> Tensor:
        """``(B, p, D)`` to the same shape; in at least single precision, as the FFT needs it."""
        if self.spectral == 0:
            return prompts
        prompts = prompts.to(torch.promote_types(prompts.dtype, torch.float32))
        transformed = torch.fft.fftn(prompts[:, : self.spectral], dim=self.axes).real
        return torch.cat([transformed, prompts[:, self.spectral :]], dim=1)


@register
@dataclass
class VFPT(VPT):
    """VPT with [x_cls; Re FFT(P_f); P_s; E] for [x_cls; P; E], P_f the first floor(p * ratio) rows.

    At inference it is plain VPT: ``inserted`` of each placed module gives the prompts to use.
    """

    name = "vfpt"
    title = "Visual Fourier Prompt Tuning"
    arxiv = "2411.01327"
    source = "prompts and defaults of the authors' code"
    not_mergeable = "prompts are tokens, not weights (they fold into plain VPT prompts)"
    idea = (
        "A part of VPT's prompts goes through a Fourier transform over tokens and channels, whose "
        "real part is inserted in its place. The prompts mix the frequency and the spatial domain."
    )
    deviations = (
        "The authors' location=append swaps both parts; attention does not see the order, so it "
        "gives the same function and is not offered. Their location=random draws the transformed "
        "rows anew in every forward pass; it is not offered.",
        "The FFT is unnormalised, as in the authors' code: with transform=all the values grow by "
        "about sqrt(|P_f| D). Dropout comes before it.",
        "Where p * ratio is below 1, the authors' code fails on an empty slice; here it is an "
        "error that says so, and ratio=0 is VPT.",
        "Lengths and ratios of the published rows were searched per task and are not in the code.",
        *ON_MAPS,
        "On Swin the authors' code has the transform over both axes only, whatever is asked for.",
    )

    prompt_length: int = option(
        10, "p per insertion (authors: per task; 10 is ours)", minimum=1, search=(5, 10, 50, 100)
    )
    depth: str = option(
        "deep", "deep: every block has prompts; shallow: the first", choices=("deep", "shallow")
    )
    ratio: float = option(
        0.5, "share of the prompts that is transformed (authors: 0.5)", minimum=0.0, maximum=1.0
    )
    transform: str = option(
        "all", "axes of the FFT; sequence: tokens, hidden: channels (authors: all)", choices=AXES
    )

    @property
    def shallow(self) -> bool:
        """As asked for."""
        return self.depth == "shallow"

    @property
    def spectral(self) -> int:
        """Rows of P_f."""
        return int(self.prompt_length * self.ratio)

    def conflicts(self) -> Iterator[Problem]:
        """A share that is less than one prompt."""
        if self.ratio > 0 and self.spectral == 0:
            yield Problem(
                f"method.ratio={self.ratio:g}",
                f"less than one of {self.prompt_length} prompts would be transformed",
                f"method.ratio={1 / self.prompt_length:g} transforms one, method.ratio=0 none",
            )

    def check(self, backbone: Backbone) -> None:
        """As VPT of the same depth."""
        super().check(backbone)
        if self.shallow:
            self._check_shallow(backbone)
        else:
            self._check_deep(backbone)

    def place(self, backbone: Backbone) -> None:
        """As VPT of the same depth."""
        if self.shallow:
            self._place_shallow(backbone)
        else:
            self._place_deep(backbone, backbone.prefix_tokens)

    def _insertion(
        self, prompts: Tensor, place: TokenPlace, projection: nn.Linear | None
    ) -> nn.Module:
        return InsertFourierPrompts(
            prompts, place, projection, self.dropout, self.spectral, self.transform
        )

    def parameter_count(self, backbone: Backbone) -> int:
        """As VPT of the same depth: 92,160 for ViT-B/16 at p = 10 (deep)."""
        return self._count(backbone, backbone.blocks[:1] if self.shallow else backbone.blocks)
