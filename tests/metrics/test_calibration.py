"""Against torchmetrics and scikit-learn, and by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import log_loss
from torchmetrics.classification import MulticlassCalibrationError

from vpeft_bench.metrics.calibration import BINS, Calibration


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_values_are_those_of_other_libraries(scale: float) -> None:
    torch.manual_seed(0)
    logits, labels = scale * torch.randn(500, 7, dtype=torch.float64), torch.randint(7, (500,))
    found = Calibration()
    for part in torch.arange(500).split(64):
        found.add(logits[part], labels[part])
    values = found.values()
    reference = MulticlassCalibrationError(7, n_bins=BINS, norm="l1")
    assert values["ece"] == pytest.approx(100 * float(reference(logits, labels)), rel=1e-5)
    shares = logits.softmax(dim=1)
    assert values["nll"] == pytest.approx(log_loss(labels, shares, labels=range(7)), rel=1e-6)
    truth = torch.nn.functional.one_hot(labels, 7)
    assert values["brier"] == pytest.approx(float((shares - truth).square().sum(1).mean()))


def test_a_sure_and_right_classifier_has_no_error() -> None:
    found = Calibration()
    found.add(torch.tensor([[900.0, 0.0], [0.0, 900.0]]), torch.tensor([0, 1]))
    assert found.values() == {"ece": 0.0, "nll": 0.0, "brier": 0.0}


def test_a_sure_and_wrong_one_has_all_of_it() -> None:
    found = Calibration()
    found.add(torch.tensor([[900.0, 0.0]]), torch.tensor([1]))
    assert found.values() == {"ece": 100.0, "nll": 900.0, "brier": 2.0}


def test_it_starts_anew() -> None:
    found = Calibration()
    found.add(torch.tensor([[900.0, 0.0]]), torch.tensor([1]))
    found.forget()
    found.add(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    assert found.values() == pytest.approx({"ece": 50.0, "nll": 0.6931472, "brier": 0.5})
