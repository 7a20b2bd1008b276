"""Mixed pictures and their classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.running import config_of
from vpeft_bench.tasks.classification.module import Classification
from vpeft_bench.tasks.names import TASKS


class Plane(nn.Module):
    """Means of the three channels as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def task(**alphas: float) -> Classification:
    return Classification(Plane(), 3, lambda pictures: pictures.float() / 255, **alphas)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("size", [1, 5, 6])
def test_pictures_are_mixed_as_their_classes_are(alphas: dict[str, float], size: int) -> None:
    """Each picture is one colour, its class: the mean of what is mixed is the share of each."""
    labels = torch.arange(size) % 3
    pictures = torch.zeros(size, 3, 32, 32)
    pictures[torch.arange(size), labels] = 1.0
    torch.manual_seed(3)
    mixed, shares = task(**alphas)._mixed(pictures, labels)
    assert mixed.shape == pictures.shape
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(size))
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), shares, atol=1e-3, rtol=0)
    changed = (shares.max(dim=1).values < 1).tolist()
    if size % 2:
        assert not changed[-1]
    assert any(changed) == (size > 1)


def test_what_is_mixed_follows_from_the_seed_of_the_step() -> None:
    pictures, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(task(mixup=0.8)._mixed(pictures, labels)[0])
    torch.testing.assert_close(*found, atol=0, rtol=0)
    assert not torch.equal(found[0], task(mixup=0.8)._mixed(pictures, labels)[0])


def test_without_alphas_the_loss_is_that_of_before() -> None:
    pictures = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    logits = task()(pictures)
    torch.testing.assert_close(
        task().loss((pictures, labels)), nn.functional.cross_entropy(logits, labels)
    )


def test_mixed_pictures_have_no_kept_features() -> None:
    kind = TASKS.get("classification")
    assert kind.not_kept(config_of("method=linear")) is None
    why = kind.not_kept(config_of("method=linear", "task.cutmix=0.5"))
    assert why == "task.cutmix=0.5 mixes pictures"


def test_the_mean_over_classes_is_over_those_that_occur() -> None:
    """Three of class 0, all right; one of class 1, wrong; none of class 2."""
    pictures = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pictures[:, 0] = 255
    scored = task()
    scored.score((pictures, torch.tensor([0, 0, 0, 1])))
    found = scored.metrics()
    assert found["top1"] == pytest.approx(75)
    assert found["mean_per_class_accuracy"] == pytest.approx(50)


def test_a_classifier_that_guesses_is_doubted() -> None:
    """Three pictures of class 0, one of class 1: three right ones are no achievement."""
    pictures = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 1])
    guesses = task()
    pictures[:, 0] = 255
    guesses.score((pictures, labels))
    assert guesses.doubts() == ["no better than the most frequent class for all, 75.0 %"]
    guesses.forget()
    pictures[3] = 0
    pictures[3, 1] = 255
    guesses.score((pictures, labels))
    assert guesses.doubts() == []
