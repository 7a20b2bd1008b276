"""Cards for the terminal: one in full, or one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from vpeft_bench.cost.card import CostCard, Measured, Memory, Timing
from vpeft_bench.formats import GIGA, MIB, MISSING, option_text, quantity

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
        table.add_row(name, escape(value))
    return table


class Row(NamedTuple):
    """A measurement of a sweep: its overrides, what became of it, why, and its card if any."""

    overrides: list[str]
    result: str
    why: str
    card: CostCard | None


def sweep_table(rows: Sequence[Row]) -> Table:
    """One row per measurement; overrides that all share stand in the title."""
    shared = [o for o in rows[0].overrides if all(o in row.overrides for row in rows)]
    shared = shared if len(rows) > 1 else []
    table = Table(title=escape(" ".join(["cost", *shared])), title_justify="left")
    table.add_column("measurement", overflow="fold", min_width=16)
    table.add_column("result", no_wrap=True)
    for name in ("params", "train ms", "peak MiB", "infer ms", "GFLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    if explained := any(row.why or (row.card and row.card.labels) for row in rows):
        table.add_column("why", overflow="fold")
    for overrides, result, why, card in rows:
        own = " ".join(override for override in overrides if override not in shared)
        colour = COLOURS.get(result, "red")
        measured = card.measured if card is not None else None
        numbers = [MISSING] * 5 if measured is None else _numbers(measured)
        notes = "; ".join(filter(None, [why, *(card.labels if measured and card else ())]))
        why_not = [escape(notes)] if explained else []
        table.add_row(escape(own), f"[{colour}]{result}[/{colour}]", *numbers, *why_not)
    return table


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
