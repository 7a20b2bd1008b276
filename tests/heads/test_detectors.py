"""Detectors on a small Swin and on the demo ViT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detector_models import (
    CLASSES,
    HALF,
    SQUARE,
    attached,
    detections,
    detector,
    head_parameters,
    picture,
    total,
    train,
    two_pictures,
)
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou, masks_to_boxes

from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.config.sections import HeadConfig, InputConfig
from vpeft_bench.errors import ConfigError
from vpeft_bench.heads.detectors import Detector, build_detector
from vpeft_bench.heads.names import of_task
from vpeft_bench.heads.pyramid import LevelAnchors, Pyramid
from vpeft_bench.heads.regions import RegionPool
from vpeft_bench.heads.resizing import Resizing, pasted, random_part
from vpeft_bench.sizes import resized_size

EVERY_DETECTOR = pytest.mark.parametrize("name", of_task("detection"))
EVERY_KIND = pytest.mark.parametrize("kind", ["vit", "swin"])
# Each detector at once on the ViT, one of one stage and one of two on the Swin; all by .ci/run.
EVERY_PAIR = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if at_once else pytest.mark.slow)
        for name in of_task("detection")
        for kind, at_once in (("vit", True), ("swin", name in ("retinanet", "mask_rcnn")))
    ],
)


def gradients_arrive(built: Detector, steps: int = 2) -> set[str]:
    """Head parameters without a gradient other than zero within ``steps`` steps."""
    images, targets = two_pictures()
    dead = set(head_parameters(built))
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        losses = built.losses(images, targets)
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        parameters = head_parameters(built)
        dead = {n for n in dead if parameters[n].grad is None or not parameters[n].grad.any()}
    return dead


# ---- training -----------------------------------------------------------------------------------


@EVERY_PAIR
def test_every_head_parameter_learns(name: str, kind: str) -> None:
    method = attached(kind)
    built = detector(kind, name, method.backbone)
    assert gradients_arrive(built) == set()
    assert all(p.grad is not None for p in method.trainable_parameters())
    own = {*head_parameters(built).values(), *method.model.parameters()}
    assert own == set(built.parameters())
    assert len(built.state_dict()) == len(
        {id(t) for t in built.state_dict(keep_vars=True).values()}
    )


@pytest.mark.parametrize("name", ["retinanet", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_two_pictures_are_learned(name: str) -> None:
    built = detector("vit", name)
    curve = train(built, steps=40, lr=3e-3)
    assert curve[-1] < 0.4 * curve[0]
    images, targets = two_pictures()
    for found, true in zip(detections(built, images), targets, strict=True):
        overlap = box_iou(true["boxes"], found["boxes"])
        overlap *= true["labels"][:, None] == found["labels"]
        assert overlap.amax(1).min() > 0.5


@EVERY_DETECTOR
def test_pictures_without_objects(name: str) -> None:
    """One in the batch, and nothing else: finite losses, gradients everywhere."""
    built = detector("vit", name)
    empty = picture([], [])
    full = picture([(10, 12, 50, 60)], [CLASSES - 1])
    for batch in ([empty, full], [empty, empty]):
        built.zero_grad()
        losses = built.losses([image for image, _ in batch], [target for _, target in batch])
        assert all(loss.isfinite() for loss in losses.values())
        total(losses).backward()
        for key, parameter in head_parameters(built).items():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@EVERY_DETECTOR
def test_flat_objects_are_left_out(name: str) -> None:
    """A box without an area, or one that resizing squeezes flat, stops no training."""
    built = detector("swin", name)
    image, target = picture([(10, 12, 50, 60), (5, 5, 5, 30)], [0, 1])
    assert all(loss.isfinite() for loss in built.losses([image], [target]).values())


def test_targets_are_not_changed() -> None:
    built = detector("vit", "mask_rcnn")
    images, targets = two_pictures()
    before = [{k: v.clone() for k, v in target.items()} for target in targets]
    built.losses(images, targets)
    for old, new in zip(before, targets, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


@EVERY_PAIR
def test_extreme_pictures(name: str, kind: str) -> None:
    built = detector(kind, name, score_threshold=0.0, max_detections=5)
    sizes = [(1, 1), (4000, 50), (1, 3000)]
    pictures = [
        picture([(0, 0, 1, 1)], [0], sizes[0]),
        picture([(3, 900, 40, 1500)], [2], sizes[1]),
        picture([(100, 0, 2000, 1)], [1], sizes[2]),
    ]
    images = [image for image, _ in pictures]
    losses = built.losses(images, [target for _, target in pictures])
    assert all(loss.isfinite() for loss in losses.values())
    for found, (height, width) in zip(detections(built, images), sizes, strict=True):
        boxes = found["boxes"]
        assert boxes.isfinite().all()
        assert found["scores"].isfinite().all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        if built.predicts_masks:
            assert found["masks"].shape == (len(boxes), height, width)


@EVERY_PAIR
def test_bf16_autocast(name: str, kind: str) -> None:
    """Losses and boxes are float32, and boxes are not rounded to the eight bits of bfloat16."""
    built = detector(kind, name, score_threshold=0.0)
    images, targets = two_pictures()
    with torch.autocast("cpu", torch.bfloat16):
        losses = built.losses(images, targets)
        total(losses).backward()
        found = detections(built, images)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())
    boxes = found[0]["boxes"]
    assert boxes.dtype == found[0]["scores"].dtype == torch.float32
    assert len(boxes) > 1
    places = detector_places(boxes, images[0].shape[-2:], kind)
    assert (places.bfloat16().float() != places).any()


def test_bf16_gradients_of_the_coarsest_level() -> None:
    """A convolution of stride 2 on a single place, whose gradient the CPU's own bf16 gets wrong."""
    pyramid = Pyramid(StageFeatures(attached("vit").backbone), 32, two_stage=False)
    x = torch.randn(2, 3, 64, 64)
    coarsest = "4"

    def gradient(enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = pyramid(x)[coarsest].square().sum()
        return torch.autograd.grad(loss, pyramid.coarser.p7.weight)[0]

    expected = gradient(enabled=False)
    assert (gradient(enabled=True) - expected).abs().max() < 0.05 * expected.abs().max()


def detector_places(boxes: Tensor, size: torch.Size, kind: str) -> Tensor:
    """Boxes in pixels of the resized picture."""
    longer = SQUARE if kind == "vit" else 128
    height, width = resized_size((size[0], size[1]), 64, longer)
    return boxes * torch.tensor([width / size[1], height / size[0]] * 2)


@EVERY_KIND
def test_gradient_checkpointing(kind: str) -> None:
    method = attached(kind, "adapter")
    built = detector(kind, "faster_rcnn", method.backbone)
    parameters = [p for p in built.parameters() if p.requires_grad]
    images, targets = two_pictures()

    def gradients() -> list[Tensor | None]:
        torch.manual_seed(0)
        loss = total(built.losses(images, targets))
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    expected = gradients()
    model: Any = method.model
    model.set_grad_checkpointing(True)
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_merged_inside_a_detector() -> None:
    method = attached("swin")
    built = detector("swin", "faster_rcnn", method.backbone, score_threshold=0.0)
    train(built, steps=2, lr=1e-3)
    images, _ = two_pictures()
    before = detections(built, images)
    method.merge()
    for found, expected in zip(detections(built, images), before, strict=True):
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-4)


# ---- what comes out -----------------------------------------------------------------------------


@EVERY_DETECTOR
def test_labels_count_from_zero(name: str) -> None:
    """A detector that is sure of class 1 says so, whatever torchvision keeps at 0."""
    built = detector("vit", name, score_threshold=0.5)
    model: Any = built.model
    with torch.no_grad():
        if name == "retinanet":
            layer = model.head.classification_head.cls_logits
            layer.bias.view(-1, CLASSES)[:] = torch.tensor([-9.0, 9.0, -9.0])
        else:
            heads = model.roi_heads
            layers = (
                [stage.classifier for stage in heads.stages]
                if name == "cascade_mask_rcnn"
                else [heads.box_predictor[0].cls_score]
            )
            for layer in layers:
                layer.bias.copy_(torch.tensor([-9.0, -9.0, 9.0, -9.0]))
    images, _ = two_pictures()
    for found in detections(built, images):
        assert len(found["labels"]) > 0
        assert set(found["labels"].tolist()) == {1}


def test_every_label_is_trained() -> None:
    """The classifier's outputs in the order of the labels; the background in front."""
    for name, expected in (("faster_rcnn", 1 + CLASSES), ("retinanet", CLASSES)):
        built = detector("vit", name)
        boxes = [(10 * i, 10, 10 * i + 30, 60) for i in range(CLASSES)]
        image, target = picture(boxes, list(range(CLASSES)))
        total(built.losses([image], [target])).backward()
        model: Any = built.model
        if name == "retinanet":
            bias = model.head.classification_head.cls_logits.bias.grad.view(-1, CLASSES).sum(0)
            assert bias.shape == (expected,)
        else:
            bias = model.roi_heads.box_predictor[0].cls_score.bias.grad
            assert bias.shape == (expected,)
            weight = model.roi_heads.box_predictor[0].bbox_pred.weight.grad
            used = weight.view(expected, 4, -1).abs().sum((1, 2)) > 0
            assert used.tolist() == [False, True, True, True]


@EVERY_DETECTOR
def test_thresholds_are_honoured(name: str) -> None:
    images, _ = two_pictures()
    settings = {"score_threshold": 0.0, "nms_iou": 0.3, "max_detections": 7}
    for found in detections(detector("vit", name, **settings), images):
        assert len(found["scores"]) == 7
        assert (found["scores"].diff() <= 0).all()
        overlap = box_iou(found["boxes"], found["boxes"]).fill_diagonal_(0)
        same = found["labels"][:, None] == found["labels"][None]
        assert overlap[same].max() <= 0.3 + 1e-4
    for found in detections(detector("vit", name, score_threshold=0.99), images):
        assert found["boxes"].shape == (0, 4)
        if "masks" in found:
            assert found["masks"].shape == (0, *images[0].shape[-2:]) or len(found["masks"]) == 0


def test_sizes_of_the_head() -> None:
    small = detector("vit", "mask_rcnn", channels=16, hidden=24)
    parameters = head_parameters(small)
    assert parameters["model.roi_heads.box_head.fc6.weight"].shape == (24, 16 * 49)
    assert parameters["model.roi_heads.mask_head.0.0.weight"].shape == (16, 16, 3, 3)
    count = sum(p.numel() for p in parameters.values())
    assert count < sum(p.numel() for p in head_parameters(detector("vit", "mask_rcnn")).values())


def test_unknown_detector() -> None:
    features = StageFeatures(attached("vit").backbone)
    with pytest.raises(ConfigError, match=r"head=retinanet"):
        build_detector(HeadConfig(name="retina_net"), InputConfig(), features, 3, HALF, HALF)


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((400, 1000), (533, 1333)),
        ((4000, 50), (1333, 17)),
        ((3000, 1), (1333, 1)),
        ((1, 1), (800, 800)),
        ((1600, 2000), (800, 1000)),
    ],
)
def test_resized_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size, 800, 1333) == expected


@pytest.mark.parametrize("size", [(h, w) for h in (1, 7, 49, 333) for w in (1, 50, 321, 4001)])
def test_a_vit_gets_its_square(size: tuple[int, int]) -> None:
    for side in (32, 64, 518):
        assert max(resized_size(size, side, side)) == side
    resizing = Resizing(InputConfig(), 64, HALF, HALF)
    for training in (True, False):
        batch, _ = resizing.train(training)([torch.rand(3, *size), torch.rand(3, 5, 4)])
        assert batch.tensors.shape == (2, 3, 64, 64)
        assert batch.tensors.isfinite().all()


def test_sizes_of_training_and_evaluation() -> None:
    sizes = InputConfig(
        shorter_sides=[48, 64, 80], test_shorter_side=56, longer_side=200, size_divisor=32
    )
    resizing = Resizing(sizes, None, HALF, HALF)
    torch.manual_seed(0)
    drawn = {resizing([torch.rand(3, 30, 60)])[0].image_sizes[0] for _ in range(40)}
    assert drawn == {(48, 96), (64, 128), (80, 160)}
    batch, _ = resizing.eval()([torch.rand(3, 30, 60), torch.rand(3, 30, 20)])
    assert batch.image_sizes == [(56, 112), (84, 56)]
    assert batch.tensors.shape == (2, 3, 96, 128)
    assert (batch.tensors[0, :, 56:] == 0).all()


@pytest.mark.parametrize("square", [None, 64])
@pytest.mark.parametrize("size", [(30, 20), (96, 128), (400, 150)])
def test_boxes_and_masks_there_and_back(size: tuple[int, int], square: int | None) -> None:
    """Scaled up and down with the picture, and back to its own pixels."""
    height, width = size
    box = (width // 4, height // 5, width // 2, height // 2)
    image, target = picture([box], [1], size)
    sizes = InputConfig(shorter_sides=[64], test_shorter_side=64, longer_side=512)
    resizing = Resizing(sizes, square, HALF, HALF)
    given = {name: target[name] for name in ("boxes", "labels", "masks")}
    batch, (there,) = resizing([image / 255], [given])
    new_height, new_width = batch.image_sizes[0]
    assert there["masks"].shape == (1, new_height, new_width)
    assert there["masks"].dtype == torch.uint8
    factors = torch.tensor([new_width / width, new_height / height] * 2)
    torch.testing.assert_close(there["boxes"], target["boxes"] * factors)
    area = there["masks"].float().mean().item()
    assert area == pytest.approx(target["masks"].float().mean().item(), rel=0.15)
    # The object is where its box is, in the batch: brighter than grey in its own colour.
    x0, y0, x1, y1 = there["boxes"][0].round().int().tolist()
    assert batch.tensors[0, 1, (y0 + y1) // 2, (x0 + x1) // 2] > 0.8

    # The mask that a head learns, and would give back.
    learned = project_masks_on_boxes(there["masks"], there["boxes"], torch.tensor([0]), 28)
    found = {"boxes": there["boxes"], "labels": there["labels"], "masks": learned[:, None]}
    (back,) = resizing.eval().postprocess([found], batch.image_sizes, [size])
    torch.testing.assert_close(back["boxes"], target["boxes"], atol=1e-3, rtol=1e-5)
    assert back["masks"].shape == (1, height, width)
    assert back["masks"].dtype == torch.bool
    true = target["masks"].bool()
    assert (back["masks"] & true).sum() / (back["masks"] | true).sum() > 0.85


@pytest.mark.parametrize("radius", [4.0, 9.0, 27.0])
def test_learned_masks_lie_where_the_objects_are(radius: float) -> None:
    """Small discs through torchvision's target masks and back: no shift, no rim."""
    centres = torch.arange(64) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    disc = ((x - 31.3) ** 2 + (y - 30.1) ** 2 < radius**2)[None]
    boxes = masks_to_boxes(disc) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # to the pixels' far edges
    learned = project_masks_on_boxes(disc.byte(), boxes, torch.tensor([0]), 28)[:, None]
    resizing = Resizing(InputConfig(), 64, HALF, HALF).eval()
    found = {"boxes": boxes, "masks": learned}
    (back,) = resizing.postprocess([found], [(64, 64)], [(64, 64)])
    overlap = (back["masks"] & disc).sum() / (back["masks"] | disc).sum()
    assert overlap > (0.85 if radius < 5 else 0.95)


def test_a_full_mask_fills_its_box() -> None:
    boxes = torch.tensor([[2.0, 3.0, 7.0, 5.0], [-2.0, 6.0, 3.0, 40.0], [9.0, 9.0, 9.0, 9.5]])
    masks = pasted(torch.ones(3, 1, 28, 28), boxes, (10, 12))
    assert [mask.nonzero().tolist() for mask in masks] == [
        [[y, x] for y in (3, 4) for x in range(2, 7)],
        [[y, x] for y in range(6, 10) for x in range(3)],
        [],
    ]


def test_a_part_of_a_picture_has_the_objects_that_lie_in_it() -> None:
    """Every pixel and every object of the part are those at the same place of the whole."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(50), torch.arange(80), indexing="ij")
    image = torch.stack((rows, columns, rows)).float()
    boxes = torch.tensor([[0.0, 0, 80, 50], [60, 40, 79, 49], [2, 2, 6, 5]])
    masks = torch.stack(
        [(columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1) for x0, y0, x1, y1 in boxes]
    ).to(torch.uint8)
    whole = {"boxes": boxes, "labels": torch.arange(3), "masks": masks}
    sizes, counts = set(), set()
    for _ in range(200):
        part, target = random_part(image, whole, [20, 60])
        height, width = part.shape[1:]
        sizes.add((height, width))
        counts.add(len(target["boxes"]))
        top, left = int(part[0, 0, 0]), int(part[1, 0, 0])
        torch.testing.assert_close(part, image[:, top : top + height, left : left + width])
        for box, label, mask in zip(*target.values(), strict=True):
            torch.testing.assert_close(
                mask, masks[label, top : top + height, left : left + width], rtol=0, atol=0
            )
            inside = mask.nonzero().flip(1)
            assert box.tolist() == [*inside.min(0).values, *(inside.max(0).values + 1)]
    assert {height for height, _ in sizes} == set(range(20, 51)), "as far as the picture reaches"
    assert {width for _, width in sizes} == set(range(20, 61))
    assert counts == {1, 2, 3}, "the large object always, each of the small ones now and then"
    assert whole["boxes"] is boxes


def test_every_other_training_picture_is_cut() -> None:
    torch.manual_seed(0)
    sizes = InputConfig(
        shorter_sides=[64],
        test_shorter_side=48,
        longer_side=200,
        crop_shorter_sides=[40, 50],
        crop_sides=[20, 30],
    )
    resizing = Resizing(sizes, None, HALF, HALF)
    image, target = picture([(10, 12, 50, 60)], [0])
    seen = []
    for _ in range(400):
        resized, _ = resizing.resize(image.float(), dict(target, masks=target["masks"]))
        seen.append(tuple(resized.shape[1:]))
    whole = seen.count((64, 85))
    assert 150 < whole < 250
    assert all(min(size) == 64 for size in seen)
    resizing.eval()
    assert {tuple(resizing.resize(image.float())[0].shape[1:]) for _ in range(20)} == {(48, 64)}


def test_the_published_box_head_of_any_two_stage_detector() -> None:
    """Its batch norms are part of the head: of its parameters and of what is stored."""
    built = detector("vit", "faster_rcnn", box="4conv1fc")
    before = {n: b.clone() for n, b in built.named_buffers() if "roi_heads.box_head" in n}
    assert len(before) == 4 * 3
    images, targets = two_pictures()
    total(built.losses(images, targets)).backward()
    moved = {n for n, b in built.named_buffers() if n in before and not b.equal(before[n])}
    assert moved == set(before)
    trained = {n for n, p in head_parameters(built).items() if p.grad is not None}
    assert sum("box_head" in name for name in trained) == 4 * 3 + 2


def test_thin_objects_are_left_out_with_their_labels_and_masks() -> None:
    resizing = Resizing(InputConfig(), 64, HALF, HALF)
    image, target = picture(
        [(0, 0, 100, 10), (5, 5, 105, 6), (9, 0, 9, 50)], [0, 1, 2], (4000, 200)
    )
    given = {name: target[name] for name in ("boxes", "labels", "masks")}
    _, (there,) = resizing([image / 255], [given])
    assert there["labels"].tolist() == [0, 1]
    assert len(there["masks"]) == len(there["boxes"]) == 2


# ---- pyramid, anchors, regions ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("two_stage", "strides"), [(True, (4, 8, 16, 32, 64)), (False, (8, 16, 32, 64, 128))]
)
@EVERY_KIND
def test_pyramid(kind: str, two_stage: bool, strides: tuple[int, ...]) -> None:
    pyramid = Pyramid(StageFeatures(attached(kind).backbone), 8, two_stage)
    assert pyramid.strides == strides
    size = (64, 64) if kind == "vit" else (96, 160)
    maps = pyramid(torch.randn(1, 3, *size))
    assert list(maps) == [str(i) for i in range(5)]
    for stride, x in zip(strides, maps.values(), strict=True):
        assert x.shape == (1, 8, *(-(-side // stride) for side in size))


def test_retinanet_goes_on_from_the_backbones_last_map() -> None:
    """P6 from C5, as in the paper, also where C5 is as wide as the pyramid."""
    pyramid = Pyramid(StageFeatures(attached("swin").backbone), 128, two_stage=False)
    assert pyramid.levels.widths[-1] == 128
    x = torch.randn(1, 3, 64, 64)
    nn.init.zeros_(pyramid.top_down.layer_blocks[-1][0].weight)  # type: ignore[union-attr]
    maps = pyramid(x)
    assert maps["2"].abs().max() == 0
    torch.testing.assert_close(maps["3"], pyramid.coarser.p6(pyramid.levels(x)[-1]))


def test_anchors_follow_the_strides() -> None:
    anchors = LevelAnchors((4.0, 64.0), scale=8)
    images = ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)])
    maps = [torch.zeros(1, 1, 24, 24), torch.zeros(1, 1, 2, 2)]
    (found,) = anchors(images, maps)
    fine, coarse = found.split([24 * 24 * 3, 2 * 2 * 3])
    assert fine.dtype == torch.float32
    centres = (coarse[:, :2] + coarse[:, 2:]) / 2
    assert set(map(tuple, centres.tolist())) == {(0, 0), (64, 0), (0, 64), (64, 64)}
    sides = (fine[:, 2:] - fine[:, :2])[:3]
    torch.testing.assert_close(sides[1], torch.tensor([32.0, 32.0]))
    torch.testing.assert_close(
        sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]), rtol=0.1, atol=0
    )


def test_anchors_of_retinanet() -> None:
    built = detector("swin", "retinanet", anchor_scale=4.0)
    model: Any = built.model
    sizes = model.anchor_generator.sizes
    assert sizes[0] == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)))
    assert [size[0] for size in sizes] == [32, 64, 128, 256, 512]
    assert model.anchor_generator.num_anchors_per_location() == [9] * 5


@pytest.mark.parametrize("first", [4.0, 3.5])
def test_regions_are_read_where_they_are(first: float) -> None:
    """Maps that hold their own coordinates, in a square whose first picture fills a strip of it."""
    side = int(64 * first / 4)
    strides = tuple(first * 2**level for level in range(5))
    maps = {}
    for level, stride in enumerate(strides):
        centres = (torch.arange(int(side / stride)) + 0.5) * stride
        maps[str(level)] = torch.stack(torch.meshgrid(centres, centres, indexing="xy"))[None]
    pool = RegionPool(strides, 7)
    box = torch.tensor([[12.0, 16.0, 40.0, 44.0]])
    for shown in ((10, side), (side, side)):
        pooled = pool(maps, [box], [shown]).mean((0, 2, 3))
        torch.testing.assert_close(pooled, torch.tensor([26.0, 30.0]))


def test_larger_regions_are_read_from_coarser_levels() -> None:
    strides = (4.0, 8.0, 16.0, 32.0, 64.0)
    maps = {str(level): torch.full((1, 1, 16, 16), float(level)) for level in range(5)}
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in (10, 111, 113, 223, 225, 447, 449)])
    levels = RegionPool(strides, 7)(maps, [boxes], [(1024, 1024)])[:, 0, 0, 0]
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3]
