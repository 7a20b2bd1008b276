"""What is drawn of a run beside the frozen model: attention rollout, a map of features."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.conftest import Cli
from vpeft_bench.attaching.attachment import Attached, attach_method
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.methods.registry import build_method
from vpeft_bench.runs.attention import rolled_out
from vpeft_bench.runs.feature_map import measure, nearest_alike
from vpeft_bench.runs.shown import reopen

SIZE = 64
MODELS = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 2, "patch_size": 16},
    "vit_small_patch16_dinov3": {"depth": 2, "embed_dim": 96, "num_heads": 3},
}


def attached(model: str, method: str, **options: Any) -> Attached:
    torch.manual_seed(0)
    made = timm.create_model(model, img_size=SIZE, num_classes=5, **MODELS.get(model, {}))
    return attach_method(made.eval(), build_method(method, options))


def images() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def by_hand(model: Any, pictures: torch.Tensor) -> np.ndarray:
    """Rollout of timm's own unfused attention, whose dropout is given the maps: all of it."""
    seen: list[np.ndarray] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(
            lambda module, given: seen.append(given[0].detach().double().mean(1).numpy())
        )
    with torch.no_grad():
        model(pictures)
    tokens = seen[0].shape[-1]
    whole = np.eye(tokens)[None]
    for attention in seen:
        whole = (attention + np.eye(tokens)) / 2 @ whole
    return whole


@pytest.mark.parametrize("model", MODELS)
def test_rollout_is_that_of_timms_own_maps_and_changes_nothing(model: str) -> None:
    made = attached(model, "linear")
    pictures = images()
    with torch.no_grad():
        before = made.model(pictures)
    read = rolled_out(made, pictures)
    with torch.no_grad():
        assert torch.equal(made.model(pictures), before)
    prefix = made.backbone.prefix_tokens
    plain = timm.create_model(model, img_size=SIZE, num_classes=5, **MODELS[model]).eval()
    plain.load_state_dict(made.backbone.original_tensors())
    whole = by_hand(plain, pictures)
    if plain.global_pool == "token":
        expected = whole[:, : len(made.backbone.heads)].mean(1)
    else:
        expected = whole[:, prefix:].mean(1)
    assert read.patches.shape == (2, 4, 4)
    assert read.patches.reshape(2, -1) == pytest.approx(expected[:, prefix:], abs=1e-5)
    assert read.prefix == pytest.approx(expected[:, :prefix].sum(1), abs=1e-5)
    assert (read.added == 0).all()


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize(
    ("method", "adds"),
    [
        ("lora", False),
        ("hf/lora", False),
        ("vpt_deep", True),
        ("vpt_shallow", True),
        ("vfpt", True),
        ("prefix", True),
    ],
)
def test_what_a_method_adds_is_counted_and_the_model_is_as_it_was(
    method: str, adds: bool, pool: str
) -> None:
    if method.startswith("hf/"):
        pytest.importorskip("peft")
    torch.manual_seed(0)
    made = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=5, global_pool=pool)
    model = attach_method(made.eval(), build_method(method, {}))
    pictures, state = images(), {name: id(of) for name, of in model.model.state_dict().items()}
    with torch.no_grad():
        before = model.model(pictures)
    read = rolled_out(model, pictures)
    with torch.no_grad():
        assert torch.equal(model.model(pictures), before)
    assert model.model.state_dict().keys() == state.keys()
    whole = read.patches.sum(axis=(1, 2)) + read.prefix + read.added
    assert whole == pytest.approx(1)
    assert ((read.added > 0.01) == adds).all()


def test_fused_attention_stays_as_it_was() -> None:
    model = attached("vit_tiny_patch16_224", "lora")
    fused = [block.attention.fused_attn for block in model.backbone.blocks]
    rolled_out(model, images())
    assert [block.attention.fused_attn for block in model.backbone.blocks] == fused
    assert all(block.attention._modules["attention_map"] is None for block in model.backbone.blocks)


def test_a_network_around_the_blocks_and_windows_have_no_rollout() -> None:
    with pytest.raises(VpeftBenchError, match="method lst: it puts a network around the blocks"):
        rolled_out(attached("vit_tiny_patch16_224", "lst"), images())
    with pytest.raises(VpeftBenchError, match="swin backbones: their attention stays within"):
        rolled_out(attached("swin_tiny_patch4_window7_224", "linear"), images())


def test_pooling_by_attention_has_no_rollout() -> None:
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, num_classes=5, global_pool="map"
    )
    with pytest.raises(VpeftBenchError, match="global_pool=map"):
        rolled_out(attach_method(made, build_method("linear", {})), images())


def test_the_nearest_other_decides() -> None:
    features = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]])
    assert nearest_alike(features, torch.tensor([0, 0, 1, 2, 2])) == pytest.approx(60.0)


@pytest.fixture
def run(cli: Cli, tmp_path: Path, tiny_data: Path) -> Path:
    done = cli(
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=partial",
        "train.epochs=1",
        "train.lr=1e-3",
        "hardware=cpu",
        "hardware.threads=1",
    )
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.rglob("record.json")
    return record.parent


def test_what_is_asked_for_is_drawn_and_mistakes_are_named(
    cli: Cli, run: Path, tiny_data: Path
) -> None:
    shown = cli("show", str(run), "--features", "--attention", "--pictures", "3")
    assert shown.returncode == 0, shown.stderr
    for name, width in (("features.png", 1500), ("attention.png", 900)):
        assert str(run / name) in shown.stdout
        with Image.open(run / name) as picture:
            assert picture.width > width
    with (run / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "image", "true", "predicted", "confidence"]
    confusion = json.loads((run / "evaluation.json").read_text())["confusion"]
    assert len(rows) == sum(count for true, told, count in confusion if true != told) > 3
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)
    lines = (tiny_data / "test.txt").read_text().splitlines()
    for row in rows:
        assert lines[int(row["index"])] == f"{row['image']} {row['true'].removeprefix('class ')}"
    assert f"most confident of {len(rows)} mistakes" in shown.stdout
    assert [row["image"] in shown.stdout for row in rows] == [True] * 3 + [False] * (len(rows) - 3)


def test_the_map_of_features_is_the_same_each_time(run: Path) -> None:
    first, again = measure(reopen(run)), measure(reopen(run))
    assert np.array_equal(first.before, again.before)
    assert np.array_equal(first.after, again.after)
    assert len(first.labels) == 60
    assert first.perplexity == pytest.approx(59 / 3)
    assert not np.array_equal(first.before, first.after)
