"""GPS: in every neuron the few weights with the largest gradient, and the biases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.data_pass import Selection, SelectionData, evaluating, require_finite
from vpeft_bench.methods.parts.sparse import SparseUpdate, differentiable
from vpeft_bench.methods.registry import register


def supervised_contrastive_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """mean_i mean_{p in P(i)} -log(exp(f_i f_p / t) / sum_{a != i} exp(f_i f_a / t)).

    Args:
        features: ``(M, D)``, of length 1.
        labels: ``(M,)``; P(i) is every other row with the label of row i, at least one.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarity = (features @ features.T / temperature).masked_fill(itself, -torch.inf)
    log_probability = similarity.log_softmax(1).masked_fill(itself, 0)
    positives = (labels == labels.unsqueeze(1)) & ~itself
    return -((log_probability * positives).sum(1) / positives.sum(1)).mean()


@register
@dataclass
class GPS(Method):
    """W + delta, with K learned entries in each row of every weight matrix of the backbone.

    They are those with the largest |gradient|, summed over one pass through the training pictures.
    All biases but those of norms are trained as well.
    """

    name = "gps"
    title = "Gradient-based Parameter Selection for Efficient Fine-Tuning"
    arxiv = "2312.10136"
    source = "selection and trained tensors of the authors' code (FightingFighting/GPS)"
    category = Category.PARTIAL
    idea = (
        "One pass over the training pictures sums the gradients of a supervised contrastive loss "
        "on the frozen model. Each neuron then trains the few input weights with the largest "
        "gradient, and its bias."
    )
    deviations = (
        "The authors zero gradients where the mask is off, and only with mixed precision: without "
        "it everything trains. Here the rest of a weight is no parameter at all.",
        "Decay would move masked weights, so the authors use none. Here it pulls the chosen "
        "weights to their pretrained values; use train.weight_decay=0 for the authors' training.",
        "The authors score in train mode, with drop-path: mode=train. Without it the same pictures "
        "always select the same weights: mode=eval, the default.",
        "By the authors' rules on names, relative position bias tables are biases and train; "
        "class token, positions and LayerScale stay frozen here.",
        "The published VTAB-1k 0.22M is per_neuron=1 (camelyon 2) with the head. On FGVC the "
        "published 0.66M does not follow from the released scripts (K = 1 to 20, 0.92M with head).",
    )

    per_neuron: int = option(
        1,
        "K, weights per row (authors: 1 on VTAB but camelyon 2; FGVC 1 to 20)",
        minimum=1,
        search=(1, 2, 5, 20),
    )
    loss: str = option(
        "supcon",
        "supcon: supervised contrastive, two views (authors); ce: cross-entropy of the fresh head",
        choices=("supcon", "ce"),
    )
    temperature: float = option(0.07, "t of the contrastive loss (authors: 0.07)", minimum=0.001)
    mode: str = option(
        "eval",
        "while gradients are taken: eval, without drop-path and dropout, or train (authors)",
        choices=("eval", "train"),
    )
    relative_position_bias: bool = option(
        True, "also train Swin's relative position bias tables, by the authors' rule on names"
    )

    @property
    def selects(self) -> bool:
        """The weights come from training data."""
        return True

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Every bias but those of norms, and the tables where asked for."""
        norms = set(backbone.norms())
        for module, bias in backbone.biases():
            if module not in norms:
                yield bias
        if self.relative_position_bias:
            yield from backbone.position_tables()

    def select(self, backbone: Backbone, data: SelectionData) -> Selection:
        """For each matrix its K largest gradients per row, as indices into the flat matrix."""
        matrices = dict(_matrices(backbone))
        weights = [leaf.weight for leaf in matrices.values()]
        totals = [torch.zeros_like(weight) for weight in weights]
        views = 2 if self.loss == "supcon" else 1
        with evaluating(backbone.model), differentiable(weights):
            backbone.model.train(self.mode == "train")
            for *images, labels in data.training(views=views, augment=True):
                gradients = torch.autograd.grad(self.loss_of(backbone, images, labels), weights)
                for total, gradient in zip(totals, gradients, strict=True):
                    total += gradient
        require_finite(totals, "gradient of the data pass")
        return {n: self._largest(g.abs()) for n, g in zip(matrices, totals, strict=True)}

    def loss_of(self, backbone: Backbone, images: list[Tensor], labels: Tensor) -> Tensor:
        """Loss of one batch: the views of its pictures, one after another."""
        model = backbone.model
        if self.loss == "ce":
            if not backbone.has_head:
                raise UnsupportedBackboneError("method.loss=ce needs a head (num_classes)")
            return nn.functional.cross_entropy(model(images[0]), labels)
        maps = model.forward_features(torch.cat(images))  # type: ignore[operator]
        features = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        features = nn.functional.normalize(features, dim=1)
        return supervised_contrastive_loss(features, labels.repeat(len(images)), self.temperature)

    def _largest(self, scores: Tensor) -> Tensor:
        """Indices of the K largest of each row into the flattened ``scores``, ascending."""
        rows, columns = scores.flatten(1).shape
        chosen = scores.flatten(1).topk(min(self.per_neuron, columns)).indices.sort().values
        starts = columns * torch.arange(rows, device=scores.device).unsqueeze(1)
        return (starts + chosen).flatten().int()

    def place_selected(self, backbone: Backbone, selection: Selection) -> None:
        """A sparse update on every matrix."""
        for name, leaf in list(_matrices(backbone)):
            backbone.place_on_leaf(leaf, SparseUpdate(selection[name]), "weight_update")

    def parameter_count(self, backbone: Backbone) -> int:
        """(K + 1) * 83,712 for ViT-B/16: K per row, and one bias."""
        weights = [leaf.weight for _, leaf in _matrices(backbone)]
        chosen = sum(len(w) * min(self.per_neuron, w[0].numel()) for w in weights)
        return chosen + sum(bias.numel() for bias in self.unfrozen(backbone))

    @property
    def changes_embedding(self) -> bool:
        """The patch convolution is a matrix, too."""
        return True


def _matrices(backbone: Backbone) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Every weight matrix outside the head, by its name in the model."""
    inside = set(backbone.modules())
    for module, name in backbone.original_modules():
        if module in inside and isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module
