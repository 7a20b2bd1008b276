"""What methods cost, from the cost cards alone; and a card's columns beside a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vpeft_bench.formats import GIGA, KIB, MIB, Row, quantity, short_options, shortest
from vpeft_bench.leaderboard.cards import Measurement, Setting, told_apart
from vpeft_bench.records.cost_card import CostCard, Measured, Timing

_Read = Callable[[Measured], float | None]


def _timing(name: str, of: Callable[[Measured], Timing | None]) -> dict[str, _Read]:
    """The numbers of one of a card's timings."""

    def read(number: Callable[[Timing], float]) -> _Read:
        def of_timing(measured: Measured) -> float | None:
            timing = of(measured)
            return None if timing is None else number(timing)

        return of_timing

    return {
        f"{name}_ms_median": read(lambda timing: timing.median),
        f"{name}_ms_q1": read(lambda timing: timing.low),
        f"{name}_ms_q3": read(lambda timing: timing.high),
        # A difference of two numbers of the card; digits below a nanosecond are its rounding error.
        f"{name}_ms_iqr": read(lambda timing: round(timing.interquartile_range, 6)),
        f"{name}_images_per_second": read(lambda timing: timing.images_per_second),
    }


_NUMBERS: dict[str, _Read] = {
    "parameters_method": lambda measured: measured.parameters.method,
    "parameters_head": lambda measured: measured.parameters.head,
    "parameters_total": lambda measured: measured.parameters.total,
    "parameters_model": lambda measured: measured.parameters.model,
    "stored_delta_bytes": lambda measured: measured.stored_bytes,
    "forward_flops_per_image": lambda measured: measured.flops.forward,
    "train_step_flops_per_image": lambda measured: measured.flops.training_step,
    "plain_forward_flops_per_image": lambda measured: measured.flops.plain,
    "closed_form_forward_flops_per_image": lambda measured: measured.flops.closed_form,
    **_timing("train_step", lambda measured: measured.training_step),
    **_timing("inference", lambda measured: measured.inference),
    **_timing("merged_inference", lambda measured: measured.inference_merged),
    "peak_allocated_bytes": lambda measured: measured.memory.allocated,
    "peak_reserved_bytes": lambda measured: measured.memory.reserved,
    "peak_resident_growth_bytes": lambda measured: measured.memory.resident_growth,
    "weights_bytes": lambda measured: measured.memory.weights,
    "gradients_bytes": lambda measured: measured.memory.gradients,
    "optimizer_state_bytes": lambda measured: measured.memory.optimizer_state,
    "activations_bytes": lambda measured: measured.memory.activations,
    "saved_for_backward_bytes": lambda measured: measured.memory.saved_for_backward,
    "train_joules_per_image": lambda measured: measured.training_joules_per_image,
}
"""Every number of a card, by its column in a file."""


def cost_csv_rows(measurements: Sequence[Measurement]) -> list[Row]:
    """Every card with all that is known of it, for a file; numbers are as in the card."""
    return [_csv_row(measurement) for measurement in measurements]


def cost_rows(measurements: Sequence[Measurement]) -> list[Row]:
    """Every card for a reader: rounded, short names, units in the column names."""
    apart = told_apart(one.setting for one in measurements)
    return [_row(measurement, apart[measurement.setting]) for measurement in measurements]


def card_csv_columns(card: CostCard | None) -> Row:
    """A card's columns beside a metric, for a file; empty without a card."""
    numbers, setting = _numbers(card), Setting.of(card) if card else None
    shown = (
        "train_step_ms_median",
        "train_step_images_per_second",
        "train_step_flops_per_image",
        "peak_allocated_bytes",
        "peak_resident_growth_bytes",
    )
    return {
        **{f"card_{name}": shortest(numbers[name]) for name in shown},
        "card_device": setting.machine if setting else "",
        "card_batch_size": str(setting.batch_size) if setting else "",
        "card_id": card.card_id if card else "",
    }


def card_columns(card: CostCard | None) -> Row:
    """A card's columns beside a metric, for a reader."""
    numbers = _numbers(card)
    # All cards of a table are of one device, which measures its memory in one way.
    peak = numbers["peak_allocated_bytes"] or numbers["peak_resident_growth_bytes"]
    return {
        "card step ms": quantity(numbers["train_step_ms_median"]),
        "card images/s": quantity(numbers["train_step_images_per_second"]),
        "card GFLOPs": quantity(numbers["train_step_flops_per_image"], GIGA),
        "card peak MiB": quantity(peak, MIB),
    }


def _numbers(card: CostCard | None) -> dict[str, float | None]:
    measured = card.measured if card else None
    return {name: read(measured) if measured else None for name, read in _NUMBERS.items()}


def _csv_row(measurement: Measurement) -> Row:
    subject, setting, card = measurement
    device, measured = card.where.device, card.measured
    return {
        "card_id": card.card_id,
        "status": str(card.status),
        "error": _one_line(card.error),
        "method": subject.method,
        "options": subject.options,
        "backbone": subject.backbone,
        "network": subject.network,
        "resolution": measurement.resolution,
        "precision": subject.precision,
        "batch_size": str(setting.batch_size),
        "setting": " ".join(setting.options),
        "device": setting.device,
        "device_kind": device.kind if device else "",
        "device_threads": str(device.threads) if device else "",
        "device_driver": (device.driver or "") if device else "",
        "device_power_limit_watts": shortest(device.power_limit_watts if device else None),
        "device_busy": _one_line(device.busy if device else None),
        **{name: shortest(number) for name, number in _numbers(card).items()},
        "merge_refusal": _one_line(measured.merge_refusal if measured else None),
        "energy_note": _one_line(measured.energy_note if measured else None),
        "finished": card.where.finished,
        "labels": ", ".join(card.labels),
    }


def _row(measurement: Measurement, apart: str) -> Row:
    subject, setting, card = measurement
    numbers = _numbers(card)

    def shown(name: str, unit: int = 1) -> str:
        return quantity(numbers[name], unit)

    def peak(name: str, way: bool) -> str:
        """A device measures its peak in one way, and leaves the columns of the other empty."""
        return shown(name, MIB) if way else ""

    return {
        "method": subject.method,
        "options": short_options(subject.options),
        "backbone": subject.backbone,
        "resolution": measurement.resolution,
        "precision": subject.precision,
        "device": setting.machine,
        "batch": str(setting.batch_size),
        "hardware": setting.switches,
        "setting": apart,
        "status": str(card.status),
        "params": shown("parameters_method"),
        "head params": shown("parameters_head"),
        "all params": shown("parameters_total"),
        "stored KiB": shown("stored_delta_bytes", KIB),
        "GFLOPs fwd": shown("forward_flops_per_image", GIGA),
        "GFLOPs step": shown("train_step_flops_per_image", GIGA),
        "step ms": shown("train_step_ms_median"),
        "IQR ms": shown("train_step_ms_iqr"),
        "images/s": shown("train_step_images_per_second"),
        "infer images/s": shown("inference_images_per_second"),
        "merged images/s": shown("merged_inference_images_per_second"),
        "allocated MiB": peak("peak_allocated_bytes", not setting.on_cpu),
        "reserved MiB": peak("peak_reserved_bytes", not setting.on_cpu),
        "resident MiB": peak("peak_resident_growth_bytes", setting.on_cpu),
        "weights MiB": shown("weights_bytes", MIB),
        "gradients MiB": shown("gradients_bytes", MIB),
        "optimizer MiB": shown("optimizer_state_bytes", MIB),
        "activations MiB": shown("activations_bytes", MIB),
        "saved MiB": shown("saved_for_backward_bytes", MIB),
        "J/image": shown("train_joules_per_image"),
        "notes": ", ".join(card.labels),
        "error": _one_line(card.error),
    }


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
