"""Segmentation heads on small real backbones; windows and label maps on a model that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.conftest import REPOSITORY
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.config.sections import HeadConfig, HeadNorm, Inference, InputConfig
from vpeft_bench.errors import ConfigError, VpeftBenchError
from vpeft_bench.heads.decoders import AuxiliaryFCN, LinearDecoder, UPerNet, resized
from vpeft_bench.heads.names import of_task
from vpeft_bench.heads.segmenters import (
    Segmenter,
    build_segmenter,
    label_map,
    window_starts,
)

CLASSES = 5
SQUARE = 32
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 64,
            "window_size": 4,
            "embed_dim": 8,
            "depths": (1, 1, 2, 1),
            "num_heads": (1, 2, 2, 4),
            "strict_img_size": False,
            "always_partition": True,
        },
    ),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": SQUARE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
}


def features(kind: str) -> StageFeatures:
    name, overrides = BACKBONES[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, drop_path_rate=0.0, **overrides)
    return StageFeatures(block_map(model))


def head_config(name: str, **changes: Any) -> HeadConfig:
    return HeadConfig(**{"name": name, "channels": 32, "hidden": 32, **changes})


def build(kind: str, name: str, head: dict[str, Any] | None = None, **inputs: Any) -> Segmenter:
    square = SQUARE if kind == "vit" else None
    torch.manual_seed(1)
    return build_segmenter(
        head_config(name, **(head or {})), InputConfig(**inputs), features(kind), CLASSES, square
    )


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def truth(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(CLASSES, (count, height, width), generator=generator)
    labels[:, : height // 3] = 255
    return labels.to(torch.uint8)


class Known(nn.Module):
    """In place of a backbone and a decoder: remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x


class MeanOfWindow(nn.Module):
    """Scores that are alike in all of a window: the means of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)


def known(decoder: nn.Module | None = None, **options: Any) -> tuple[Segmenter, Known]:
    levels = Known()
    return Segmenter(levels, decoder or nn.Identity(), **{"size_divisor": 1, **options}), levels  # type: ignore[arg-type]


@pytest.mark.parametrize("name", of_task("segmentation"))
@pytest.mark.parametrize(
    ("kind", "size"),
    [("swin", (64, 64)), ("swin", (1, 1)), ("swin", (45, 70)), ("vit", (32, 32)), ("vit", (20, 1))],
)
def test_scores_have_the_size_of_the_picture(name: str, kind: str, size: tuple[int, int]) -> None:
    segmenter = build(kind, name).eval()
    scores = segmenter.scores(pictures(2, *size))
    assert scores.shape == (2, CLASSES, *size)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    (found,) = segmenter.segment_batch(pictures(1, *size), [(33, 21)])
    assert (found.shape, found.dtype) == ((33, 21), torch.uint8)


@pytest.mark.parametrize("inference", Inference)
def test_long_pictures(inference: Inference) -> None:
    segmenter = build("swin", "upernet", inference=inference, crop=512).eval()
    assert segmenter.segment(pictures(1, 4000, 50), (4000, 50)).shape == (4000, 50)
    segmenter = build("vit", "linear", inference=Inference.slide).eval()
    assert segmenter.segment(pictures(1, 5, 400), (50, 4000)).shape == (50, 4000)


@pytest.mark.parametrize("name", of_task("segmentation"))
@pytest.mark.parametrize("kind", BACKBONES)
def test_losses_reach_every_parameter(name: str, kind: str) -> None:
    segmenter = build(kind, name).train()
    size = (SQUARE, SQUARE) if kind == "vit" else (64, 96)
    losses = segmenter.losses(pictures(1, *size), truth(1, *size))
    assert list(losses) == ["loss_segmentation", "loss_auxiliary"][: 1 + (name == "upernet")]
    torch.stack(list(losses.values())).sum().backward()
    for parameter_name, parameter in segmenter.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    heads = [segmenter.decoder, segmenter.auxiliary or nn.Identity()]
    still = [n for head in heads for n, p in head.named_parameters() if not p.grad.any()]  # type: ignore[union-attr]
    assert not still


@pytest.mark.parametrize("name", of_task("segmentation"))
def test_loss_is_the_mean_over_pixels_with_a_class(name: str) -> None:
    segmenter = build("swin", name).eval()
    images, labels = pictures(2, 45, 70), truth(2, 45, 70)
    losses = segmenter.losses(images, labels)
    expected = F.cross_entropy(segmenter.scores(images), labels.long(), ignore_index=255)
    torch.testing.assert_close(losses["loss_segmentation"], expected)
    if name == "upernet":
        half = build("swin", name, {"auxiliary_weight": 0.2}).eval().losses(images, labels)
        torch.testing.assert_close(half["loss_auxiliary"] * 2, losses["loss_auxiliary"])
        assert "loss_auxiliary" not in build("swin", name, {"auxiliary_weight": 0.0}).losses(
            images, labels
        )


@pytest.mark.parametrize("name", of_task("segmentation"))
def test_nothing_to_learn_from(name: str) -> None:
    segmenter = build("swin", name).train()
    losses = segmenter.losses(pictures(2, 32, 32), torch.full((2, 32, 32), 255))
    assert all(loss.item() == 0.0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all((p.grad == 0).all() for p in segmenter.decoder.parameters())


@pytest.mark.parametrize("name", of_task("segmentation"))
def test_bfloat16(name: str) -> None:
    segmenter = build("swin", name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = segmenter.losses(pictures(2, 64, 64), truth(2, 64, 64))
        scores = segmenter.scores(pictures(2, 64, 64))
    torch.stack(list(losses.values())).sum().backward()
    assert scores.dtype == torch.float32
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in segmenter.decoder.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", of_task("segmentation"))
def test_a_picture_is_scored_alike_in_any_batch(name: str) -> None:
    segmenter = build("swin", name, {"dropout": 0.0}).train()
    images = pictures(3, 64, 64)
    torch.testing.assert_close(
        segmenter.scores(images)[1:2], segmenter.scores(images[1:2]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["upernet", "fpn"])
def test_batch_norm_wants_two_pictures(name: str) -> None:
    segmenter = build("swin", name, {"norm": HeadNorm.batch}).train()
    assert any(isinstance(m, nn.BatchNorm2d) for m in segmenter.decoder.modules())
    with pytest.raises(ConfigError, match=r"head\.norm=batch: cannot train.*\n.*norm=group"):
        segmenter.losses(pictures(1, 32, 32), truth(1, 32, 32))
    assert segmenter.losses(pictures(2, 32, 32), truth(2, 32, 32))["loss_segmentation"].isfinite()
    segmenter.eval()
    assert segmenter.losses(pictures(1, 32, 32), truth(1, 32, 32))["loss_segmentation"].isfinite()


def test_groups_keep_something_of_a_map_of_one_place() -> None:
    for channels in (512, 256, 64, 50, 8, 7):
        (norm,) = [
            m
            for m in UPerNet([8, 8], channels, 2, HeadNorm.group, 0.0).fusion
            if isinstance(m, nn.GroupNorm)
        ]
        assert channels % norm.num_groups == 0
        assert norm.num_groups <= 32
        assert norm.num_groups == 1 or channels // norm.num_groups >= 16
    assert norm.num_groups == 1


def test_linear_is_linear_on_the_concatenation() -> None:
    torch.manual_seed(0)
    widths = (4, 6, 8)
    maps = [torch.randn(2, width, 16 >> n, 12 >> n) for n, width in enumerate(widths)]
    decoder = LinearDecoder(widths, CLASSES, dropout=0.0)
    joined = torch.cat([resized(x, maps[0]) for x in maps], dim=1)
    layers = [sequence[-1] for sequence in decoder.classifiers]  # type: ignore[index]
    weight = torch.cat([layer.weight for layer in layers], dim=1)
    biases = [layer.bias for layer in layers]
    assert biases[1:] == [None, None]
    torch.testing.assert_close(decoder(maps), F.conv2d(joined, weight, biases[0]))
    # on a ViT: a classifier of its tokens and nothing else
    segmenter = build("vit", "linear")
    assert isinstance(segmenter.levels, StageFeatures)
    assert sum(p.numel() for p in segmenter.decoder.parameters()) == 32 * CLASSES + CLASSES


def test_published_size_of_upernet() -> None:
    """Swin-T with UPerNet on ADE20K: 60 M parameters (arXiv 2103.14030, table 3)."""
    widths, classes = (96, 192, 384, 768), 150
    with torch.device("meta"):
        decoder = UPerNet(widths, 512, classes, HeadNorm.batch, 0.1)
        auxiliary = AuxiliaryFCN(2, widths[2], 256, classes, HeadNorm.batch, 0.1)
        backbone = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    modules = (decoder, auxiliary, backbone)
    total = sum(p.numel() for module in modules for p in module.parameters())
    assert round(total / 1e6) == 60


def test_it_learns() -> None:
    torch.manual_seed(0)
    segmenter = build("swin", "upernet", {"dropout": 0.0}).train()
    images = torch.zeros(1, 3, 64, 64)
    images[:, 0, :, 20:] = 1.0
    labels = torch.zeros(1, 64, 64, dtype=torch.uint8)
    labels[:, :, 20:] = 4
    labels[:, :8] = 255
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        losses = segmenter.losses(images, labels)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    found = segmenter.eval().segment(images, (64, 64))
    assert (found == labels[0])[8:].float().mean() > 0.97


def test_windows_cover_a_side() -> None:
    assert list(window_starts(512, 512, 341)) == [0]
    assert list(window_starts(100, 512, 341)) == [0]
    assert list(window_starts(513, 512, 341)) == [0, 1]
    assert list(window_starts(853, 512, 341)) == [0, 341]
    assert list(window_starts(1000, 512, 341)) == [0, 341, 488]
    assert list(window_starts(10, 4, 4)) == [0, 4, 6]


def test_scores_are_averaged_where_windows_overlap() -> None:
    segmenter, levels = known(MeanOfWindow(), window=4, window_stride=2)
    image = torch.zeros(1, 2, 4, 7)
    image[0, 0] = torch.arange(7.0)
    scores = segmenter._sliding_scores(image)
    # windows at 0, 2 and 3, with the means 1.5, 3.5 and 4.5
    expected = torch.tensor([1.5, 1.5, 2.5, 9.5 / 3, 4.0, 4.0, 4.5])
    torch.testing.assert_close(scores[0, 0], expected.expand(4, 7))
    assert levels.seen == [(1, 2, 4, 4)] * 3


def test_sliding_where_the_place_does_not_matter() -> None:
    whole, _ = known()
    sliding, levels = known(window=8, window_stride=5)
    images = [*pictures(2, 21, 8), *pictures(1, 3, 30)]
    sizes = [(21, 8), (42, 20), (3, 30)]
    for one, other in zip(
        whole.segment_batch(images, sizes), sliding.segment_batch(images, sizes), strict=True
    ):
        assert torch.equal(one, other)
    assert levels.seen[:4] == [(2, 3, 8, 8)] * 4  # at 0, 5, 10 and 13: both pictures at once
    assert set(levels.seen[4:]) == {(1, 3, 3, 8)}


def test_a_vit_reads_only_its_square() -> None:
    segmenter, levels = known(square=8, window=8, window_stride=5)
    images = [*pictures(1, 3, 5), *pictures(1, 20, 6), *pictures(1, 9, 13)]
    for image in images:
        size = (image.shape[1], image.shape[2])
        found = segmenter.segment(image[None], size)
        assert torch.equal(found.long(), image.argmax(dim=0))
    assert {shape[1:] for shape in levels.seen} == {(3, 8, 8)}
    with pytest.raises(VpeftBenchError, match=r"9 x 13 .* 8 x 8 .*input\.inference=slide"):
        segmenter.scores(images[2][None])


def test_windows_of_a_built_segmenter() -> None:
    slide = {"inference": Inference.slide, "crop": 48}
    swin = build("swin", "linear", **slide)
    assert (swin.window, swin.window_stride, swin.square) == (48, 32, None)
    vit = build("vit", "linear", **slide, window_stride=10)
    assert (vit.window, vit.window_stride, vit.square) == (SQUARE, 10, SQUARE)
    assert build("swin", "linear").window is None
    with pytest.raises(ConfigError, match=r"input\.window_stride=33: not between 1 and .* 32"):
        build("vit", "linear", **slide, window_stride=33)
    assert build("vit", "linear", window_stride=33).window is None


def test_padding_is_of_the_divisor() -> None:
    segmenter, levels = known(size_divisor=32)
    image = pictures(1, 33, 64)
    torch.testing.assert_close(segmenter.scores(image), image)
    assert levels.seen == [(1, 3, 64, 64)]


def test_pictures_of_one_size_are_read_together_and_stay_in_order() -> None:
    segmenter, levels = known()
    first, second, third = pictures(1, 4, 6)[0], pictures(1, 5, 5)[0], pictures(1, 4, 6, seed=9)[0]
    sizes = [(4, 6), (10, 5), (8, 12)]
    found = segmenter.segment_batch([first, second, third], sizes)
    assert levels.seen == [(2, 3, 4, 6), (1, 3, 5, 5)]
    for image, size, labels in zip([first, second, third], sizes, found, strict=True):
        assert torch.equal(labels, label_map(image, size))
        assert torch.equal(labels, segmenter.segment(image[None], size))
    assert segmenter.segment_batch([], []) == []


@pytest.mark.parametrize("classes", [1, 16, 17, 40])
@pytest.mark.parametrize("size", [(9, 7), (30, 20), (1, 1)])
def test_label_map_is_the_argmax_of_all_resized_scores(classes: int, size: Sequence[int]) -> None:
    scores = torch.randn(classes, 9, 7, generator=torch.Generator().manual_seed(0)).round()
    height, width = size
    every = F.interpolate(scores[None], size=(height, width), mode="bilinear", align_corners=False)
    best = every[0].max(dim=0).values
    found = label_map(scores, (height, width)).long()
    assert torch.equal(every[0].gather(0, found[None])[0], best)
    assert not label_map(torch.zeros_like(scores), (height, width)).any()  # of equals the first


@pytest.mark.parametrize("name", of_task("segmentation"))
def test_configs_build(name: str) -> None:
    file = REPOSITORY / "configs" / "head" / f"{name}.yaml"
    merged = OmegaConf.merge(OmegaConf.structured(HeadConfig), OmegaConf.load(file))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, HeadConfig)
    with torch.device("meta"):
        segmenter = build_segmenter(config, InputConfig(), features("swin"), CLASSES)
    assert (segmenter.auxiliary is not None) == (name == "upernet")
    if isinstance(segmenter.decoder, UPerNet):
        assert segmenter.decoder.fusion[0].out_channels == 512
        assert segmenter.auxiliary_weight == 0.4


def test_upernet_carries_the_coarsest_map_down_to_the_finest() -> None:
    torch.manual_seed(0)
    decoder = UPerNet((4, 4, 4), 16, CLASSES, HeadNorm.group, 0.0)
    finest: list[Tensor] = []
    decoder.outputs[0].register_forward_hook(lambda module, inputs, output: finest.append(output))
    maps = [torch.randn(1, 4, 16 >> n, 16 >> n) for n in range(3)]
    decoder(maps)
    decoder([*maps[:2], torch.randn(1, 4, 4, 4)])
    assert not torch.allclose(*finest, atol=1e-2)


def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ConfigError, match="at most 255 classes"):
        build_segmenter(head_config("linear"), InputConfig(), features("swin"), 256)
    with pytest.raises(ConfigError, match="did you mean head=upernet"):
        build("swin", "upernett")
