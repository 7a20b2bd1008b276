"""What matters on a GPU and can be shown without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.types import RunMode
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from tests.running import config_of, run_here
from vpeft_bench.config.sections import HardwareConfig, InputConfig
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.inspect_labels import inspect_labels
from vpeft_bench.heads import decoders
from vpeft_bench.heads.resizing import Resizing
from vpeft_bench.runs import build, host
from vpeft_bench.runs.callbacks import Curves


def test_the_peak_is_that_of_training_and_survives_an_interruption(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation takes more, and is left out; so is what was there before."""
    peak = [10**9]
    monkeypatch.setattr(host, "peak_memory", lambda device: peak[0])

    def forget(device: torch.device) -> None:
        peak[0] = 7

    monkeypatch.setattr(host, "forget_peak", forget)
    seen = []
    end = Curves.on_train_epoch_end

    def training(self: Curves, *arguments: Any) -> None:
        end(self, *arguments)
        seen.append((self.state_dict()["peak_memory"], self.peak_memory))
        peak[0] = 99  # of the next epoch, before it is validated

    monkeypatch.setattr(Curves, "on_train_epoch_end", training)
    options = ("data=imagelist", f"data.root={tiny_data}", "method=linear", "train.epochs=2")
    peak[0] = 42
    run_here(tmp_path, *options, "protocol=select")
    assert seen == [(42, 42), (99, 99)]


def test_jobs_at_the_same_time_take_turns_on_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = HardwareConfig("gpu", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert build.own_gpu(hardware) == 0
    assert build.own_gpu(replace(hardware, device=3)) == 3
    assert build.own_gpu(replace(hardware, accelerator="cpu", device=3)) is None

    launcher = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    job = SimpleNamespace(mode=RunMode.MULTIRUN, job=SimpleNamespace(num=6))
    asked = SimpleNamespace(initialized=lambda: True, get=lambda: job)
    monkeypatch.setattr(build, "HydraConfig", asked)
    job.launcher = {"_target_": launcher}
    assert build.own_gpu(hardware) == 2
    job.launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    assert build.own_gpu(hardware) == 0


def test_labels_beyond_the_classes_are_refused(tiny_data: Path) -> None:
    """On a GPU their loss would end the process, and with it a whole sweep."""
    config = config_of("data=imagelist", f"data.root={tiny_data}", "method=linear").data
    inspection = Inspection()
    inspect_labels(replace(open_dataset(config), num_classes=5), config, inspection)
    (problem,) = inspection.problems
    assert problem.what == "has class 5, and the 5 classes count from 0"


def test_maps_stay_in_their_type_when_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's autocast gives float32; the CPU's does not."""
    interpolate = decoders.F.interpolate
    monkeypatch.setattr(decoders.F, "interpolate", lambda x, **k: interpolate(x.float(), **k))
    small, large = torch.zeros(1, 2, 3, 3).bfloat16(), torch.zeros(1, 2, 6, 6)
    assert decoders.resized(small, large).dtype is torch.bfloat16


def test_pictures_are_normalised_as_torchvision_does() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    ours = Resizing(InputConfig(), None, mean, std)
    theirs = GeneralizedRCNNTransform(800, 1333, list(mean), list(std))
    image = torch.rand(3, 5, 7)
    assert torch.equal(ours.normalize(image), theirs.normalize(image))
