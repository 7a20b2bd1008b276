"""Retrieval: what is found, what is trained, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor, nn
from torch.nn import functional as F

from tests.leaderboard.as_rows import cells, datasets, in_print
from tests.running import config_of, run_here
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.inspection import Inspection, inspect
from vpeft_bench.data.splits import ArraySplit, Dataset
from vpeft_bench.methods.registry import method_class
from vpeft_bench.records.run_record import find as find_records
from vpeft_bench.runs import validation
from vpeft_bench.runs.shown import reopen, show
from vpeft_bench.tasks.names import TASKS
from vpeft_bench.tasks.retrieval import metrics
from vpeft_bench.tasks.retrieval.batches import GroupSampler
from vpeft_bench.tasks.retrieval.kind import FIRST, RetrievalOptions
from vpeft_bench.tasks.retrieval.losses import LOSSES
from vpeft_bench.tasks.retrieval.metrics import find, scores
from vpeft_bench.tasks.retrieval.module import Retrieval

GLYPHS = "data=demo/glyphs_retrieval"
QUICK = (GLYPHS, "train.epochs=1", "train.warmup_epochs=0", "train.lr=1e-3")


def embeddings_of(labels: Tensor, noise: float = 0.7, width: int = 16) -> Tensor:
    torch.manual_seed(0)
    centres = torch.randn(int(labels.max()) + 1, width, dtype=torch.float64)
    return F.normalize(centres[labels] + noise * torch.randn(len(labels), width), dim=1)


@pytest.fixture
def labels() -> Tensor:
    """300 pictures of 20 classes of different sizes, and two that are alone in theirs."""
    torch.manual_seed(1)
    return torch.cat([torch.randint(20, (300,)) % 20, torch.tensor([20, 21])])


# ---- what is found -------------------------------------------------------------------------------


def test_scores_are_those_of_pytorch_metric_learning(labels: Tensor) -> None:
    embeddings = embeddings_of(labels, noise=1.2)
    ours = scores(find(embeddings, labels, max(FIRST)), FIRST)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = calculator.get_accuracy(embeddings, labels)
    assert ours["recall_at_1"] == pytest.approx(100 * theirs["precision_at_1"], abs=1e-9)
    same = pytest.approx(100 * theirs["mean_average_precision_at_r"], abs=1e-9)
    assert ours["map_at_r"] == same
    assert 20 < (ours["map_at_r"] or 0) < (ours["recall_at_1"] or 0) < 95


def test_recall_is_what_is_among_the_first(labels: Tensor) -> None:
    embeddings = embeddings_of(labels, noise=1.5)
    ours = scores(find(embeddings, labels, max(FIRST)), FIRST)
    cosines = (embeddings @ embeddings.T).numpy()
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)
    queries = np.flatnonzero(np.bincount(labels)[labels] > 1)
    for k in FIRST:
        hits = [(labels.numpy()[order[q, :k]] == labels[q].item()).any() for q in queries]
        assert ours[f"recall_at_{k}"] == pytest.approx(100 * np.mean(hits), abs=1e-9)


def test_parts_give_the_same_as_the_whole(labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = embeddings_of(labels)
    whole = find(embeddings, labels, 8)
    monkeypatch.setattr(metrics, "_PRODUCTS", 7 * len(labels))
    parts = find(embeddings, labels, 8)
    assert torch.equal(whole.nearest, parts.nearest)


@pytest.mark.parametrize("order", ["by class", "shuffled"])
def test_an_embedding_that_says_nothing_finds_nothing(labels: Tensor, order: str) -> None:
    labels = labels.sort().values if order == "by class" else labels
    same = F.normalize(torch.ones(len(labels), 8), dim=1)
    assert set(scores(find(same, labels, 8), FIRST).values()) == {0.0}


def test_where_there_is_no_query_there_is_no_score() -> None:
    found = find(F.normalize(torch.randn(5, 4), dim=1), torch.arange(5), 8)
    assert set(scores(found, FIRST).values()) == {None}


def test_few_pictures() -> None:
    vectors = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), dim=1)
    found = find(vectors, torch.tensor([3, 3, 7, 7]), 8)
    assert set(scores(found, FIRST).values()) == {100.0}


@pytest.mark.parametrize(
    ("vectors", "doubts"),
    [
        ([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]], []),
        ([[1.0, 0], [1.0, 0], [1.0, 0], [1.0, 0]], ["no better than chance, 33.3 %"]),
    ],
)
def test_an_embedding_that_does_no_better_than_chance_is_doubted(
    vectors: list[list[float]], doubts: list[str]
) -> None:
    options, classes = RetrievalOptions(width=2), np.array([0, 1])
    task = Retrieval(nn.Identity(), lambda pictures: pictures, options, classes, 2)
    task.score((torch.tensor(vectors), torch.tensor([0, 0, 1, 1])))
    assert task.doubts() == doubts


# ---- what is trained -----------------------------------------------------------------------------


def test_groups_of_a_class_come_together() -> None:
    labels = np.repeat(np.arange(5), (8, 8, 9, 8, 3))
    sampler = GroupSampler(labels, 8, seed=3, group_size=4)
    first = list(sampler)
    assert [epoch for epoch, _ in first] == [0] * 5
    assert sorted(np.concatenate([chosen for _, chosen in first]).tolist()) == list(range(36))
    for _, chosen in first[:4]:  # what fills no group comes last
        counts = np.bincount(labels[chosen])
        assert not (counts % 4).any()
    sampler.set_epoch(1)
    second = np.concatenate([chosen for _, chosen in sampler])
    assert not np.array_equal(second, np.concatenate([chosen for _, chosen in first]))
    sampler.set_epoch(0)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, sampler, strict=True))


def test_one_alone_is_plain_shuffling() -> None:
    sampler = GroupSampler(np.arange(10) % 3, 4, seed=0, group_size=1)
    assert np.array_equal(sampler.order(), np.random.default_rng([0, 0]).permutation(10))


def test_proxy_anchor_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    options = RetrievalOptions(alpha=16.0, margin=0.2)
    loss = LOSSES["proxy_anchor"](options, 5, 8)
    x, y = F.normalize(torch.randn(6, 8), dim=1), torch.tensor([0, 0, 1, 3, 3, 3])
    cosine = x @ F.normalize(dict(loss.named_parameters())["proxies"], dim=1).T
    of_class = y[:, None] == torch.arange(5)
    near = torch.where(of_class, torch.exp(-16 * (cosine - 0.2)), 0.0).sum(0)
    far = torch.where(of_class, 0.0, torch.exp(16 * (cosine + 0.2))).sum(0)
    here = of_class.any(0)
    expected = torch.log1p(near)[here].mean() + torch.log1p(far).mean()
    assert loss(x, y).item() == pytest.approx(expected.item(), rel=1e-5)


def test_softmax_is_over_cosines() -> None:
    torch.manual_seed(0)
    loss = LOSSES["normalized_softmax"](RetrievalOptions(temperature=0.1), 5, 8)
    x, y = F.normalize(torch.randn(6, 8), dim=1), torch.tensor([0, 0, 1, 3, 3, 4])
    proxies = F.normalize(dict(loss.named_parameters())["W"], dim=0)
    expected = F.cross_entropy(x @ proxies / 0.1, y)
    assert loss(x, y).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["linear", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_scores_what_it_stores(tmp_path: Path, method: str) -> None:
    """The table, the classes, the vectors, the picture; from features and from pictures."""
    outcome = run_here(tmp_path, *QUICK, f"method={method}", "predictions=true", "task.width=32")
    assert outcome.record is not None
    happened = outcome.record.happened
    assert happened.last_epoch is not None
    values = happened.last_epoch.values
    assert list(values) == [*(f"recall_at_{k}" for k in FIRST), "map_at_r"]
    assert 45 < (values["recall_at_1"] or 0) < 99
    assert (happened.frozen_features is not None) == (method == "linear")
    assert happened.parameters is not None
    assert happened.parameters.head == 128 * 32 + 32

    table = parquet.read_table(outcome.directory / "predictions" / "embeddings.parquet")
    assert table.column_names == ["index", "image", "label", "embedding"]
    vectors = torch.tensor(np.stack(table["embedding"].to_numpy()))
    again = scores(find(vectors, torch.tensor(table["label"].to_numpy()), 8), FIRST)
    assert again == pytest.approx(values, abs=0.05)

    classes = json.loads((outcome.directory / "evaluation.json").read_text())["classes"]
    assert [one["images"] for one in classes] == [0] * 50 + [60] * 50
    assert classes[0]["recall_at_1"] is None
    mean = np.mean([one["recall_at_1"] for one in classes[50:]])
    assert mean == pytest.approx(values["recall_at_1"])

    shown = show(reopen(outcome.directory), pictures=3, out=tmp_path / "a.png")
    with Image.open(shown.picture) as drawn:
        assert drawn.width > 500
    found = [record for _, record in find_records([tmp_path]).records]
    rows = in_print(datasets(cells(*found)))
    assert rows[0]["R@1 %"] == f"{values['recall_at_1']:.2f}"
    assert rows[0]["MAP@R %"] == f"{values['map_at_r']:.2f}"


@pytest.mark.slow
def test_without_a_layer_of_its_own_nothing_of_a_frozen_backbone_is_trained(tmp_path: Path) -> None:
    outcome = run_here(tmp_path, *QUICK, "method=linear", "task.width=null")
    assert outcome.record is not None
    assert outcome.record.happened.parameters is not None
    assert outcome.record.happened.parameters.total == 0
    assert outcome.record.happened.last_epoch is not None
    frozen = outcome.record.happened.last_epoch.values["recall_at_1"]
    assert 45 < (frozen or 0) < 60


# ---- what is refused -----------------------------------------------------------------------------


def told(*overrides: str) -> str:
    return "\n".join(map(str, validation.problems(config_of(GLYPHS, *overrides))))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("head=batch_norm", "is no head for retrieval"),
        ("train.label_smoothing=0.1", "train.label_smoothing=0.1: has no effect"),
        ("task.loss=normalized_softmax task.margin=0.2", "has no effect: it is of task.loss=proxy"),
        ("task.temperature=0.1", "has no effect: it is of task.loss=normalized_softmax"),
        ("train.batch_size=30", "train.batch_size=32, or task.per_class=1"),
        ("method=gps", "is not offered: it chooses what it trains by a classifier's gradients"),
        ("data=demo/scenes_detection task=retrieval", "is a data set for detection"),
    ],
)
def test_what_does_not_fit_is_refused(typed: str, said: str) -> None:
    assert said in told(*typed.split())


def test_methods_that_replace_the_classifier_need_one() -> None:
    refusing = [n for n in ("lst", "synqt", "hst") if method_class(n)().not_dense]
    assert refusing
    for name in refusing:
        assert told(f"method={name}") == ""
        assert "without task.width there is no classifier" in told(
            f"method={name}", "task.width=null"
        )


def looked_at(labels: dict[str, list[int]], evaluated: str = "test") -> Inspection:
    splits = {
        name: ArraySplit(np.array(of_split), lambda: np.zeros((9, 8, 8, 3), np.uint8))
        for name, of_split in labels.items()
    }
    dataset = Dataset("mine", 9, "0", splits)
    config = replace(config_of(GLYPHS).data, name="mine")
    inspectors = TASKS.get("retrieval").inspectors()
    return inspect(dataset, config, inspectors, evaluated=evaluated)


SOUND = {"train": [0, 0, 1], "val": [2, 2, 3, 3], "trainval": [0, 0, 1, 2, 2, 3, 3]}


def test_classes_are_trained_on_or_scored() -> None:
    assert looked_at({**SOUND, "test": [4, 4, 5, 5]}).problems == []
    [problem] = looked_at({**SOUND, "test": [3, 3, 5, 5]}).problems
    assert "1 class is in trainval as well: 3" in str(problem)
    assert "task=classification" in str(problem)


def test_validation_has_classes_of_its_own_where_it_is_scored() -> None:
    test = {"test": [4, 4, 5, 5]}
    assert looked_at({**SOUND, **test}, evaluated="val").problems == []
    shared = {**SOUND, **test, "val": [0, 0, 3, 3]}
    assert looked_at(shared).problems == []
    [problem] = looked_at(shared, evaluated="val").problems
    assert "1 class is in train as well: 0" in str(problem)
    assert "protocol=final does not use val" in str(problem)


def test_pictures_with_nothing_to_find_are_told() -> None:
    found = looked_at({**SOUND, "test": [4, 4, 5]})
    assert found.problems == []
    assert "1 test picture is alone in its class and no query" in found.notices
    [problem] = looked_at({**SOUND, "test": [4, 5, 6]}).problems
    assert "there is nothing to find" in str(problem)


def test_a_data_set_for_classification_is_told_what_it_lacks(tmp_path: Path) -> None:
    config = config_of("data=demo/digits", "task=retrieval")
    found = inspected(config)
    assert "10 classes are in trainval as well" in str(found.problems[0])


def inspected(config: RunConfig) -> Any:
    return inspect(open_dataset(config.data), config.data, TASKS.get("retrieval").inspectors())
