"""Cascade Mask R-CNN: three stages, each on the boxes of the one before."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from detector_models import CLASSES, detections, detector, head_parameters, train, two_pictures
from torch import Tensor, nn
from torchvision.ops import box_iou

from vpeft_bench.config.sections import BoxLoss, HeadConfig
from vpeft_bench.heads.cascade import STAGES, CascadeHeads

SIZE = (64, 64)
BOX = torch.tensor([[10.0, 20.0, 30.0, 40.0]])


@pytest.fixture
def heads() -> CascadeHeads:
    """Heads that say nothing: every output is its bias, zero."""
    return silent()


def silent(**settings: Any) -> CascadeHeads:
    torch.manual_seed(0)
    head = HeadConfig("cascade_mask_rcnn", channels=8, hidden=16, score_threshold=0.0, **settings)
    built = CascadeHeads(head, CLASSES + 1, (4, 8, 16, 32, 64))
    for stage in built._stages():
        outputs = (stage.classifier, stage.regressor, stage.mask_predictor[0].mask_fcn_logits)
        for layer in outputs:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    built.fg_bg_sampler.batch_size_per_image = 16
    return built


def features() -> dict[str, Tensor]:
    sides = (16, 8, 4, 2, 1)
    return {str(i): torch.rand(1, 8, side, side) for i, side in enumerate(sides)}


def target(box: Tensor = BOX, label: int = 1) -> dict[str, Tensor]:
    masks = torch.zeros((len(box), *SIZE), dtype=torch.uint8)
    return {"boxes": box, "labels": torch.full((len(box),), label), "masks": masks}


def bias(layer: Any, values: list[float]) -> None:
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(values))


# ---- training -----------------------------------------------------------------------------------


def test_losses_are_weighted_by_stage(heads: CascadeHeads) -> None:
    """All classes equally likely, all mask pixels even: losses known beforehand."""
    _, losses = heads(features(), [BOX + 1], [SIZE], [target()])
    for number, weight in enumerate((1.0, 0.5, 0.25), start=1):
        assert losses[f"loss_classifier_{number}"].item() == pytest.approx(
            weight * log(CLASSES + 1), rel=1e-5
        )
        assert losses[f"loss_mask_{number}"].item() == pytest.approx(weight * log(2), rel=1e-5)
    assert len(losses) == 9


def test_box_loss_is_smooth_l1_of_the_weighted_changes(heads: CascadeHeads) -> None:
    """A proposal two pixels off a box of 20: 0.1 of its width, times the stage's weight."""
    shifted = BOX + torch.tensor([2.0, 0.0, 2.0, 0.0])
    _, losses = heads(features(), [shifted], [SIZE], [target()])
    for number, (weight, box_weight) in enumerate(((1, 10), (0.5, 20), (0.25, 30)), start=1):
        change = box_weight * 0.1
        smooth = change - 0.5 if change > 1 else change**2 / 2
        # Two samples a stage: the proposal, and the object itself (and what became of it).
        samples, off = {1: (2, 1), 2: (3, 1), 3: (4, 1)}[number]
        expected = weight * smooth * off / samples
        assert losses[f"loss_box_reg_{number}"].item() == pytest.approx(expected, rel=1e-4)


def test_objects_are_among_the_proposals(heads: CascadeHeads) -> None:
    """With no proposal at all, what is sampled is the object: nothing to change."""
    _, losses = heads(features(), [BOX[:0]], [SIZE], [target()])
    assert losses["loss_classifier_1"].item() == pytest.approx(log(CLASSES + 1), rel=1e-5)
    assert losses["loss_mask_1"].item() == pytest.approx(log(2), rel=1e-5)
    assert losses["loss_box_reg_1"].item() == 0.0


def test_each_stage_is_stricter(heads: CascadeHeads) -> None:
    """Boxes that overlap by 0.55, 0.65 and 0.75: positive in one, two and three stages."""
    overlaps = torch.tensor([0.55, 0.65, 0.75])
    boxes = torch.stack([torch.tensor([0.0, 0.0, 100 * overlap, 10.0]) for overlap in overlaps])
    truth = torch.tensor([[0.0, 0.0, 100.0, 10.0]])
    positive = []
    for _ in heads._entered_stages():
        _, labels = heads.assign_targets_to_proposals([boxes], [truth], [torch.tensor([2])])
        positive.append((labels[0] == 2).tolist())
    assert positive == [[True] * 3, [False, True, True], [False, False, True]]


def test_refined_boxes_stay_in_the_picture_and_carry_no_gradient(heads: CascadeHeads) -> None:
    seen: list[list[Tensor]] = []
    sample = heads.select_training_samples

    def recorded(proposals: list[Tensor], targets: Any) -> Any:
        seen.append(proposals)
        return sample(proposals, targets)

    heads.select_training_samples = recorded
    for stage in heads._stages():
        bias(stage.regressor, [30.0, -30.0, 0.0, 0.0])
    heads(features(), [BOX + 1], [SIZE], [target()])
    assert len(seen) == len(STAGES)
    for (boxes,) in seen[1:]:
        assert not boxes.requires_grad
        assert boxes.min() >= 0
        assert boxes.max() <= 64
    assert seen[1][0][0].tolist() == pytest.approx([64, 0, 64, 0], abs=1e-4)  # pushed out


def test_pictures_without_objects(heads: CascadeHeads) -> None:
    _, losses = heads(features(), [BOX], [SIZE], [target(BOX[:0])])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_classifier_3"].item() == pytest.approx(0.25 * log(CLASSES + 1), rel=1e-5)
    assert losses["loss_box_reg_1"].item() == losses["loss_mask_1"].item() == 0.0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in heads.parameters())


def test_the_giou_loss_is_ten_times_that_of_the_decoded_boxes() -> None:
    """A proposal two pixels off a box of 20: their union fills the 22 x 20 that enclose both."""
    heads = silent(box_loss=BoxLoss.giou)
    shifted = BOX + torch.tensor([2.0, 0.0, 2.0, 0.0])
    _, losses = heads(features(), [shifted], [SIZE], [target()])
    giou = 18 / 22
    for number, weight in enumerate((1.0, 0.5, 0.25), start=1):
        samples, off = {1: (2, 1), 2: (3, 1), 3: (4, 1)}[number]
        expected = weight * 10 * (1 - giou) * off / samples
        assert losses[f"loss_box_reg_{number}"].item() == pytest.approx(expected, rel=1e-4)


def test_the_giou_loss_moves_the_box_of_the_true_class_alone() -> None:
    heads = silent(box_loss=BoxLoss.giou, class_boxes=True)
    shifted = BOX + torch.tensor([2.0, 0.0, 2.0, 0.0])
    _, losses = heads(features(), [shifted], [SIZE], [target(label=2)])
    losses["loss_box_reg_1"].backward()
    gradient = heads._stages()[0].regressor.bias.grad
    assert gradient is not None
    moved = gradient.view(CLASSES, 4).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False]


def test_the_next_stage_reads_the_box_of_the_true_or_the_likeliest_class() -> None:
    heads = silent(class_boxes=True)
    first = heads._stages()[0]
    bias(first.regressor, [0.0, 0, 0, 0, 10.0, 0, 0, 0, -10.0, 0, 0, 0])  # one width to the right
    bias(first.classifier, [9.0, 0.0, 0.0, 5.0])  # the background, then the third class
    far = torch.tensor([[40.0, 0.0, 50.0, 10.0]])
    seen: list[list[Tensor]] = []
    sample = heads.select_training_samples

    def recorded(proposals: list[Tensor], targets: Any) -> Any:
        seen.append(proposals)
        return sample(proposals, targets)

    heads.select_training_samples = recorded
    heads(features(), [torch.cat((BOX, far))], [SIZE], [target(label=2)])
    second = {tuple(box) for box in seen[1][0].tolist()}
    assert (30.0, 20.0, 50.0, 40.0) in second, "the object: its own class moves it right"
    assert (30.0, 0.0, 40.0, 10.0) in second, "background: the likeliest class moves it left"


def test_each_class_is_detected_at_its_own_box() -> None:
    heads = silent(class_boxes=True)
    heads.eval()
    bias(
        heads._stages()[2].regressor, [30.0 * x for x in (0.1, 0, 0, 0, 0.2, 0, 0, 0, 0.3, 0, 0, 0)]
    )
    (found,), _ = heads(features(), [BOX], [SIZE])
    lefts = dict(zip(found["labels"].tolist(), found["boxes"][:, 0].tolist(), strict=True))
    assert lefts == {1: pytest.approx(12.0), 2: pytest.approx(14.0), 3: pytest.approx(16.0)}


def test_the_published_box_head() -> None:
    """Four convolutions with batch norms and a linear: parameters of one stage by hand."""
    stage = CascadeHeads(
        HeadConfig("cascade_mask_rcnn", box="4conv1fc", class_boxes=True),
        81,
        (4, 8, 16, 32, 64),
    )._stages()[0]
    count = sum(p.numel() for p in stage.box_head.parameters())
    assert count == 4 * (256 * 256 * 9 + 2 * 256) + 256 * 49 * 1024 + 1024
    assert [type(m).__name__ for m in stage.box_head.modules()].count("BatchNorm2d") == 4
    assert stage.regressor.weight.shape == (4 * 80, 1024)
    assert stage.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert stage.regressor.weight.std().item() == pytest.approx(0.001, rel=0.05)


# ---- evaluation ---------------------------------------------------------------------------------


def test_boxes_pass_three_stages(heads: CascadeHeads) -> None:
    """Each stage moves the box by its own share of the width: 3/10, 3/20 and 3/30 of it."""
    heads.eval()
    for stage in heads._stages():
        bias(stage.regressor, [3.0, 0.0, 0.0, 0.0])
    (found,), losses = heads(features(), [BOX], [SIZE])
    assert losses == {}
    shift = 20 * 3 * (1 / 10 + 1 / 20 + 1 / 30)
    expected = BOX + torch.tensor([shift, 0.0, shift, 0.0])
    torch.testing.assert_close(found["boxes"], expected.expand(CLASSES, 4))
    assert sorted(found["labels"].tolist()) == [1, 2, 3], "0 is the background"


def test_classes_are_the_mean_of_three_classifiers(heads: CascadeHeads) -> None:
    heads.eval()
    logits = torch.tensor([[0.0, 4.0, 0.0, 1.0], [0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    for stage, values in zip(heads._stages(), logits, strict=True):
        bias(stage.classifier, values.tolist())
    (found,), _ = heads(features(), [BOX], [SIZE])
    expected = logits.softmax(1).mean(0)[1:]
    torch.testing.assert_close(found["scores"], expected.sort(descending=True).values)
    assert found["labels"].tolist() == (expected.argsort(descending=True) + 1).tolist()


def test_all_classifiers_read_the_third_proposals(heads: CascadeHeads) -> None:
    """Not the boxes that their own stage was given."""
    heads.eval()
    bias(heads._stages()[0].regressor, [8.0, 0.0, 0.0, 0.0])
    maps = {name: torch.zeros_like(x) for name, x in features().items()}
    maps["0"][..., 7:] = 1.0  # only right of the first proposal
    stage = heads._stages()[0]
    nn.init.ones_(stage.box_head.fc6.weight)
    nn.init.ones_(stage.box_head.fc7.weight)
    with torch.no_grad():
        stage.classifier.weight[2] = 1.0
    (found,), _ = heads(maps, [torch.tensor([[4.0, 20.0, 24.0, 40.0]])], [SIZE])
    assert found["labels"][0] == 2
    assert found["scores"][0].item() == pytest.approx((1 + 0.25 + 0.25) / 3, abs=1e-3)


def test_masks_are_the_mean_of_three_heads(heads: CascadeHeads) -> None:
    heads.eval()
    values = (2.0, -1.0, 0.5)
    for stage, value in zip(heads._stages(), values, strict=True):
        bias(stage.mask_predictor[0].mask_fcn_logits, [9.0, value, 9.0, 9.0])
        bias(stage.classifier, [0.0, 5.0, 0.0, 0.0])
    (found,), _ = heads(features(), [BOX], [SIZE])
    assert found["labels"][0] == 1
    expected = torch.tensor(values).sigmoid().mean()
    torch.testing.assert_close(found["masks"][0], expected.expand(1, 28, 28))


def test_nothing_to_detect(heads: CascadeHeads) -> None:
    heads.eval()
    heads.score_thresh = 0.9
    (found,), _ = heads(features(), [BOX], [SIZE])
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 1, 28, 28)


# ---- the whole detector -------------------------------------------------------------------------


PUBLISHED: dict[str, Any] = {"box": "4conv1fc", "box_loss": BoxLoss.giou, "class_boxes": True}


@pytest.mark.parametrize("settings", [{}, pytest.param(PUBLISHED, marks=pytest.mark.slow)])
def test_it_learns_two_pictures(settings: dict[str, Any]) -> None:
    detector_ = detector("vit", "cascade_mask_rcnn", **settings)
    curve = train(detector_, steps=40 if settings else 20, lr=4e-3)
    assert curve[-1] < 0.4 * curve[0]
    unused = {n for n, p in head_parameters(detector_).items() if p.grad is None}
    assert unused == set()
    images, targets = two_pictures()
    for found, true in zip(detections(detector_, images), targets, strict=True):
        overlap = box_iou(true["boxes"], found["boxes"])
        overlap, best = (overlap * (true["labels"][:, None] == found["labels"])).max(1)
        assert overlap.min() > 0.5
        assert found["masks"].dtype == torch.bool
        assert found["masks"].shape[1:] == true["masks"].shape[1:]
        for index, mask in zip(best, true["masks"].bool(), strict=True):
            both = found["masks"][index] & mask
            assert both.sum() / (found["masks"][index] | mask).sum() > 0.5
