"""The embedded backbone, its weights, and the script that makes them."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from vpeft_bench.backbones.demo_vit import WEIGHTS_FILE

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from pretrain import rendering, scenes, training, vocabulary


@pytest.fixture
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------- the weights


def test_the_file_is_small_and_says_what_it_is():
    assert WEIGHTS_FILE.stat().st_size <= 6_000_000
    with safe_open(WEIGHTS_FILE, "pt") as file:
        assert file.metadata()["architecture"] == "vpeft_demo_vit"
        assert file.metadata()["license"] == "apache-2.0"


@pytest.mark.parametrize("num_classes", [0, 10])
def test_weights_fit_exactly_whatever_the_head(num_classes: int):
    model = timm.create_model("vpeft_demo_vit", pretrained=True, num_classes=num_classes)
    assert type(model) is VisionTransformer
    stored = load_file(WEIGHTS_FILE)
    head = {"head.weight", "head.bias"} if num_classes else set()
    assert set(model.state_dict()) == set(stored) | head
    for name, value in stored.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, num_classes or 128)


def test_preprocessing_is_the_one_of_pretraining():
    model = timm.create_model("vpeft_demo_vit", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert (config["interpolation"], config["crop_pct"]) == ("bilinear", 1.0)


def test_features_are_not_those_of_random_weights():
    # Scenes of the training distribution differ from one another in trained features far more,
    # relative to their common mean, than they do under random weights.
    images = rendering.render_batch(64, seed=1).images

    def spread(pretrained: bool) -> float:
        torch.manual_seed(0)
        model = timm.create_model("vpeft_demo_vit", pretrained=pretrained).eval()
        with torch.no_grad():
            features = model((images - 0.5) / 0.5)
        return float(features.std(dim=0).norm() / features.mean(dim=0).norm())

    assert spread(pretrained=True) > 1.5 * spread(pretrained=False)


# --------------------------------------------------------------------------------- the renderer


def test_rendering_follows_from_the_seed():
    first, again, other = (rendering.render_batch(16, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    for name, target in first.patch.items():
        assert torch.equal(target.nan_to_num(), again.patch[name].nan_to_num()), name
    for name, target in first.image.items():
        assert torch.equal(target.nan_to_num(), again.image[name].nan_to_num()), name
    assert not torch.equal(first.images, other.images)


def test_images_and_targets_are_in_range():
    for difficulty in (0.0, 1.0):
        batch = rendering.render_batch(64, seed=5, difficulty=difficulty)
        assert batch.images.shape == (64, 3, 32, 32)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        for targets in (batch.patch, batch.image):
            assert targets["shape"].max() < vocabulary.NUM_SHAPES
            assert targets["hue"].max() <= vocabulary.GREY
            assert targets["texture"].max() < len(vocabulary.TEXTURES)
            oriented = targets["phase"] >= 0
            assert (targets["phase"][oriented] < 1).all()


def test_the_easiest_scenes_show_one_upright_object_in_the_middle():
    targets = rendering.render_batch(64, seed=6, difficulty=0.0).image
    assert (targets["count"] == 1).all()
    assert not targets["position"].any()
    assert not targets["phase"][targets["phase"] >= 0].any()
    assert (targets["texture"] == vocabulary.SOLID).all()


def hand_made_scene():
    """A red square fills the upper right quarter; a disc lies hidden behind it."""
    slots = vocabulary.MAX_OBJECTS
    layers = slots + 1
    shape = torch.full((1, slots), -1)
    shape[0, 0] = vocabulary.SHAPE_NAMES.index("square")
    shape[0, 1] = vocabulary.SHAPE_NAMES.index("disc")
    x, y = torch.zeros(2, 1, slots)
    x[0, :2], y[0, :2] = 0.5, -0.5
    size = torch.full((1, slots), 0.3)
    size[0, 0] = 0.5 * math.sqrt(2)  # radius of the corners: the sides are 1 long
    colour = torch.zeros(1, layers, 3)
    colour[0, 0] = torch.tensor([1.0, 0.0, 0.0])
    hue = torch.full((1, layers), vocabulary.GREY)
    hue[0, 0] = 0
    return scenes.SceneSpec(
        shape=shape,
        x=x,
        y=y,
        size=size,
        angle=torch.full((1, slots), math.pi / 4),  # from the corner on the x axis to upright sides
        variant=torch.zeros(1, slots),
        stroke=torch.zeros(1, slots),
        glyph_warp=torch.zeros(1, slots, vocabulary.GLYPH_CONTROLS, 2),
        glyph_matrix=torch.eye(2).expand(1, slots, 2, 2),
        texture=torch.full((1, layers), vocabulary.SOLID),
        frequency=torch.ones(1, layers),
        texture_angle=torch.zeros(1, layers),
        texture_phase=torch.zeros(1, layers, 2),
        noise=torch.zeros(1, layers, dtype=torch.long),
        noise_maps=torch.zeros(1, vocabulary.NOISE_CELLS, vocabulary.NOISE_CELLS),
        colour=colour,
        second_colour=colour,
        hue=hue,
    )


def test_labels_of_a_hand_made_scene():
    batch = rendering.rasterise(hand_made_scene())

    quarter = torch.zeros(8, 8, dtype=torch.bool)
    quarter[:4, 4:] = True
    red = batch.images[0, 0]
    assert torch.allclose(red[:16, 16:], torch.ones(16, 16), atol=1e-4)
    assert red.sum().item() == pytest.approx(256, abs=0.1)
    assert not batch.images[0, 1:].any()

    patch = {name: target[0].unflatten(0, (8, 8)) for name, target in batch.patch.items()}
    assert torch.equal(patch["foreground"].bool(), quarter)
    square = vocabulary.SHAPE_NAMES.index("square")
    assert (patch["shape"] == torch.where(quarter, square, vocabulary.IGNORE)).all()
    assert (patch["hue"] == torch.where(quarter, 0, vocabulary.GREY)).all()
    assert (patch["texture"] == vocabulary.SOLID).all()
    assert torch.allclose(patch["phase"][quarter], torch.tensor(0.5))  # 45 of 90 degrees
    assert patch["size"][~quarter].isnan().all()
    # The patch in the square's top left corner has its centre at (0.125, -0.875).
    assert patch["offset"][0, 4].tolist() == pytest.approx([0.375, 0.375])

    # In a window of 1.1 times its radius the square fills the inner 6 x 6 of 8 x 8 cells.
    outline = torch.zeros(8, 8, dtype=torch.bool)
    outline[1:7, 1:7] = True
    assert torch.equal((batch.image["outline"][0] > 0.5).view(8, 8), outline)
    assert torch.equal((patch["outline"][0, 4] > 0.5).view(8, 8), outline)

    assert batch.image["count"].item() == 1  # the disc is hidden
    assert batch.image["shape"].item() == square
    assert batch.image["position"][0].tolist() == [0.5, -0.5]
    assert batch.image["size"].item() == pytest.approx(math.log(0.5 * math.sqrt(2) / 0.3))


# --------------------------------------------------------------------------------- the training


def test_a_tiny_run_leaves_loadable_weights_and_can_be_resumed(
    tmp_path: Path, same_threads_afterwards: None
):
    command = ["--out", str(tmp_path), "--batch-size", "8", "--held-out", "16"]
    training.pretrain(training.parse_options([*command, "--images", "32"]))
    weights = tmp_path / "demo_vit.safetensors"
    model = timm.create_model("vpeft_demo_vit", num_classes=0)
    untrained = model.pos_embed.detach().clone()
    model.load_state_dict(load_file(weights), strict=True)
    assert not torch.equal(model.pos_embed, untrained)

    training.pretrain(training.parse_options([*command, "--images", "64", "--resume"]))
    with safe_open(weights, "pt") as file:
        assert file.metadata()["images"] == "64"
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == ["32", "64"]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_needs_a_budget(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        training.parse_options(["--out", "nowhere"])
    assert "budget" in capsys.readouterr().err
