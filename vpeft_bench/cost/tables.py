"""Cards for the terminal: one in full, or one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vpeft_bench.formats import GIGA, MIB, MISSING, option_text, quantity
from vpeft_bench.records.cost_card import CostCard, Measured, Memory, Timing

COLOURS = {
    "measured": "green",
    "kept": "cyan",
    "unsupported": "yellow",
    "busy": "yellow",
}


def card_table(card: CostCard) -> Table:
    """One card that is ok, as a two-column table; what was not measured says why."""
    measured, device = card.measured, card.where.device
    assert measured is not None
    assert device is not None
    asked = card.asked
    table = Table(title=" · ".join(["cost", *card.labels]), title_justify="left", show_header=False)
    table.add_column("quantity", style="bold")
    table.add_column("value")
    options = option_text({k: v for k, v in asked["method"].items() if k != "name"})
    parameters, flops, memory = measured.parameters, measured.flops, measured.memory
    batch_size = asked["cost"]["batch_size"]
    rows = {
        "backbone": asked["backbone"]["name"],
        "method": asked["method"]["name"] + (f" ({options})" if options else ""),
        "device": f"{device.name}, {asked['hardware']['precision']}"
        + (f", threads: {device.threads}" if device.kind == "cpu" else ""),
        "trainable parameters": (
            f"{parameters.method:,} method + {parameters.head:,} head = {parameters.total:,} total"
        ),
        "stored bytes": f"{measured.stored_bytes:,}",
        "operations of an image": (
            f"forward {_giga(flops.forward)}, {flops.forward / flops.plain:.3f} of the plain "
            f"backbone; training step {_giga(flops.training_step)}, "
            f"{flops.training_step / flops.forward:.2f} forward passes"
        ),
        "training step": f"{_time(measured.training_step)}, {batch_size} images",
        "inference": f"{_time(measured.inference)}, {asked['cost']['inference_batch_size']} images",
        "inference, merged": (
            f"null: {measured.merge_refusal}"
            if measured.inference_merged is None
            else _time(measured.inference_merged)
        ),
        "peak memory, training": _memory(memory),
        "saved for backward": f"{quantity(memory.saved_for_backward, MIB)} MiB",
        "energy, training": (
            f"null: {measured.energy_note}"
            if measured.training_joules_per_image is None
            else f"{measured.training_joules_per_image:.3g} J per image"
        ),
    }
    if device.busy is not None:
        rows["device when it began"] = device.busy
    for name, value in rows.items():
        table.add_row(name, value)
    return table


class Row(NamedTuple):
    """A measurement of a sweep: its overrides, what became of it, why, and its card if any."""

    overrides: list[str]
    result: str
    why: str
    card: CostCard | None


def sweep_table(rows: Sequence[Row]) -> Group:
    """One row per measurement, and what there is to say of it below.

    Overrides that all share stand in the title. The table fits into 80 columns.
    """
    shared = [o for o in rows[0].overrides if all(o in row.overrides for row in rows)]
    shared = shared if len(rows) > 1 else []
    title = " ".join(["cost", *shared])
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("measurement", overflow="fold", min_width=16)
    table.add_column("result", no_wrap=True)
    for name in ("params", "train ms", "peak MiB", "infer ms", "GFLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    said: dict[str, list[str]] = {}
    for overrides, result, why, card in rows:
        own = " ".join(override for override in overrides if override not in shared)
        colour = COLOURS.get(result, "red")
        measured = card.measured if card is not None else None
        numbers = [MISSING] * 5 if measured is None else _numbers(measured)
        table.add_row(own, Text(result, colour), *numbers)
        for note in filter(None, [why, *(card.labels if measured and card else ())]):
            said.setdefault(note, []).append(own)
    notes = (
        note if len(of) == len(rows) else f"{', '.join(of)}: {note}" for note, of in said.items()
    )
    return Group(table, *notes)


def _numbers(measured: Measured) -> list[str]:
    inference = measured.inference_merged or measured.inference
    return [
        f"{measured.parameters.method:,}",
        quantity(measured.training_step.median),
        quantity(measured.memory.peak, MIB),
        quantity(inference.median),
        quantity(measured.flops.forward, GIGA),
    ]


def _giga(operations: int) -> str:
    return f"{quantity(operations, GIGA)} GFLOPs"


def _time(timing: Timing) -> str:
    return (
        f"{quantity(timing.median)} ms ({quantity(timing.low)} to {quantity(timing.high)}): "
        f"{quantity(timing.images_per_second)} images/s"
    )


def _memory(memory: Memory) -> str:
    if memory.peak is None:
        return "null: this system does not tell"
    kind = "growth of resident memory" if memory.allocated is None else "allocated"
    reserved = "" if memory.reserved is None else f", reserved {quantity(memory.reserved, MIB)} MiB"
    parts = ", ".join(
        f"{name} {quantity(size, MIB)}"
        for name, size in (
            ("weights", memory.weights),
            ("gradients", memory.gradients),
            ("optimizer", memory.optimizer_state),
            ("activations", memory.activations),
        )
    )
    return f"{quantity(memory.peak, MIB)} MiB {kind}{reserved}: {parts}"
