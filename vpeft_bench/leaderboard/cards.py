"""Cost cards and the cells that they tell the cost of.

A card belongs to a cell if both have the same method with the same options, the same network, the
same dense head if any, and the same precision. Whatever else a card was measured with is its
setting, and all cards of a table share one setting, because no row could say which it has.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vpeft_bench.config.identity import measured, scientific
from vpeft_bench.errors import Problem
from vpeft_bench.formats import option_text, short_options
from vpeft_bench.leaderboard.cells import UNKNOWN, Cell, method_in, text_in
from vpeft_bench.leaderboard.once import once_each
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.run_record import RunRecord

_NETWORK = ("model", "image_size", "model_args")
_TOLD = ("cost.batch_size", "cost.image_size", "hardware.precision")
"""By other fields of a setting or of its subject."""


@dataclass(frozen=True, order=True)
class Subject:
    """What a card has in common with the runs whose cost it tells.

    Attributes:
        backbone: its name.
        network: what decides its cost: model, image size and model arguments; not the weights.
        input_size: height and width if they are not the network's own, which is never so in a run.
        head: its options; empty for the backbone's own classifier.
        precision: arithmetic of the training.
        method: name of the method.
        options: its options as text.
    """

    backbone: str
    network: str
    input_size: str
    head: str
    precision: str
    method: str
    options: str

    @classmethod
    def of(cls, made: RunRecord | CostCard) -> Subject:
        """The subject of a run or a card; ValueError if it has none."""
        method, options = method_in(made)
        asked = made.asked
        backbone, head = text_in(asked, "backbone", "name"), scientific(asked).get("head")
        return cls(
            backbone=backbone,
            network=option_text({name: asked["backbone"].get(name) or None for name in _NETWORK}),
            input_size="",
            head=option_text(head) if isinstance(head, dict) else "",
            precision=text_in(asked, "hardware", "precision"),
            method=method,
            options=options,
        )


@dataclass(frozen=True, order=True)
class Setting:
    """What all cards of a table must share.

    Attributes:
        device: name of the accelerator or processor.
        threads: of a processor; 0 for an accelerator.
        batch_size: images per training step.
        options: everything else that was asked of the measurement, each as ``name=value``.
    """

    device: str
    threads: int
    batch_size: int
    options: tuple[str, ...]

    @classmethod
    def of(cls, card: CostCard) -> Setting:
        """The setting of a card; ValueError if it has none."""
        batch_size = text_in(card.asked, "cost", "batch_size")
        if not batch_size.isdecimal():
            raise ValueError("asked.cost.batch_size is no whole number")
        options = sorted(
            option_text({f"{group}.{name}": value})
            for group in ("cost", "hardware")
            for name, value in measured(card.asked)[group].items()
            if f"{group}.{name}" not in _TOLD
        )
        device = card.where.device
        return cls(
            device=device.name if device else UNKNOWN,
            threads=device.threads if device and device.kind == "cpu" else 0,
            batch_size=int(batch_size),
            options=tuple(options),
        )

    @property
    def on_cpu(self) -> bool:
        """Whether it is a processor."""
        return self.threads > 0

    @property
    def machine(self) -> str:
        """The device in words."""
        plural = "s" if self.threads > 1 else ""
        return f"{self.device}, {self.threads} thread{plural}" if self.on_cpu else self.device

    @property
    def switches(self) -> str:
        """The options of the hardware, for a reader: without those that are null."""
        prefix = "hardware."
        names = (
            option.removeprefix(prefix) for option in self.options if option.startswith(prefix)
        )
        return short_options(" ".join(names))

    @property
    def peak(self) -> str:
        """What the peak memory of a card is."""
        return "growth of resident memory" if self.on_cpu else "allocated memory"

    def __str__(self) -> str:
        return f"{self.machine}, batch {self.batch_size}"


class Measurement(NamedTuple):
    """A card, with what it is about and how it came about."""

    subject: Subject
    setting: Setting
    card: CostCard

    @property
    def resolution(self) -> str:
        """Height and width of the input, where a card tells them."""
        if self.card.measured is not None:
            return f"{' x '.join(map(str, self.card.measured.image_size))} px"
        if self.subject.input_size:
            return f"{self.subject.input_size} px"
        side = self.card.asked["backbone"].get("image_size")
        return f"{side} x {side} px" if side else "own resolution"

    @property
    def group(self) -> tuple[Subject, Setting]:
        """What measurements that are compared have in common: all but the method."""
        return dataclasses.replace(self.subject, method="", options=""), self.setting

    @classmethod
    def of(cls, card: CostCard) -> Measurement:
        """A card sorted in; ValueError if that cannot be."""
        subject, setting = Subject.of(card), Setting.of(card)
        input_size = " x ".join(map(str, card.asked["cost"].get("image_size") or ()))
        return cls(dataclasses.replace(subject, input_size=input_size), setting, card)


class Measurements(NamedTuple):
    """Cards, each once.

    Attributes:
        measurements: those of a group together, in a fixed order whatever order the cards came in.
        left_out: the cards that are not among them, and why.
        copies: number of cards left out because another holds exactly the same.
    """

    measurements: list[Measurement]
    left_out: list[Problem]
    copies: int


class Joined(NamedTuple):
    """Cells with their cards.

    Attributes:
        cells: the cells, in their order; with cards only if there is one setting.
        settings: the settings of the cards that belong to a cell, and how many each has.
    """

    cells: list[Cell]
    settings: dict[Setting, int]

    @property
    def setting(self) -> Setting | None:
        """The setting of the cards that were joined; None if none were."""
        return next(iter(self.settings)) if len(self.settings) == 1 else None

    @property
    def choices(self) -> list[str]:
        """What to type for each of several settings."""
        if len(self.settings) < 2:
            return []
        flags = {
            one: f"--device {shlex.quote(one.device)} --batch {one.batch_size}"
            for one in self.settings
        }
        apart = told_apart(self.settings)
        uses = Counter(flags.values())
        lines = []
        for one, count in self.settings.items():
            cards = f"{count} card{'s' if count > 1 else ''}"
            if uses[flags[one]] == 1:
                lines.append(f"{flags[one]}: {cards}")
            else:
                lines.append(
                    f"--cards with only those of {one} {apart[one]}".rstrip() + f": {cards}"
                )
        return lines


def collect_cards(found: Iterable[tuple[Path, CostCard]]) -> Measurements:
    """Sort cards, each measurement once."""
    sound: list[tuple[Path, CostCard]] = []
    left_out: list[Problem] = []
    for path, card in found:
        try:
            Measurement.of(card)
        except Exception as error:  # whatever a damaged card raises costs only itself
            left_out.append(Problem(str(path), f"left out: {error}"))
        else:
            sound.append((path, card))
    kept, older, copies = once_each(sound, "card", _card_id, _card_id)
    measurements = [Measurement.of(card) for _, card in kept]
    measurements.sort(key=lambda one: (one.group, one.subject, one.card.card_id))
    return Measurements(measurements, sorted([*left_out, *older], key=str), copies)


def _card_id(card: CostCard) -> str:
    return card.card_id


def told_apart(settings: Iterable[Setting]) -> dict[Setting, str]:
    """Of every setting the options that not all of them have, as text."""
    settings = sorted(set(settings))
    common = set[str]().union(*(one.options for one in settings))
    common.intersection_update(*(one.options for one in settings))
    return {
        one: " ".join(option for option in one.options if option not in common) for one in settings
    }


def chosen(
    measurements: Sequence[Measurement], device: str | None, batch_size: int | None
) -> list[Measurement]:
    """Those on a device of which ``device`` is the name or a part of it, with this batch size."""
    names = {one.setting.device for one in measurements}
    if device is not None:
        part = device.casefold()
        names = {device} & names or {name for name in names if part in name.casefold()}
    return [
        one
        for one in measurements
        if one.setting.device in names and batch_size in (None, one.setting.batch_size)
    ]


def join(cells: Iterable[Cell], measurements: Iterable[Measurement]) -> Joined:
    """Give every cell its card; no cell gets one where the cards that fit have several settings."""
    cells = list(cells)
    subjects = [Subject.of(cell.records[0]) for cell in cells]
    fitting: dict[Subject, list[Measurement]] = defaultdict(list)
    for one in measurements:
        fitting[one.subject].append(one)
    matches = [one for subject in sorted(set(subjects)) for one in fitting[subject]]
    counts = Counter(one.setting for one in matches if one.card.status is CardStatus.OK)
    settings = {setting: counts[setting] for setting in sorted(counts)}
    if len(settings) != 1:
        return Joined(cells, settings)
    (setting,) = settings
    with_cards = [
        _with_card(cell, [one.card for one in fitting[subject] if one.setting == setting])
        for cell, subject in zip(cells, subjects, strict=True)
    ]
    return Joined(with_cards, settings)


def _with_card(cell: Cell, cards: Sequence[CostCard]) -> Cell:
    if not cards:
        return cell
    if len(cards) > 1:
        return dataclasses.replace(cell, card_remarks=(f"{len(cards)} cards fit, none is shown",))
    (card,) = cards
    remarks = [f"card: {label}" for label in card.labels if label not in cell.labels]
    if card.status is not CardStatus.OK:
        remarks.append(f"card: {card.status}")
    return dataclasses.replace(cell, card=card, card_remarks=tuple(remarks))
