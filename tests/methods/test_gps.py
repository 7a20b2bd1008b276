"""GPS: the contrastive loss, which weights it chooses, and what trains besides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import CLASSES, build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.gps import supervised_contrastive_loss

LABELS = torch.arange(8) % CLASSES
BATCHES = [
    (images(5, seed=2), images(5, seed=3), LABELS[:5]),
    (images(3, seed=4), images(3, seed=5), LABELS[5:]),
]


def attach(model: Any, **options: Any) -> Attached:
    return vpeft_bench.attach(model, "gps", data=BATCHES, **options)


def test_loss_by_hand() -> None:
    features = nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    labels, t = torch.tensor([0, 1, 0, 0, 1, 0]), 0.3
    rows = []
    for i in range(6):
        others = [a for a in range(6) if a != i]
        total = sum(torch.exp(features[i] @ features[a] / t) for a in others)
        terms = [
            -torch.log(torch.exp(features[i] @ features[p] / t) / total)
            for p in others
            if labels[p] == labels[i]
        ]
        rows.append(sum(terms) / len(terms))
    expected = sum(rows) / len(rows)
    torch.testing.assert_close(supervised_contrastive_loss(features, labels, t), expected)


def matrices(model: nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith("head")
    }


def by_hand(model: Any, loss: str) -> dict[str, Tensor]:
    """Gradients of every matrix, batch by batch, with the loss of ``loss``."""
    for first, second, labels in BATCHES:
        if loss == "ce":
            value = nn.functional.cross_entropy(model(first), labels)
        else:
            features = model.forward_head(
                model.forward_features(torch.cat([first, second])), pre_logits=True
            )
            value = supervised_contrastive_loss(
                nn.functional.normalize(features, dim=1), torch.cat([labels, labels]), 0.07
            )
        value.backward()
    return {name: leaf.weight.grad.flatten(1) for name, leaf in matrices(model).items()}


@pytest.mark.parametrize("loss", ["supcon", "ce"])
@pytest.mark.parametrize(("kind", "count"), [("vit", 13), ("vit_avg_reg", 13), ("swin", 18)])
def test_the_largest_gradients_of_each_row(kind: str, count: int, loss: str) -> None:
    gradients = by_hand(build(kind), loss)
    selection = attach(build(kind), loss=loss, per_neuron=3).selection
    assert selection is not None
    assert set(selection) == set(gradients)
    assert len(gradients) == count  # patches, four per block, and a Swin's merging
    for name, gradient in gradients.items():
        rows, columns = gradient.shape
        chosen = selection[name].reshape(rows, 3)
        assert (chosen // columns == torch.arange(rows)[:, None]).all()
        mask = torch.zeros(rows, columns, dtype=torch.bool)
        mask[torch.arange(rows)[:, None], chosen.long() % columns] = True
        size = gradient.abs()
        least, most = size.masked_fill(~mask, torch.inf), size.masked_fill(mask, 0)
        assert (least.min(1).values >= most.max(1).values * (1 - 1e-3)).all()


@pytest.mark.parametrize("tables", [True, False])
def test_biases_train_and_those_of_norms_do_not(tables: bool) -> None:
    model = build("swin")
    attached = attach(model, relative_position_bias=tables)
    trained = {n for n, _ in attached.named_trainable_parameters()}
    in_place = {n for n in trained if not n.endswith("weight_update.values")}
    expected = {
        n
        for n, _ in model.named_parameters()
        if (n.endswith(".bias") or (tables and "bias_table" in n))
        and "norm" not in n
        and not n.startswith("head")
    }
    assert in_place == expected
    assert {n.removesuffix(".weight_update.values") for n in trained - in_place} == set(
        matrices(model)
    )


def test_a_row_shorter_than_k_is_chosen_whole() -> None:
    attached = attach(build("vit"), per_neuron=60)
    sizes = {n: len(t) for n, t in (attached.selection or {}).items()}
    assert sizes["blocks.0.attn.proj"] == 32 * 32
    assert sizes["blocks.0.mlp.fc2"] == 32 * 60
    assert attached.parameter_counts().method == attached.method.parameter_count(attached.backbone)


def test_values_are_added_where_they_belong() -> None:
    model = build("vit")
    proj = model.blocks[1].attn.proj
    before = proj.weight.detach().clone()
    attached = attach(model)
    indices = (attached.selection or {})["blocks.1.attn.proj"].long()
    with torch.no_grad():
        proj.weight_update.values.copy_(torch.arange(1.0, 33.0))
    attached.merge()
    moved = (proj.weight - before).flatten()
    torch.testing.assert_close(moved[indices], torch.arange(1.0, 33.0))
    assert moved.count_nonzero() == 32


def test_the_data_pass_leaves_no_trace() -> None:
    model = build("vit")
    model.train()
    model.blocks[1].eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attached = attach(model, mode="train")
    attached.detach()
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_scores_do_not_depend_on_drop_path_unless_asked() -> None:
    def select(mode: str, seed: int) -> dict[str, Tensor]:
        model = build("vit").train()
        model.head_drop.p = 0.5
        for block in model.blocks:
            block.mlp.drop1 = nn.Dropout(0.5)
        torch.manual_seed(seed)
        return attach(model, mode=mode).selection or {}

    def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
        return all(torch.equal(left[name], right[name]) for name in left)

    assert same(select("eval", 0), select("eval", 1))
    assert not same(select("train", 0), select("train", 1))


def test_cross_entropy_needs_a_head() -> None:
    model = build("vit")
    model.reset_classifier(0)
    with pytest.raises(UnsupportedBackboneError, match="needs a head"):
        attach(model, loss="ce")
    attach(model)
