"""From records to cells: the runs of one configuration on one data set, over seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeVar

from vpeft_bench.config.identity import counted
from vpeft_bench.errors import Problem
from vpeft_bench.formats import option_text
from vpeft_bench.leaderboard.once import once_each
from vpeft_bench.leaderboard.verify import run_name, verified
from vpeft_bench.metrics.names import METRICS
from vpeft_bench.records.cost_card import CostCard
from vpeft_bench.records.run_record import Metrics, RunRecord, Split, Status, Weights, WeightsLabel

UNKNOWN = "unknown"
PROTOCOL_SPLIT = {"select": Split.VAL, "final": Split.TEST}
"""Which pictures a protocol scores."""

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Entry:
    """What a leaderboard compares: everything that must be equal within a row.

    Attributes:
        protocol: how hyper-parameters were chosen and what is scored.
        variant: name of a variant; empty for runs that were of none.
        method: name of the method.
        options: its options as text, different for different options; empty for a variant, whose
            options may differ between data sets.
        backbone: name of the backbone.
        weights: "pretrained", "random", "demo" or "unknown".
        weights_fingerprint: hash of the weights; empty for random ones, which differ by seed.
        normalization: name of the normalisation asked for.
        precision: arithmetic of the training.
    """

    protocol: str
    variant: str
    method: str
    options: str
    backbone: str
    weights: str
    weights_fingerprint: str
    normalization: str
    precision: str


@dataclass(frozen=True)
class Spread:
    """Mean and variation over seeds.

    Attributes:
        n: number of values.
        mean: their mean; None if there are none, like the next two.
        low: the smallest.
        high: the largest.
        std: sample standard deviation, which divides by n - 1; None for fewer than two values.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values, in whatever order."""
        return cls(
            n=len(values),
            mean=fmean(values) if values else None,
            low=min(values, default=None),
            high=max(values, default=None),
            std=stdev(values) if len(values) > 1 else None,
        )


@dataclass(frozen=True)
class Cell:
    """All runs of one configuration on one data set.

    Attributes:
        entry: the row it belongs to.
        benchmark: benchmark of the data set; "custom" for a user's own.
        data: name of the data set, as the records have it.
        config_hash: the configuration.
        records: its runs, by seed.
        card: the cost card that was joined to it, see ``cards``.
        card_remarks: what is to be said of the card, or of there being several.
    """

    entry: Entry
    benchmark: str
    data: str
    config_hash: str
    records: tuple[RunRecord, ...]
    card: CostCard | None = None
    card_remarks: tuple[str, ...] = ()

    @property
    def finished(self) -> list[RunRecord]:
        """The runs that ended well, by seed."""
        return [record for record in self.records if record.outcome == Status.OK]

    @property
    def unfinished(self) -> list[RunRecord]:
        """The other runs, by seed."""
        return [record for record in self.records if record.outcome != Status.OK]

    @property
    def diverged(self) -> list[RunRecord]:
        """The runs whose numbers were not finite, by seed.

        Where there is any, the cell has no score: the other seeds alone would be a choice.
        """
        return [record for record in self.records if record.diverged]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs that ended well."""
        return [record.asked["seed"] for record in self.finished]

    @property
    def metrics(self) -> list[Metrics]:
        """What the last epochs of the runs that ended well reached, by seed."""
        return self.each(lambda run: run.happened.last_epoch)

    @property
    def head(self) -> str:
        """Name of the head; empty for the backbone's own classifier."""
        head = self.records[0].asked.get("head")
        return str(head["name"]) if isinstance(head, dict) and "name" in head else ""

    @property
    def options(self) -> str:
        """Options of the method, as text."""
        return method_in(self.records[0])[1]

    @property
    def name(self) -> str:
        """The variant's name, or what its runs are called without one; empty if unknown."""
        return self.entry.variant or self.records[0].variant

    @property
    def chosen(self) -> str:
        """How the settings of a variant were chosen; else empty."""
        variant = self.records[0].asked.get("variant")
        return str(variant.get("chosen") or "") if isinstance(variant, dict) else ""

    @property
    def headline(self) -> str | None:
        """The metric that the data set is ranked by; None where no run ended well."""
        return self.metrics[0].headline if self.metrics else None

    @property
    def score(self) -> Spread:
        """The headline metric at the last epoch over the runs that ended well, percent."""
        values = [metrics.value for metrics in self.metrics]
        known = [value for value in values if value is not None]
        return Spread.of(known if len(known) == len(values) and not self.diverged else [])

    @property
    def gain(self) -> float | None:
        """The mean of the headline metric so that more is better."""
        mean, headline = self.score.mean, self.headline
        return None if mean is None or headline is None else METRICS.get(headline).gain(mean)

    def value(self, metric: str) -> float | None:
        """Mean of a metric at the last epoch, percent.

        None unless every finished run has it, and where a run diverged.
        """
        values = [metrics.values.get(metric) for metrics in self.metrics]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values) or self.diverged:
            return None
        return fmean(known)

    @property
    def data_versions(self) -> list[str]:
        """Fingerprints of the data that the runs which ended well have seen."""
        return sorted(set(self.each(lambda run: run.where.data_fingerprint)))

    @property
    def image_formats(self) -> list[str]:
        """Formats of the pictures that the runs which ended well have seen."""
        data = self.each(lambda run: run.where.data)
        return sorted({facts.image_format for facts in data if facts.image_format})

    @property
    def labels(self) -> list[str]:
        """Notices that any of the runs carries, and what is said of the card."""
        notices = {label for record in self.records for label in record.labels}
        return sorted(notices.union(self.card_remarks))

    def each(self, measure: Callable[[RunRecord], T | None]) -> list[T]:
        """A measurement of every run that ended well; nothing at all if one of them lacks it."""
        values = [measure(record) for record in self.finished]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else []


class Collection(NamedTuple):
    """Records sorted into cells.

    Attributes:
        cells: in a fixed order, whatever order the records came in.
        left_out: the records that are in no cell, and why.
        copies: number of records left out because another holds exactly the same.
    """

    cells: list[Cell]
    left_out: list[Problem]
    copies: int


def collect(found: Iterable[tuple[Path, RunRecord]]) -> Collection:
    """Sort records into cells, each run once."""
    shown, left_out = verified(found)
    sound = []  # before the newest is chosen, which must not be one that cannot be shown
    for path, record in shown:
        try:
            _entry(record, {})
            _place(record)
        except Exception as error:  # whatever a damaged record raises costs only itself
            left_out.append(Problem(str(path), f"left out: {error}"))
        else:
            sound.append((path, record))
    kept, older, copies = once_each(sound, "record of run", run_name, lambda record: record.run_id)
    left_out += older
    weights = _weights_by_backbone(record for _, record in kept)
    cells: dict[tuple[Entry, str, str, str], list[RunRecord]] = defaultdict(list)
    for _, record in kept:
        cells[_entry(record, weights), *_place(record), record.config_hash].append(record)
    return Collection(
        cells=[
            Cell(*key, tuple(sorted(cells[key], key=lambda run: (run.asked["seed"], run.run_id))))
            for key in sorted(cells)
        ],
        left_out=sorted(left_out, key=str),
        copies=copies,
    )


def _place(record: RunRecord) -> tuple[str, str]:
    """Benchmark and data set; ValueError if they, or a seed that can be one, are not there."""
    seed = record.asked.get("seed")
    if type(seed) is not int or seed < 0:
        raise ValueError("asked.seed is no whole number from 0")
    return text_in(record.asked, "data", "benchmark"), text_in(record.asked, "data", "name")


def _weights_by_backbone(records: Iterable[RunRecord]) -> dict[str, set[tuple[str, str]]]:
    known: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for record in records:
        if record.where.weights is not None:
            known[_backbone(record)].add(_identity(record.where.weights))
    return known


def _backbone(record: RunRecord) -> str:
    return json.dumps(record.asked.get("backbone"), sort_keys=True)


def _identity(weights: Weights) -> tuple[str, str]:
    # Random weights are drawn anew for every seed; their hash would tear the seeds apart.
    random = weights.label is WeightsLabel.RANDOM
    return weights.label.value, "" if random else weights.fingerprint or ""


def _entry(record: RunRecord, weights: dict[str, set[tuple[str, str]]]) -> Entry:
    protocol = text_in(record.asked, "protocol", "name")
    if protocol not in PROTOCOL_SPLIT:
        known = ", ".join(sorted(PROTOCOL_SPLIT))
        raise ValueError(f"no table is defined for protocol {protocol!r}; there are: {known}")
    metrics = record.happened.last_epoch
    if record.status is Status.OK and metrics and metrics.split is not PROTOCOL_SPLIT[protocol]:
        raise ValueError(
            f"protocol {protocol!r} scores {PROTOCOL_SPLIT[protocol]} images, "
            f"yet the last epoch was scored on {metrics.split} images"
        )
    # A run that died before it loaded its weights belongs to the runs that asked for the same.
    identities = weights.get(_backbone(record), set())
    if record.where.weights is not None:
        identities = {_identity(record.where.weights)}
    label, fingerprint = next(iter(identities)) if len(identities) == 1 else (UNKNOWN, "")
    method, options = method_in(record)
    variant = variant_in(record.asked)
    return Entry(
        protocol=protocol,
        variant=variant,
        method=method,
        options="" if variant else options,
        backbone=text_in(record.asked, "backbone", "name"),
        weights=label,
        weights_fingerprint=fingerprint,
        normalization=text_in(record.asked, "data", "normalization"),
        precision=text_in(record.asked, "hardware", "precision"),
    )


def variant_in(asked: dict[str, Any]) -> str:
    """Name of the variant; empty where there is none."""
    variant = asked.get("variant")
    return str(variant.get("name") or "") if isinstance(variant, dict) else ""


def method_in(made: RunRecord | CostCard) -> tuple[str, str]:
    """Name of the method and the options that count, as text; ValueError if it has no name."""
    name = text_in(made.asked, "method", "name")
    options = counted(made.asked["method"], made.uncounted)
    if made.method_version != 1:
        options["version"] = made.method_version
    return name, option_text({key: options[key] for key in options if key != "name"})


def text_in(asked: dict[str, Any], group: str, key: str) -> str:
    """``asked[group][key]`` as text; ValueError if the configuration has no such key."""
    section = asked.get(group)
    if not isinstance(section, dict) or section.get(key) is None:
        raise ValueError(f"asked.{group}.{key} is missing")
    value = section[key]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
