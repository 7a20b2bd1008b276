"""What the rows of a table share beside what they compare, and where a row departs from it.

Epochs, learning rate, weight decay, augmentation and all else that belongs to a run's identity may
differ between rows; then a reader must see it.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from vpeft_bench.config.identity import setting_of
from vpeft_bench.formats import option_text

_TOLD = {
    "method",
    "variant",
    "task.name",
    "protocol",
    "backbone.name",
    "backbone.model",
    "head.name",
    "data.normalization",
    "data.per_class",
    "hardware.precision",
}
"""What rows tell in columns of their own."""
BY_METHOD = ("train.lr", "train.weight_decay")
"""Settings that differ between methods by design: what they are tuned by."""
VARIES = "by data set"


class Departures(NamedTuple):
    """Settings of the rows of one table.

    Attributes:
        shared: what holds for every row that does not say otherwise, as text.
        rows: by row what it does otherwise, as text; mostly empty.
    """

    shared: str
    rows: pd.Series


def settings_of(kept: dict[str, Any], task: Any) -> dict[str, Any]:
    """Every setting of a run by its dotted key, without what rows tell in columns of their own.

    Args:
        kept: what of its configuration is scientific.
        task: all options of its task: those that are neutral in one row may not be in another.
    """
    return dict(_flat({**kept, "task": task}, ""))


def departures(cells: pd.DataFrame, row: pd.Series) -> Departures:
    """Compare the settings of rows, data set by data set.

    On each data set the value that most rows have is the shared one.

    Args:
        cells: with the columns ``data`` and ``settings``.
        row: of each cell the row that it is in, with the same index.
    """
    # Few settings differ, whatever the number of cells: each is looked at once per data set.
    pairs = pd.DataFrame({"data": cells["data"], "settings": cells["settings"], "row": row})
    counts = Counter(zip(pairs["data"], pairs["settings"], strict=True))
    texts = _texts({settings for _, settings in counts})
    keys = sorted({key for of in texts.values() for key in of})
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for (data, settings), count in counts.items():
        for key in keys:
            found[key, data][texts[settings][key]] += count
    usual = {at: min(of, key=lambda text: (-of[text], text)) for at, of in found.items()}
    shared = []
    for key in keys:
        values = {text for (name, _), text in usual.items() if name == key}
        if not key.startswith("data."):  # a data set has its own
            shared.append(_one(key, values))
    differing = {
        (data, settings): [k for k in keys if texts[settings][k] != usual[k, data]]
        for data, settings in counts
    }
    alone = {pair: " ".join(texts[pair[1]][k] for k in of) for pair, of in differing.items()}
    pairs["alone"] = [alone[at] for at in zip(pairs["data"], pairs["settings"], strict=True)]
    told = pairs.drop_duplicates("row").set_index("row")["alone"].to_dict()
    several = pairs[pairs.duplicated("row", keep=False)]
    for name, group in several.groupby("row", observed=True):
        of_row = list(zip(group["data"], group["settings"], strict=True))
        odd = sorted({key for pair in of_row for key in differing[pair]})
        told[name] = " ".join(_one(key, {texts[one][key] for _, one in of_row}) for key in odd)
    return Departures(" ".join(shared), pd.Series(told, dtype=object))


def beside_tuning(cells: pd.DataFrame) -> pd.DataFrame:
    """``cells`` whose ``settings`` are without those that every method has of its own."""
    texts = cells["settings"].astype(object)
    kept = {
        text: json.dumps({key: of for key, of in json.loads(text).items() if key not in BY_METHOD})
        for text in texts.unique()
    }
    return cells.assign(settings=texts.map(kept))


def short_keys(text: str) -> str:
    """Departures with the last part of each key alone."""
    return re.sub(r"(?<!\S)[\w.]+\.(?=\w+[= ])", "", text)


def _one(key: str, texts: set[str]) -> str:
    return next(iter(texts)) if len(texts) == 1 else f"{key} {VARIES}"


def _texts(every: Iterable[str]) -> dict[str, dict[str, str]]:
    """``key=value`` by key, of settings as the frame has them; what is not there is neutral."""
    parsed = {text: json.loads(text) for text in every}
    keys = {key for values in parsed.values() for key in values}
    neutral = {key: known.neutral for key in keys if (known := setting_of(key)) is not None}
    return {
        text: {key: option_text({key: values.get(key, neutral.get(key))}) for key in keys}
        for text, values in parsed.items()
    }


def _flat(part: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
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
