"""Few pictures of each class to train on: ``data.per_class``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.schema import RunConfig, register_schema, typed
from vpeft_bench.data.dataset import Dataset, open_dataset
from vpeft_bench.data.shares import few, few_of_each
from vpeft_bench.data.splits import FileSplit, LabelledSplit
from vpeft_bench.errors import ConfigError, VpeftBenchError
from vpeft_bench.runs.identified import identify
from vpeft_bench.runs.run import run


def test_each_class_gives_that_many_or_all_it_has() -> None:
    labels = np.array([2, 0, 0, 1, 0, 2, 0])
    chosen = few(labels, 2, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [2, 1, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_fewer_pictures_are_among_more_and_another_seed_draws_others() -> None:
    labels = np.repeat(np.arange(10), 80)
    of = {count: set(few(labels, count, seed=1).tolist()) for count in (1, 2, 4, 8, 80)}
    assert of[1] < of[2] < of[4] < of[8] < of[80] == set(range(800))
    assert of[8] != set(few(labels, 8, seed=2).tolist())


def test_another_class_changes_no_other_ones_pictures() -> None:
    labels = np.repeat(np.arange(3), 20)
    alone = few(labels[:40], 5, seed=0).tolist()
    assert few(labels, 5, seed=0).tolist()[:10] == alone


def config(*overrides: str) -> RunConfig:
    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return typed(compose("config", overrides=list(overrides)))


@pytest.fixture
def digits() -> Dataset:
    return open_dataset(config("data=demo/digits").data)


def labelled(dataset: Dataset, split: str) -> LabelledSplit:
    found = dataset.split(split)
    assert isinstance(found, LabelledSplit)
    return found


def test_the_split_that_is_trained_on_is_cut_and_no_other(digits: Dataset) -> None:
    left, told = few_of_each(digits, "trainval", 4, seed=0)
    assert told == []
    assert len(left.split("trainval")) == 40
    assert all(left.splits[name] is digits.splits[name] for name in ("train", "val", "test"))
    assert left.fingerprint == digits.fingerprint


def test_a_cut_split_gives_the_pictures_of_its_labels(digits: Dataset) -> None:
    whole = labelled(digits, "trainval")
    chosen = few(whole.labels, 3, seed=5)
    left = whole.taken(chosen).taken(np.array([7, 2]))
    for index, place in enumerate(chosen[[7, 2]]):
        assert left.labels[index] == whole.labels[place]
        assert (np.asarray(left.image(index)) == np.asarray(whole.image(int(place)))).all()
    # What is kept of one part is never taken for another's.
    assert left.state() != whole.state() != whole.taken(chosen).state()


def test_paths_go_with_their_labels() -> None:
    whole = FileSplit(np.array([1, 0, 1]), ("a", "b", "c"), background="white")
    left = whole.taken(np.array([2, 1]))
    assert (left.labels.tolist(), left.paths, left.background) == ([1, 0], ("c", "b"), "white")


def test_smaller_classes_are_told(digits: Dataset) -> None:
    size = int(np.bincount(labelled(digits, "train").labels).min())
    left, told = few_of_each(digits, "train", size + 1, seed=0)
    assert len(left.split("train")) < 10 * (size + 1)
    assert "classes have fewer than" in told[0]


def test_pictures_without_one_class_are_refused() -> None:
    scenes = open_dataset(config("data=demo/scenes_detection").data)
    with pytest.raises(ConfigError, match="no class each"):
        few_of_each(scenes, "train", 4, seed=0)


def test_it_belongs_to_the_identity_and_the_seed_that_draws_does_not(tmp_path: Path) -> None:
    def hash_of(*overrides: str) -> str:
        asked = config("method=linear", f"results_dir={tmp_path}", *overrides)
        return identify(asked).config_hash

    whole, four = hash_of(), hash_of("data.per_class=4")
    assert whole != four
    assert four == hash_of("data.per_class=4", "seed=3")
    assert whole == hash_of("data.per_class=null")


def test_features_of_few_pictures_are_not_taken_for_those_of_others(tmp_path: Path) -> None:
    """Kept features give what is computed anew, though other ones of the data set were kept."""

    def top1(*overrides: str, seed: int) -> float | None:
        asked = config(
            "method=linear",
            "train.epochs=2",
            "hardware=cpu",
            "hardware.threads=1",
            "data.per_class=2",
            f"seed={seed}",
            f"results_dir={tmp_path / str(len(overrides))}",
            *overrides,
        )
        outcome = run(asked, Console(quiet=True))
        assert outcome.record is not None
        assert outcome.record.happened.last_epoch is not None
        return outcome.record.happened.last_epoch.value

    kept = [top1(seed=seed) for seed in (0, 1)]
    assert kept == [top1("hardware.feature_cache=off", seed=seed) for seed in (0, 1)]
    assert kept[0] != kept[1]


def test_a_method_that_chooses_by_validation_pictures_is_refused(tmp_path: Path) -> None:
    asked = config("method=noah", "data.per_class=2", f"results_dir={tmp_path}", "hardware=cpu")
    with pytest.raises(VpeftBenchError, match="chooses by validation pictures"):
        run(asked, Console(quiet=True))
