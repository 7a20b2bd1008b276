"""Reading golden files: the directory, the format, and the plain backbone each of them describes.

Every size comes from a file's ``meta``: other directories in the same format may hold other widths,
depths, ranks, scales, image sizes, head counts or numbers of stages.
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

DIRECTORY_VARIABLE = "VPEFT_GOLDEN_DIR"
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


class NoGoldenFilesError(Exception):
    """A directory of golden files was expected and is not there, or holds none."""


class GoldenFile:
    """One ``.npz`` file, by its keys."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta
        self.method: str = meta["method"]
        self.hyper: dict[str, Any] = meta["hyper"]
        self.arrays: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: Path) -> GoldenFile:
        """Only ``meta``, which keeps collecting the tests quick; :meth:`read` loads the rest."""
        with np.load(path) as arrays:
            return cls(path, json.loads(str(arrays["meta"])))

    def write(self) -> None:
        """Store ``meta`` and every array at ``path``."""
        arrays: dict[str, Any] = {"meta": np.array(json.dumps(self.meta)), **self.arrays}
        np.savez(self.path, **arrays)

    def read(self) -> GoldenFile:
        """Load every array."""
        with np.load(self.path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files if name != "meta"}
        return self

    def tensor(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """One entry as a tensor."""
        tensor = torch.from_numpy(self.arrays[key])
        return tensor if dtype is None else tensor.to(dtype)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Every entry below ``prefix/``, without the prefix."""
        start = f"{prefix}/"
        return {k[len(start) :]: self.tensor(k) for k in self.arrays if k.startswith(start)}

    def outputs(self, kind: str, dtype: torch.dtype) -> list[Tensor]:
        """``kind`` is "" or "backbone_": logits of a classifier, or a Swin's features by stage."""
        suffix = "64" if dtype is torch.float64 else ""
        if f"{kind}logits" in self.arrays:
            return [self.tensor(f"{kind}logits{suffix}")]
        stages = self.group(f"{kind}features{suffix}")
        return [stages[str(stage)] for stage in range(len(stages))]


def golden_files() -> list[GoldenFile] | None:
    """The files of ``$VPEFT_GOLDEN_DIR``, or of all ``golden*`` below the shared folder.

    The variable names one directory or several, separated as in PATH. The shared folder lies beside
    the repository.

    Returns:
        None where the variable is unset and there is no shared folder: nothing can be compared.

    Raises:
        NoGoldenFilesError: there is no directory, or one that is missing or holds no file.
    """
    asked = os.environ.get(DIRECTORY_VARIABLE)
    if asked is None and not SHARED.is_dir():
        return None
    if asked is None:
        directories = sorted(path for path in SHARED.glob("golden*") if path.is_dir())
    else:
        directories = [Path(name) for name in asked.split(os.pathsep) if name]
    if not directories:
        where = f"{SHARED} holds no golden*" if asked is None else f"{DIRECTORY_VARIABLE} is empty"
        raise NoGoldenFilesError(where)
    return [GoldenFile.open(path) for directory in directories for path in _files(directory)]


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise NoGoldenFilesError(f"{directory} is not a directory")
    paths = sorted(directory.glob("*.npz"))
    if not paths:
        raise NoGoldenFilesError(f"{directory} holds no .npz file")
    return paths


class GoldenModel(nn.Module):
    """The plain backbone of a golden file, and what the reference puts behind it.

    Attributes:
        model: the timm model a method is attached to.
        out_norms: Swin without a classifier, the LayerNorm behind each stage; it stands in for the
            final norm.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        super().__init__()
        backbone = meta["backbone"]
        build = {"vit": _build_vit, "swin": _build_swin}[backbone.get("kind", "vit")]
        self.model: Any = build(backbone)
        self.eps = backbone["layer_norm_eps"]
        self.out_norms = nn.ModuleDict()
        if isinstance(self.model, SwinTransformer) and "num_classes" not in backbone:
            for stage, info in enumerate(self.model.feature_info):
                self.out_norms[f"norm{stage}"] = nn.LayerNorm(info["num_chs"], eps=self.eps)

    def fill(self, golden: GoldenFile) -> None:
        """Load the frozen weights, strictly."""
        weights = golden.group("backbone")
        if isinstance(self.model.norm, nn.Identity):  # pooled over patches, the norm behind that
            weights = {re.sub(r"^norm\.", "fc_norm.", name): w for name, w in weights.items()}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        # A Swin's stage outputs have norms of their own; its final norm is not part of the file.
        unused = {"norm.weight", "norm.bias"} if self.out_norms else set()
        assert (set(missing), unexpected) == (unused, [])
        self.out_norms.load_state_dict(golden.group("outnorm"), strict=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of a classifier, or the normed feature maps (NCHW) of every stage of a Swin."""
        if not self.out_norms:
            return [self.model(images)]
        stages = self.model.forward_intermediates(images, intermediates_only=True)
        return [
            norm(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for norm, stage in zip(self.out_norms.values(), stages, strict=True)
        ]


def loss(golden: GoldenFile, outputs: list[Tensor]) -> Tensor:
    """What the reference differentiated."""
    if "targets" in golden.arrays:
        return nn.functional.cross_entropy(outputs[0], golden.tensor("targets"))
    cotangents = [golden.tensor(f"cotangent/{stage}") for stage in range(len(outputs))]
    return torch.stack([(o * c).sum() for o, c in zip(outputs, cotangents, strict=True)]).sum()


def summed_in_loss(golden: GoldenFile, outputs: list[Tensor]) -> int:
    """How many numbers, each as exact as the outputs, the loss sums up."""
    return 1 if "targets" in golden.arrays else sum(output.numel() for output in outputs)


def _build_vit(backbone: dict[str, Any]) -> nn.Module:
    pooling: Any = {"token": "token", "mean": "avg", "side": "token"}[
        backbone["pooling"].split()[0]
    ]
    return VisionTransformer(
        img_size=backbone["img_size"],
        patch_size=backbone["patch_size"],
        embed_dim=backbone["embed_dim"],
        depth=backbone["depth"],
        num_heads=backbone["num_heads"],
        mlp_ratio=backbone["mlp_ratio"],
        num_classes=backbone["num_classes"],
        qkv_bias=backbone["qkv_bias"],
        global_pool=pooling,
        norm_layer=partial(LayerNorm, eps=backbone["layer_norm_eps"]),
    )


def _build_swin(backbone: dict[str, Any]) -> nn.Module:
    norm_layer: Any = partial(LayerNorm, eps=backbone["layer_norm_eps"])
    return SwinTransformer(
        img_size=backbone["img_size"],
        patch_size=backbone["patch_size"],
        embed_dim=backbone["embed_dim"],
        depths=backbone["depths"],
        num_heads=backbone["num_heads"],
        window_size=backbone["window_size"],
        mlp_ratio=backbone["mlp_ratio"],
        qkv_bias=backbone["qkv_bias"],
        norm_layer=norm_layer,
        num_classes=backbone.get("num_classes", 0),
    )
