"""Semantic segmentation: a decoder on a backbone's feature maps, its losses and its label maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.config.sections import IGNORED_LABEL, HeadConfig, HeadNorm, Inference, InputConfig
from vpeft_bench.errors import ConfigError, Problem, VpeftBenchError
from vpeft_bench.heads.decoders import AuxiliaryFCN, LinearDecoder, SemanticFPN, UPerNet
from vpeft_bench.heads.levels import Levels
from vpeft_bench.heads.names import HEADS, of_task

AUXILIARY_LEVEL = 2
CLASSES_AT_ONCE = 16


class Segmenter(nn.Module):
    """Scores of every class at every pixel, for pictures of any size.

    Args:
        levels: images ``(B, 3, H, W)`` to feature maps, finest first.
        decoder: feature maps to scores ``(B, K, H', W')``.
        auxiliary: a second decoder that only the losses use, or None.
        auxiliary_weight: weight of its loss.
        size_divisor: pictures are padded to a multiple of this, pixels.
        square: the only height and width that the backbone reads, pixels; None: it reads any.
        window: side of the window that slides over larger pictures, pixels; None: the whole picture
            is segmented at once.
        window_stride: step of the window, at most ``window``.
    """

    def __init__(
        self,
        levels: Levels | StageFeatures,
        decoder: nn.Module,
        auxiliary: nn.Module | None = None,
        *,
        auxiliary_weight: float = 0.4,
        size_divisor: int = 32,
        square: int | None = None,
        window: int | None = None,
        window_stride: int = 1,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.decoder = decoder
        self.auxiliary = auxiliary
        self.auxiliary_weight = auxiliary_weight
        self.size_divisor = size_divisor
        self.square = square
        self.window = window
        self.window_stride = window_stride
        self._batch_norm = any(
            isinstance(module, nn.BatchNorm2d)
            for head in (decoder, auxiliary)
            if head is not None
            for module in head.modules()
        )

    def losses(self, images: Tensor, label_maps: Tensor) -> dict[str, Tensor]:
        """Mean cross entropy over the pixels that have a class; zero where none has.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            label_maps: ``(B, H, W)`` integers, ``IGNORED_LABEL`` where there is no class.

        Returns:
            ``loss_segmentation``, and ``loss_auxiliary`` where there is such a head, weighted.

        Raises:
            ConfigError: BatchNorm is to train on one picture.
        """
        if self.training and self._batch_norm and len(images) < 2:
            fix = "train.batch_size=2 or more, without a last batch of one; or head.norm=group"
            what = "cannot train on a batch of one picture"
            raise ConfigError([Problem(f"head.norm={HeadNorm.batch.value}", what, fix)])
        padded = self._padded(images)
        maps = self.levels(padded)
        truth = label_maps.long()
        losses = {"loss_segmentation": self._loss(self.decoder(maps), padded, truth)}
        if self.auxiliary is not None:
            loss = self._loss(self.auxiliary(maps), padded, truth)
            losses["loss_auxiliary"] = self.auxiliary_weight * loss
        return losses

    def scores(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)``, read at once, to logits ``(B, K, H, W)``, float32.

        Raises:
            VpeftBenchError: they are larger than the square that the backbone reads.
        """
        padded = self._padded(images)
        return _full_size(self.decoder(self.levels(padded)), padded, images.shape[-2:])

    def segment(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of every pixel of one picture.

        Args:
            image: ``(1, 3, h, w)``, normalised.
            size: height and width of the label map, pixels: of the picture before it was resized.

        Returns:
            ``(H, W)`` uint8 classes from 0.
        """
        (labels,) = self.segment_batch(image, [size])
        return labels

    @torch.no_grad()
    def segment_batch(
        self, images: Sequence[Tensor] | Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """As :meth:`segment`, for several pictures; those of one size are read together.

        Args:
            images: ``(3, h, w)`` each, normalised.
            sizes: height and width of each label map, pixels.

        Returns:
            ``(H, W)`` uint8 classes from 0, one map for each picture.
        """
        same_size: dict[torch.Size, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            same_size[image.shape].append(index)
        label_maps: dict[int, Tensor] = {}
        for indices in same_size.values():
            batch = torch.stack([images[index] for index in indices])
            scores = self.scores(batch) if self.window is None else self._sliding_scores(batch)
            for index, one in zip(indices, scores, strict=True):
                label_maps[index] = label_map(one, sizes[index])
        return [label_maps[index] for index in range(len(images))]

    def _sliding_scores(self, images: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``: the mean over the windows that a pixel is in."""
        height, width = images.shape[-2:]
        assert self.window is not None
        total, windows = None, images.new_zeros(height, width, dtype=torch.float32)
        for top in window_starts(height, self.window, self.window_stride):
            for left in window_starts(width, self.window, self.window_stride):
                place = (..., slice(top, top + self.window), slice(left, left + self.window))
                scores = self.scores(images[place])
                if total is None:
                    total = scores.new_zeros(*scores.shape[:2], height, width)
                total[place] += scores
                windows[place] += 1
        assert total is not None
        return total / windows

    def _loss(self, scores: Tensor, padded: Tensor, truth: Tensor) -> Tensor:
        scores = _full_size(scores, padded, truth.shape[-2:])
        loss = F.cross_entropy(scores, truth, ignore_index=IGNORED_LABEL, reduction="sum")
        return loss / (truth != IGNORED_LABEL).sum().clamp(min=1)

    def _padded(self, images: Tensor) -> Tensor:
        """With zeros on the right and at the bottom, to a size that the backbone reads."""
        height, width = images.shape[-2:]
        if self.square is None:
            bottom, right = -height % self.size_divisor, -width % self.size_divisor
        elif max(height, width) > self.square:
            raise VpeftBenchError(
                f"a picture of {height} x {width} pixels is larger than the {self.square} x "
                f"{self.square} that the backbone reads; type input.inference=slide to segment it "
                f"in windows, or input.longer_side={self.square}"
            )
        else:
            bottom, right = self.square - height, self.square - width
        return F.pad(images, (0, right, 0, bottom))


def build_segmenter(
    head: HeadConfig,
    input_config: InputConfig,
    features: StageFeatures,
    num_classes: int,
    square: int | None = None,
) -> Segmenter:
    """The segmenter that ``head`` names, with the neck that it needs.

    Args:
        head: its name, widths and norm.
        input_config: padding, and how pictures larger than the training crop are segmented.
        features: the backbone.
        num_classes: K, at most 255.
        square: height and width that a Vision Transformer was built for, pixels; None for a Swin.
            It is then the sliding window's side.

    Raises:
        ConfigError: no such head, too many classes, or windows that would leave gaps.
    """
    if head.name not in of_task("segmentation"):
        raise ConfigError([HEADS.unknown(head.name, of_task("segmentation"))])
    if num_classes > IGNORED_LABEL:
        what = f"label maps hold at most {IGNORED_LABEL} classes"
        raise ConfigError([Problem(f"data.num_classes={num_classes}", what)])
    slides = input_config.inference is Inference.slide
    window = square or input_config.crop
    stride = input_config.window_stride
    stride = max(1, window * 2 // 3) if stride is None else stride
    if slides and not 1 <= stride <= window:
        where, what = f"input.window_stride={stride}", f"not between 1 and the window's {window}"
        raise ConfigError([Problem(where, what, "null is two thirds of the window")])

    levels: Levels | StageFeatures
    auxiliary: nn.Module | None = None
    if head.name == "linear" and len(features.widths) == 1:
        levels = features
    else:
        levels = Levels(features, head.channels)
    if head.name == "linear":
        decoder: nn.Module = LinearDecoder(levels.widths, num_classes, head.dropout)
    elif head.name == "fpn":
        decoder = SemanticFPN(
            levels.widths, head.channels, head.hidden, num_classes, head.norm, head.dropout
        )
    else:
        decoder = UPerNet(levels.widths, head.hidden, num_classes, head.norm, head.dropout)
        if head.auxiliary_weight:
            auxiliary = AuxiliaryFCN(
                AUXILIARY_LEVEL,
                levels.widths[AUXILIARY_LEVEL],
                max(1, head.hidden // 2),
                num_classes,
                head.norm,
                head.dropout,
            )
    return Segmenter(
        levels,
        decoder,
        auxiliary,
        auxiliary_weight=head.auxiliary_weight,
        size_divisor=input_config.size_divisor,
        square=square,
        window=window if slides else None,
        window_stride=stride,
    )


def window_starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Where windows start along a side of ``length`` pixels; the last one ends where it ends."""
    last = max(length - window, 0)
    yield from range(0, last, stride)
    yield last


def label_map(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores ``(K, h, w)``, resized bilinearly to ``size``, to the class of the highest: uint8.

    A few classes at a time, because all scores of a large picture need not fit into memory.
    """
    best = labels = None
    for first in range(0, len(scores), CLASSES_AT_ONCE):
        some = scores[None, first : first + CLASSES_AT_ONCE]
        highest, index = F.interpolate(some, size=size, mode="bilinear", align_corners=False)[
            0
        ].max(dim=0)
        index = (index + first).to(torch.uint8)
        if best is None or labels is None:
            best, labels = highest, index
        else:
            labels = torch.where(highest > best, index, labels)
            best = torch.maximum(best, highest)
    assert labels is not None
    return labels


def _full_size(scores: Tensor, padded: Tensor, size: torch.Size) -> Tensor:
    """Scores at any resolution to those of the padded images, float32, without the padding."""
    height, width = size
    scores = F.interpolate(
        scores.float(), size=padded.shape[-2:], mode="bilinear", align_corners=False
    )
    return scores[..., :height, :width]
