"""Several runs of a sweep in one job: the same runs, and none lost where a job ends early."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.conftest import Cli
from tests.running import config_of
from tests.runs.test_sweep import TINY, jobs_of
from vpeft_bench import kept
from vpeft_bench.backbones import load
from vpeft_bench.backbones.weights import weights_source
from vpeft_bench.cli.launch import main
from vpeft_bench.data import loading
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.loading import preprocessing_for
from vpeft_bench.data.splits import LabelledSplit
from vpeft_bench.runs import host, rounds, run, sweep
from vpeft_bench.runs.packing import PACKS, Pack, together, write_packs

Launch = Callable[..., Path]
"""A sweep in packs, done in this process; gives the sweep's folder."""


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Launches packs with Hydra's own launcher, which otherwise has no need of them."""
    monkeypatch.setattr(rounds, "IN_THIS_PROCESS", "no launcher")
    monkeypatch.setattr(sys, "argv", ["vpeft_bench"])
    monkeypatch.setattr(sweep.NoteSweep, "directory", None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(kept._State, "wanted", False)

    def launch(*overrides: str, status: int = 0) -> Path:
        assert main(["-m", *overrides, f"results_dir={tmp_path / 'packed'}"]) == status
        assert sweep.NoteSweep.directory is not None
        return sweep.NoteSweep.directory

    return launch


def runs_of(results: Path) -> dict[str, Path]:
    """Where the runs lie, by what tells them from others."""
    return {
        str(path.parent.relative_to(results)): path.parent for path in results.rglob("record.json")
    }


def test_a_packed_run_is_the_run_of_a_process_of_its_own(
    packed: Launch, cli: Cli, tmp_path: Path, tiny_data: Path
) -> None:
    """Weights and metrics are equal bit by bit, after a run of other seed, or one that diverged."""
    data = ("data=imagelist", f"data.root={tiny_data}", *TINY)
    asked = ("method=lora", "seed=0,1", "train.lr=1e30,1e-3", "train.min_lr=1e-30")
    folder = packed(*asked, *data, "sweep.runs_per_job=3", status=1)
    results = [note.result for note in sweep.notes_of(folder)]
    assert results == ["failed", "done", "failed", "done"]
    assert len(list((folder / PACKS).iterdir())) == 2

    for seed in (0, 1):
        one = ("train.lr=1e-3", "train.min_lr=1e-30", "method=lora", f"seed={seed}")
        assert cli(*one, *data, f"results_dir={tmp_path / 'alone'}").returncode == 0
    alone, together_ = runs_of(tmp_path / "alone"), runs_of(tmp_path / "packed")
    assert len(alone) == 2
    for name, directory in alone.items():
        for file in ("delta.safetensors", "head.safetensors"):
            assert (directory / file).read_bytes() == (together_[name] / file).read_bytes(), name
        values = [
            json.loads((place / "record.json").read_text())["happened"]["last_epoch"]
            for place in (directory, together_[name])
        ]
        assert values[0] == values[1]


def test_a_job_whose_gpu_is_lost_leaves_the_rest_to_another(
    packed: Launch, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process takes no further run; the next round launches what was not begun."""
    monkeypatch.setattr(run, "device_is_lost", lambda: None)  # of a run: asked before it begins
    answers = iter(["an illegal memory access"])
    monkeypatch.setattr(host, "device_is_lost", lambda: next(answers, None))
    data = ("data=imagelist", f"data.root={tiny_data}", *TINY)
    folder = packed("method=linear", "seed=0,1,2", *data, "sweep.runs_per_job=3")
    assert [note.result for note in sweep.notes_of(folder)] == ["done"] * 3
    assert [note.place for note in sweep.notes_of(folder)] == ["0", "3", "4"]
    jobs = {path.stem: json.loads(path.read_text()) for path in (folder / PACKS).iterdir()}
    assert {name: (pack["first"], len(pack["runs"])) for name, pack in jobs.items()} == {
        "0": (0, 3),
        "3": (3, 2),
    }


def test_a_requeued_job_goes_on_where_it_was(
    packed: Launch,
    tiny_data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs that left a last note are not asked for again, not even with ``rerun=true``."""
    data = ("data=imagelist", f"data.root={tiny_data}", *TINY, "rerun=true")
    write = sweep.write_note

    def two_at_once(directory: Path, overrides: list[str], *rest: Any) -> None:
        write(directory, overrides, *rest)
        if directory.name == "0":
            others = [text.replace("seed=0", "seed=1") for text in overrides]
            write(directory.with_name("1"), others, sweep.Answer("done", True))

    monkeypatch.setattr(sweep, "write_note", two_at_once)
    folder = packed("method=linear", "seed=0,1,2", *data, "sweep.runs_per_job=3")
    assert capsys.readouterr().out.count("linear on imagelist: epochs: 1") == 2
    assert [note.place for note in sweep.notes_of(folder)] == ["0", "1", "2"]


def test_a_kept_model_is_the_one_that_would_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, fresh head and the generator after it; not of another seed, nor of changed files."""
    file = tmp_path / "weights.safetensors"
    shutil.copy(weights_source("hub", "vpeft_demo_vit").path or "", file)
    loads: list[int] = []
    load_weights = load.load_weights
    monkeypatch.setattr(
        load, "load_weights", lambda *given: loads.append(1) or load_weights(*given)
    )

    def loaded(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(seed)
        model = load.load_backbone("vpeft_demo_vit", str(file), 5).model
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for parameter in model.parameters():  # as a run would
            parameter.data.add_(1)
        return state, torch.rand(3)

    alone = [loaded(0), loaded(1)]
    load._models.forget()
    monkeypatch.setattr(kept._State, "wanted", True)
    for seed in (0, 0, 1, 0):
        state, drawn = loaded(seed)
        wanted, after = alone[seed]
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        assert torch.equal(drawn, after)
    assert len(loads) == 2 + 3
    os.utime(file, (1, 1))
    loaded(0)
    assert len(loads) == 2 + 4
    load._models.forget()


def test_kept_pictures_are_those_that_would_be_decoded(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded once, with the hashes of their pixels; again where a file has changed."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    config = config_of("data=imagelist", f"data.root={data}")
    preprocessing = preprocessing_for(
        config.data, {"interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}, 32
    )
    decoded: list[int] = []
    remembered = loading._Batches._remembered
    monkeypatch.setattr(
        loading._Batches,
        "_remembered",
        lambda self, index: decoded.append(index) or remembered(self, index),
    )

    def pictures() -> loading._Batches:
        split = cast(LabelledSplit, open_dataset(config.data).split("test"))
        batches = loading._Batches(split, preprocessing, False, 0, 1.0)
        batches.fill_memory()
        return batches

    alone = pictures()
    monkeypatch.setattr(kept._State, "wanted", True)
    for _ in range(2):
        found = pictures()
        assert torch.equal(cast(torch.Tensor, found._memory), cast(torch.Tensor, alone._memory))
        assert found.pixels == alone.pixels
    assert len(decoded) == 2 * 60
    os.utime(data / "images" / "000200.jpg", (1, 1))
    pictures()
    assert len(decoded) == 3 * 60
    loading._pictures.forget()


def test_what_shares_most_comes_together(tmp_path: Path, tiny_data: Path) -> None:
    asked = jobs_of(tmp_path, tiny_data, "method=linear,lora", "data.name=a,b", "seed=1,0")
    order = [(j.config.data.name, j.config.seed, j.config.method["name"]) for j in asked.jobs]
    assert order[:3] == [("a", 1, "linear"), ("a", 0, "linear"), ("b", 1, "linear")]
    order = [
        (j.config.data.name, j.config.seed, j.config.method["name"]) for j in together(asked.jobs)
    ]
    assert order == [(d, s, m) for d in "ab" for s in (1, 0) for m in ("linear", "lora")]


def test_jobs_hold_at_most_as_many_runs_as_asked_for(tmp_path: Path) -> None:
    runs = [[f"seed={seed}"] for seed in range(7)]
    packs = write_packs(tmp_path, runs, 10, 3)
    assert [(pack.first, len(pack.runs)) for pack in packs] == [(10, 3), (13, 3), (16, 1)]
    assert [pack for one in packs for pack in one.runs] == runs
    assert Pack(**json.loads((tmp_path / PACKS / "11.json").read_text())) == packs[1]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["sweep.runs_per_job=4"], "sweep.runs_per_job: says how a sweep is launched"),
        (["-m", "sweep.runs_per_job=1,2"], "is the same for all runs of a sweep"),
        (["-m", "seed=0,1", "sweep.runs_per_job=0"], "sweep.runs_per_job=0"),
    ],
)
def test_what_cannot_be_packed_is_told(cli: Cli, typed: list[str], told: str) -> None:
    refused = cli(*typed)
    assert refused.returncode == 2
    assert told in refused.stderr
