"""The frame of cost cards, and the cells that they tell the cost of.

A card belongs to a cell if both have the same method with the same options, the same network, the
same dense head if any, and the same precision. Whatever else a card was measured with is its
setting, and all cards of a table share one setting, because no row could say which it has.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vpeft_bench.config.identity import measured
from vpeft_bench.errors import Problem
from vpeft_bench.formats import counted, option_text, short_options
from vpeft_bench.leaderboard.admitted import UNKNOWN, Admitted, once_each
from vpeft_bench.leaderboard.asked import subject, text_in
from vpeft_bench.leaderboard.column import Kind
from vpeft_bench.leaderboard.columns import cost_columns
from vpeft_bench.leaderboard.runs import digest
from vpeft_bench.records.cost_card import CardStatus, CostCard, Measured, Timing

SUBJECT = ("backbone", "network", "head_options", "precision", "method", "options")
"""What a card has in common with the runs whose cost it tells."""
_TOLD = ("cost.batch_size", "cost.image_size", "hardware.precision")
"""By other fields of a setting or of its subject."""
_CARD = "card_"
_SHOWN = (
    "train_step_ms_median",
    "train_step_images_per_second",
    "train_step_flops_per_image",
    "peak_allocated_bytes",
    "peak_resident_growth_bytes",
)
"""Numbers of a card that stand beside a metric."""
_Read = Callable[[Measured], float | None]
_WHOLE = {column.key for column in cost_columns() if column.kind is Kind.WHOLE}


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
        threads = counted(self.threads, "thread")
        return f"{self.device}, {threads}" if self.on_cpu else self.device

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


class Joined(NamedTuple):
    """Cells with their cards.

    Attributes:
        cells: the cells, in their order; with cards only if there is one setting.
        settings: the settings of the cards that belong to a cell, and how many each has.
    """

    cells: pd.DataFrame
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
            cards = counted(count, "card")
            if uses[flags[one]] == 1:
                lines.append(f"{flags[one]}: {cards}")
            else:
                lines.append(
                    f"--cards with only those of {one} {apart[one]}".rstrip() + f": {cards}"
                )
        return lines


def cards_of(found: Iterable[tuple[Path, CostCard]]) -> Admitted:
    """The frame of cards, each measurement once; those of a group come together.

    Its columns are those of the table of costs, what the card is about (``SUBJECT`` and
    ``input_size``), and its ``Setting`` under ``measured_with``.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[Problem] = []
    for path, card in sorted(found, key=lambda pair: pair[0]):
        try:
            rows.append(_row(path, card))
        except Exception as error:  # whatever a damaged card raises costs only itself
            left_out.append(Problem(str(path), f"left out: {error}"))
    if not rows:
        return Admitted(pd.DataFrame(), left_out, 0)
    frame = pd.DataFrame(rows)
    frame = frame.astype({name: "Int64" for name in frame if name in _WHOLE})
    kept, older, copies = once_each(frame, "card", ["card_id"], "card_id")
    order = ["backbone", "network", "input_size", "head_options", "precision", "measured_with"]
    kept = kept.sort_values([*order, "method", "options", "card_id"], ignore_index=True)
    return Admitted(kept, sorted([*left_out, *older], key=str), copies)


def told_apart(settings: Iterable[Setting]) -> dict[Setting, str]:
    """Of every setting the options that not all of them have, as text."""
    settings = sorted(set(settings))
    common = set[str]().union(*(one.options for one in settings))
    common.intersection_update(*(one.options for one in settings))
    return {
        one: " ".join(option for option in one.options if option not in common) for one in settings
    }


def chosen(cards: pd.DataFrame, device: str | None, batch_size: int | None) -> pd.DataFrame:
    """Those on a device of which ``device`` is the name or a part of it, with this batch size."""
    if cards.empty:
        return cards
    names = set(cards["device"])
    if device is not None:
        part = device.casefold()
        names = {device} & names or {name for name in names if part in name.casefold()}
    wanted = cards["device"].isin(names)
    return cards[wanted if batch_size is None else wanted & (cards["batch_size"] == batch_size)]


def join(cells: pd.DataFrame, cards: pd.DataFrame) -> Joined:
    """Give every cell its card; no cell gets one where the cards that fit have several settings."""
    blank = _without_cards(cells)
    if cells.empty or cards.empty:
        return Joined(blank, {})
    on = list(SUBJECT)
    subjects = cells.assign(options=cells["own_options"])[on].astype(str)
    fitting = cards[cards["input_size"] == ""].merge(subjects.drop_duplicates(), on=on)
    counts = Counter(fitting.loc[fitting["status"] == CardStatus.OK, "measured_with"])
    settings = {setting: counts[setting] for setting in sorted(counts)}
    if len(settings) != 1:
        return Joined(blank, settings)
    (setting,) = settings
    fitting = fitting[fitting["measured_with"] == setting]
    several = fitting.groupby(on)["card_id"].transform("size")
    beside = fitting[on].assign(
        **{f"{_CARD}{name}": fitting[name] for name in _SHOWN},
        # All cards of a table are of one device, which measures its memory in one way.
        card_peak=fitting["peak_allocated_bytes"].fillna(fitting["peak_resident_growth_bytes"]),
        card_device=setting.machine,
        card_batch_size=pd.array([setting.batch_size] * len(fitting), "Int64"),
        card_id=fitting["card_id"],
        card_remarks=fitting["label_list"],
        card_status=fitting["status"],
    )
    for name in beside.columns.drop(on):
        if name.startswith(_CARD) and name not in ("card_remarks", "card_status"):
            beside[name] = beside[name].where(several == 1)
    beside["fit"] = several
    found = subjects.merge(beside.drop_duplicates(on), on=on, how="left").set_index(cells.index)
    found["label_list"] = [
        _labels(*of)
        for of in zip(
            cells["label_list"],
            found["fit"],
            found["card_remarks"],
            found["card_status"],
            strict=True,
        )
    ]
    names = [name for name in map(str, blank) if name.startswith(_CARD)]
    return Joined(cells.assign(**{name: found[name] for name in ("label_list", *names)}), settings)


def _without_cards(cells: pd.DataFrame) -> pd.DataFrame:
    whole = pd.array([pd.NA] * len(cells), "Int64")
    names = {f"{_CARD}{name}": whole if name in _WHOLE else float("nan") for name in _SHOWN}
    texts: dict[str, Any] = dict.fromkeys(("card_device", "card_id"))
    return cells.assign(**names, card_peak=whole, card_batch_size=whole, **texts)


def _labels(
    labels: tuple[str, ...], fit: float, remarks: tuple[str, ...], status: str
) -> tuple[str, ...]:
    """What the runs say of themselves, and what is to be said of their card."""
    if pd.isna(fit):
        return labels
    if fit > 1:
        return tuple(sorted({*labels, f"{int(fit)} cards fit, none is shown"}))
    new = {f"card: {label}" for label in remarks if label not in labels}
    if status != CardStatus.OK:
        new.add(f"card: {status}")
    return tuple(sorted({*labels, *new}))


def _row(path: Path, card: CostCard) -> dict[str, Any]:
    """A card, by column; ValueError if it cannot be placed."""
    about, setting = subject(card), Setting.of(card)
    device, measured_ = card.where.device, card.measured
    return {
        "file": str(path),
        "content": digest(card),
        "measured_with": setting,
        **about,
        "input_size": " x ".join(map(str, card.asked["cost"].get("image_size") or ())),
        "resolution": _resolution(card),
        "card_id": card.card_id,
        "status": str(card.status),
        "error": _one_line(card.error),
        "batch_size": setting.batch_size,
        "setting": " ".join(setting.options),
        "device": setting.device,
        "device_kind": device.kind if device else "",
        "device_threads": device.threads if device else None,
        "device_driver": (device.driver or "") if device else "",
        "device_power_limit_watts": device.power_limit_watts if device else None,
        "device_busy": _one_line(device.busy if device else None),
        **dict.fromkeys(_NUMBERS),
        **({name: read(measured_) for name, read in _NUMBERS.items()} if measured_ else {}),
        "merge_refusal": _one_line(measured_.merge_refusal if measured_ else None),
        "energy_note": _one_line(measured_.energy_note if measured_ else None),
        "finished": pd.Timestamp(datetime.fromisoformat(card.where.finished)),
        "label_list": tuple(card.labels),
    }


def _resolution(card: CostCard) -> str:
    """Height and width of the input, where the card tells them."""
    if card.measured is not None:
        return f"{' x '.join(map(str, card.measured.image_size))} px"
    if size := card.asked["cost"].get("image_size"):
        return f"{' x '.join(map(str, size))} px"
    side = card.asked["backbone"].get("image_size")
    return f"{side} x {side} px" if side else "own resolution"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _timing(name: str, timing: Callable[[Measured], Timing | None]) -> dict[str, _Read]:
    """The numbers of one of a card's timings."""

    def read(number: Callable[[Timing], float]) -> _Read:
        def of_timing(card: Measured) -> float | None:
            found = timing(card)
            return None if found is None else number(found)

        return of_timing

    return {
        f"{name}_ms_median": read(lambda found: found.median),
        f"{name}_ms_q1": read(lambda found: found.low),
        f"{name}_ms_q3": read(lambda found: found.high),
        # A difference of two numbers of the card; digits below a nanosecond are its rounding error.
        f"{name}_ms_iqr": read(lambda found: round(found.interquartile_range, 6)),
        f"{name}_images_per_second": read(lambda found: found.images_per_second),
    }


_NUMBERS: dict[str, _Read] = {
    "parameters_method": lambda card: card.parameters.method,
    "parameters_head": lambda card: card.parameters.head,
    "parameters_total": lambda card: card.parameters.total,
    "parameters_model": lambda card: card.parameters.model,
    "stored_delta_bytes": lambda card: card.stored_bytes,
    "forward_flops_per_image": lambda card: card.flops.forward,
    "train_step_flops_per_image": lambda card: card.flops.training_step,
    "plain_forward_flops_per_image": lambda card: card.flops.plain,
    "closed_form_forward_flops_per_image": lambda card: card.flops.closed_form,
    **_timing("train_step", lambda card: card.training_step),
    **_timing("inference", lambda card: card.inference),
    **_timing("merged_inference", lambda card: card.inference_merged),
    "peak_allocated_bytes": lambda card: card.memory.allocated,
    "peak_reserved_bytes": lambda card: card.memory.reserved,
    "peak_resident_growth_bytes": lambda card: card.memory.resident_growth,
    "weights_bytes": lambda card: card.memory.weights,
    "gradients_bytes": lambda card: card.memory.gradients,
    "optimizer_state_bytes": lambda card: card.memory.optimizer_state,
    "activations_bytes": lambda card: card.memory.activations,
    "saved_for_backward_bytes": lambda card: card.memory.saved_for_backward,
    "train_joules_per_image": lambda card: card.training_joules_per_image,
}
"""Every number of a card, by its column."""
