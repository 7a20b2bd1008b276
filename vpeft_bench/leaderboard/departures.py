"""What the rows of a table share beside what they compare, and where a row departs from it.

Epochs, learning rate, weight decay, augmentation and all else that belongs to a run's identity may
differ between rows; then a reader must see it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vpeft_bench.config.identity import scientific, setting_of
from vpeft_bench.formats import option_text
from vpeft_bench.leaderboard.cells import Cell

_TOLD = {
    "method",
    "variant",
    "task.name",
    "protocol",
    "backbone.name",
    "backbone.model",
    "head.name",
    "data.normalization",
    "hardware.precision",
}
"""What rows tell in columns of their own."""
VARIES = "by data set"


class Departures(NamedTuple):
    """Settings of the rows of one table.

    Attributes:
        shared: what holds for every row that does not say otherwise, as text.
        rows: for each row what it does otherwise, as text; mostly empty.
    """

    shared: str
    rows: list[str]


def departures(rows: Sequence[Sequence[Cell]]) -> Departures:
    """Compare the settings of rows, data set by data set.

    On each data set the value that most rows have is the shared one.

    Args:
        rows: the cells of each row.
    """
    asked = [[(cell.data, dict(_flat(_settings(cell), ""))) for cell in row] for row in rows]
    keys = sorted({key for row in asked for _, values in row for key in values})
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in asked:
        for data, values in row:
            for key in keys:
                counts[key, data][_text(key, values)] += 1
    usual = {at: min(found, key=lambda text: (-found[text], text)) for at, found in counts.items()}
    shared = []
    for key in keys:
        texts = {text for (name, _), text in usual.items() if name == key}
        if not key.startswith("data."):  # a data set has its own
            shared.append(texts.pop() if len(texts) == 1 else f"{key} {VARIES}")
    return Departures(" ".join(shared), [_differing(row, keys, usual) for row in asked])


def short_keys(text: str) -> str:
    """Departures with the last part of each key alone."""
    return re.sub(r"(?<!\S)[\w.]+\.(?=\w+[= ])", "", text)


def _differing(
    row: Sequence[tuple[str, dict[str, Any]]],
    keys: Sequence[str],
    usual: dict[tuple[str, str], str],
) -> str:
    """What a row does otherwise than most."""
    told = []
    for key in keys:
        texts = {data: _text(key, values) for data, values in row}
        if all(text == usual[key, data] for data, text in texts.items()):
            continue
        different = set(texts.values())
        told.append(different.pop() if len(different) == 1 else f"{key} {VARIES}")
    return " ".join(told)


def _settings(cell: Cell) -> dict[str, Any]:
    record = cell.records[0]
    # Of the task all options: those that are neutral in one row may not be in another.
    return {**scientific(record.asked, record.uncounted), "task": record.asked.get("task")}


def _flat(part: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key, without what rows tell in columns of their own."""
    for name, value in part.items():
        key = f"{prefix}{name}"
        if key in _TOLD:
            continue
        known = setting_of(key)
        section = key == "task" or (known is not None and known.section)
        if isinstance(value, dict) and section:
            yield from _flat(value, f"{key}.")
        elif value not in (None, {}, []):
            yield key, value


def _text(key: str, values: dict[str, Any]) -> str:
    """``key=value``; what is not there is neutral."""
    known = setting_of(key)
    absent = known.neutral if known is not None else None
    return option_text({key: values.get(key, absent)})
