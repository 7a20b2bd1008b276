"""How long runs will take, from runs that are finished and from cost cards."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from vpeft_bench.config.identity import measured
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.cost.request import request_of
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.run_record import RunRecord, Status

SAME, OTHER_DATA, CARDS = "finished runs", "finished runs on other data", "cost cards"


@dataclass(frozen=True)
class Estimate:
    """How long a run will take.

    Attributes:
        seconds: on the device of its source.
        source: what it is made of.
        devices: the names of the devices there.
    """

    seconds: float
    source: str
    devices: frozenset[str]


@dataclass
class _Runs:
    """What finished runs took, one number each.

    Attributes:
        once: seconds before training.
        epoch: seconds of an epoch and its evaluation.
        rates: training images per second.
        devices: of them.
    """

    once: list[float] = field(default_factory=list)
    epoch: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)


class Estimates:
    """What is known of how long things take.

    Args:
        records: of finished runs.
        cards: of measurements.
    """

    def __init__(self, records: Iterable[RunRecord], cards: Iterable[CostCard]) -> None:
        self._same: dict[Hashable, _Runs] = defaultdict(_Runs)
        self._other: dict[Hashable, _Runs] = defaultdict(_Runs)
        self._cards: dict[str, list[CostCard]] = defaultdict(list)
        for record in records:
            if record.outcome == Status.OK and record.happened.seconds.train is not None:
                self._add(record)
        for card in cards:
            if card.status is CardStatus.OK:
                self._cards[str(card.asked["method"]["name"])].append(card)

    def _add(self, record: RunRecord) -> None:
        asked, happened, device = record.asked, record.happened, record.where.device
        seconds = happened.seconds
        before = (seconds.data, seconds.setup, seconds.selection, seconds.features)
        method, backbone = asked["method"]["name"], asked["backbone"]["name"]
        kind = (method, backbone, asked["hardware"]["precision"])
        same = (*kind, asked["data"]["name"], asked["protocol"]["name"])
        for runs in (self._same[same], self._other[kind]):
            runs.once.append(sum(part or 0.0 for part in before))
            spent = (seconds.train or 0.0) + (seconds.eval or 0.0)
            runs.epoch.append(spent / asked["train"]["epochs"])
            if happened.train_images_per_second:
                runs.rates.append(happened.train_images_per_second)
            runs.devices |= {device} if device else set()

    def of(self, config: RunConfig, images: int | None) -> Estimate | None:
        """For a run; None where nothing like it is known.

        Args:
            config: asks for it.
            images: that it trains on, of an epoch; None where not known.
        """
        epochs = config.train.epochs
        kind = (
            config.method["name"],
            config.backbone.name,
            config.hardware.precision.value,
        )
        same = (*kind, config.data.name, config.protocol.name.value)
        if same in self._same:
            runs = self._same[same]
            seconds = median(runs.once) + epochs * median(runs.epoch)
            return Estimate(seconds, SAME, frozenset(runs.devices))
        if images is None:
            return None
        if kind in self._other and (runs := self._other[kind]).rates:
            seconds = median(runs.once) + epochs * images / median(runs.rates)
            return Estimate(seconds, OTHER_DATA, frozenset(runs.devices))
        if fitting := self._fitting(config):
            steps = epochs * math.ceil(images / config.train.batch_size)
            times = [c.measured.training_step.median for c in fitting if c.measured is not None]
            devices = {c.where.device.name for c in fitting if c.where.device is not None}
            return Estimate(steps * median(times) / 1000, CARDS, frozenset(devices))
        return None

    def _fitting(self, config: RunConfig) -> list[CostCard]:
        """The cards of the run's method, backbone, hardware and batch."""
        cards = self._cards[str(config.method["name"])]
        if not cards:
            return []
        request = request_of(config)
        cost = replace(request.cost, batch_size=config.train.batch_size)
        wanted = _compared(replace(request, cost=cost).asked(), request.uncounted)
        return [card for card in cards if _compared(card.asked, card.uncounted) == wanted]


def _compared(asked: dict[str, Any], uncounted: list[str]) -> tuple[Any, ...]:
    """What decides how long a step takes, but for the device."""
    kept = measured(asked, uncounted)
    size = asked["cost"].get("image_size")
    groups = (kept.get(name) for name in ("method", "backbone", "hardware"))
    return (*groups, asked["cost"]["batch_size"], size)
