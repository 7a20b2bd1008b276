"""Where a run comes from, and what to type to make it again."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from vpeft_bench.config.identity import counted
from vpeft_bench.records.run_record import RunRecord

_BARE = re.compile(r"[A-Za-z_][\w./+@-]*")
_OF_DATA = ("augmentation", "final_train", "resize", "normalization", "per_class")
"""What of a data set's settings a command changes."""


def origin(record: RunRecord) -> dict[str, str]:
    """The software a run was made with: ``commit`` and ``versions``, empty where unknown."""
    where, git = record.where, record.where.git
    changed = " with uncommitted changes" if git and git.dirty else ""
    return {
        "commit": f"{git.commit}{changed}" if git and git.commit else "",
        "versions": _versions(where.python, *where.versions.items()),
    }


@functools.lru_cache
def _versions(python: str, *others: tuple[str, str]) -> str:
    """Names and versions as text; thousands of runs were made with the same ones."""
    return ", ".join(
        f"{name} {of}" for name, of in sorted({"python": python, **dict(others)}.items())
    )


def commands(cells: Iterable[tuple[str, str, Iterable[int]]]) -> list[str]:
    """What to type for some cells; those that differ in data sets or seeds alone share one.

    Args:
        cells: name of the data set, its :func:`overrides` as JSON, and seeds of each.
    """
    together: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for data, overrides, seeds in cells:
        together.setdefault((overrides, tuple(sorted(set(seeds)))), []).append(data)
    found = []
    for (overrides, seeds), names in together.items():
        subject, *others = json.loads(overrides)
        data = ",".join(dict.fromkeys(names))
        seed = ",".join(map(str, seeds))
        multirun = ["-m"] if "," in data or "," in seed else []
        words = [*multirun, subject, f"data={data}", f"seed={seed}", *others]
        found.append(f"python -m vpeft_bench {shlex.join(words)}")
    return found


def overrides(record: RunRecord, settings: Mapping[str, Any]) -> list[str]:
    """All that belongs to a run's identity as overrides, without data set and seed.

    Args:
        record: the run.
        settings: of :func:`~vpeft_bench.leaderboard.departures.settings_of`.
    """
    asked, variant = record.asked, _part(record.asked, "variant")
    set_by_variant: set[str] = set()
    if name := variant.get("name"):
        subject = f"variant={name}"
        of_data = _part(_part(variant, "per_data"), str(_part(asked, "data").get("name")))
        set_by_variant = {*_part(variant, "settings"), *of_data}
    else:
        subject = f"method={_part(asked, 'method').get('name')}"
    groups = {key: _part(asked, key).get("name") for key in ("backbone", "protocol", "head")}
    found = [f"{group}={value}" for group, value in groups.items() if value]
    options = counted(_part(asked, "method"), record.uncounted)
    values = {f"method.{key}": value for key, value in options.items() if key != "name"}
    values |= {key: value for key, value in settings.items() if key.startswith(("train.", "task."))}
    values |= {key: value for key, value in settings.items() if key.startswith("backbone.drop")}
    data = _part(asked, "data")
    values |= {f"data.{key}": data[key] for key in _OF_DATA if data.get(key) is not None}
    if precision := _part(asked, "hardware").get("precision"):
        values["hardware.precision"] = precision
    values = {key: value for key, value in values.items() if key not in set_by_variant}
    return [subject, *found, *(f"{key}={_text(values[key])}" for key in sorted(values))]


def _part(of: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = of.get(key)
    return part if isinstance(part, dict) else {}


def _text(value: Any) -> str:
    """A value in the grammar of overrides."""
    if type(value) in (int, float):
        return repr(value)
    if isinstance(value, str):
        if _BARE.fullmatch(value) and value.lower() not in ("true", "false", "null", "nan", "inf"):
            return value
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value)
