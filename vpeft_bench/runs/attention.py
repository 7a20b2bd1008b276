"""Attention rollout of some pictures, before and after tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.sites import OpenedBlock, Stacked, fill, withdraw
from vpeft_bench.drawing import Panel, class_name, enlarged, save, sheet
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.metrics.rollout import added, start, through
from vpeft_bench.runs.before_after import frozen, pictures, require_one_size
from vpeft_bench.runs.build import device_of
from vpeft_bench.runs.shown import Reopened
from vpeft_bench.traits import Trait

PICTURES = 8
CELL = 160  # longer side of a drawn picture, pixels
_COLUMNS = 2  # of pictures with their two maps


@dataclass(frozen=True)
class Read:
    """What the feature that the head reads has from the tokens of the input: its shares sum to 1.

    Attributes:
        patches: ``(B, H, W)``.
        prefix: ``(B,)``, of class and register tokens.
        added: ``(B,)``, of prompts, keys and values that the method added.
    """

    patches: NDArray[np.float64]
    prefix: NDArray[np.float64]
    added: NDArray[np.float64]


def rolled_out(attached: Attached, pictures: Tensor) -> Read:
    """The rollout of pictures ``(B, 3, H, W)``, normalised, through a model; it is as it was.

    Raises:
        VpeftBenchError: its attention maps are not all there is between its tokens.
    """
    backbone = attached.backbone
    require_maps(attached)
    with _observed(backbone) as observers, torch.no_grad():
        attached.model.eval()(pictures)
    try:
        return _read(backbone, [each.seen for each in observers], pictures.shape[-2:])
    except ValueError as error:
        what = f"no attention rollout of method {attached.method.name}: {error}"
        raise VpeftBenchError(what) from error


def require_maps(attached: Attached) -> None:
    """Refuse a model whose attention maps do not say what its head reads.

    Raises:
        VpeftBenchError: it is one.
    """
    backbone, method, no = attached.backbone, attached.method.name, "no attention rollout"
    if Trait.GLOBAL_ATTENTION not in backbone.family.traits:
        what = "attention stays within windows, and no map is of the whole picture"
        raise VpeftBenchError(f"{no} of {backbone.family.name} backbones: their {what}")
    if getattr(backbone.model, "trunk", None) is not None:
        what = "puts a network around the blocks, and what that reads is in no attention map"
        raise VpeftBenchError(f"{no} of method {method}: it {what}")
    pool = getattr(backbone.model, "global_pool", None)
    if pool not in ("token", "avg"):
        what = f"the head reads neither a token nor a mean of tokens (global_pool={pool})"
        raise VpeftBenchError(f"{no}: {what}")


class _Observer(nn.Module):
    """Keeps the map of an attention, the mean over heads ``(B, N, M)``, and changes nothing."""

    seen: Tensor

    def forward(self, probabilities: Tensor) -> Tensor:
        """The same map ``(B, heads, N, M)``."""
        self.seen = probabilities.detach().double().mean(dim=1).cpu()
        return probabilities


@contextmanager
def _observed(backbone: Backbone) -> Iterator[list[_Observer]]:
    """The map of every block, after whatever the method does to it.

    The fused kernel computes the output as before: a map that is handed on unchanged adds nothing.
    """
    observers = [_Observer() for _ in backbone.blocks]
    for block in backbone.blocks:
        backbone.open_attention(block)
    for block, observer in zip(backbone.blocks, observers, strict=True):
        fill(block.attention, "attention_map", observer)
    try:
        yield observers
    finally:
        for block in backbone.blocks:
            withdraw(block.attention, "attention_map")


def _read(backbone: Backbone, maps: Sequence[Tensor], size: tuple[int, ...]) -> Read:
    model: Any = backbone.model
    height, width = model.patch_embed.dynamic_feat_size(size)
    own = backbone.prefix_tokens + height * width
    shares = start(len(maps[0]), own)
    for block, attention in zip(backbone.blocks, maps, strict=True):
        shares = _moved(block, "stream_in", shares)
        shares = through(shares, attention)
        shares = _moved(block, "stream_out", shares)
    read = shares[:, _readers(backbone, shares.shape[1])].mean(dim=1)
    patches = read[:, backbone.prefix_tokens : own].reshape(-1, height, width)
    prefix = read[:, : backbone.prefix_tokens].sum(dim=1)
    return Read(patches.numpy(), prefix.numpy(), read[:, own].numpy())


def _moved(block: Block, slot: str, shares: Tensor) -> Tensor:
    """Shares with the tokens that a method puts into the stream there, or takes out of it."""
    held = block.module._modules.get(slot) if isinstance(block.module, OpenedBlock) else None
    modules: Any = held if isinstance(held, Stacked) else [held]
    for module in modules:
        place: Any = getattr(module, "place", None)
        if place is None:
            continue
        if slot == "stream_in":
            shares = place.put(shares, added(shares, module.prompts.shape[1]))
        else:
            shares = place.split(shares, module.length)[1]
    return shares


def _readers(backbone: Backbone, tokens: int) -> range:
    """The tokens of the last stream that the head reads."""
    model: Any = backbone.model
    if model.global_pool == "token":
        return range(len(backbone.heads))
    return range(
        0 if getattr(model, "pool_include_prefix", False) else model.num_prefix_tokens, tokens
    )


# ---- drawing -------------------------------------------------------------------------------------


def draw(run: Reopened, path: Path, most: int = PICTURES) -> Path:
    """Pictures spread evenly over the split, each with its rollout before and after tuning.

    Raises:
        VpeftBenchError: as :func:`require_maps`, or the run's pictures have no common size.
        OSError: the picture cannot be written.
    """
    require_one_size(run, "attention rollout is of")
    count = len(run.dataset.split(run.split))
    chosen = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    require_maps(run.model.attached)  # before a second model is built
    images, labels = (torch.cat(of) for of in zip(*pictures(run, chosen), strict=True))
    device = device_of(run.config.hardware.accelerator)
    reads = []
    for model in (frozen(run), run.model):
        model.attached.model.to(device)
        inputs = model.preprocessing.normalize(images.to(device))
        reads.append(rolled_out(model.attached, inputs))
    before, after = reads
    panels = []
    for at, index in enumerate(chosen):
        picture = Image.fromarray(images[at].permute(1, 2, 0).numpy())
        most_lit = max(before.patches[at].max(), after.patches[at].max())
        lit = [_lit(each.patches[at] / most_lit, picture) for each in (before, after)]
        name = class_name(run.dataset, int(labels[at]))
        read = f"frozen: {_shares(before, at)}; tuned: {_shares(after, at)}"
        caption = f"{run.split} {index}, {name}. {read}"
        panels.append(Panel([enlarged(picture, CELL), *lit], caption))
    config = run.config
    title = (
        f"{config.method['name']} on {config.data.name}, {config.backbone.name}: attention "
        "rollout, mean of heads; picture, frozen, tuned; bright: the largest share of a picture"
    )
    save(sheet(panels, title, run.dataset, _COLUMNS, CELL), path)
    return path


def _shares(read: Read, at: int) -> str:
    parts = {"patches": read.patches[at].sum(), "prefix": read.prefix[at], "added": read.added[at]}
    return ", ".join(f"{name} {share:.0%}" for name, share in parts.items() if share > 0)


def _lit(share: NDArray[np.float64], picture: Image.Image) -> Image.Image:
    """A map from dark, 0, to bright, 1, as large as its picture is drawn.

    Not laid over the picture, whose own light and dark would be taken for the map's.
    """
    heat = Image.fromarray((255 * colormaps["inferno"](share)[..., :3]).round().astype(np.uint8))
    return heat.resize(enlarged(picture, CELL).size, Image.Resampling.NEAREST)
