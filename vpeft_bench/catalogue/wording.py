"""Facts in words: the same in the terminal and on the pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vpeft_bench.backbones.families import families
from vpeft_bench.catalogue.facts import named
from vpeft_bench.catalogue.probe import Facts, Size

CAPABILITIES = (
    "method",
    "backbones",
    "identity",
    "merges",
    "dense heads",
    "cacheable up to",
    "parameters",
    "stored bytes",
    "data pass",
)
NUMBERS = ("parameters", "stored bytes")
VECTORS = "vectors"
"""A further column of the table of capabilities, inside a checkout of the repository."""


def capabilities(facts: Facts, vectors: Mapping[str, Sequence[str]] | None) -> list[str]:
    """One row of the table of capabilities.

    Args:
        vectors: names of the reference vectors by method, or None for no such column.
    """
    size, on = first_size(facts)
    row = [
        facts.name,
        named(facts.families),
        "yes" if facts.identity_at_start else "no",
        "yes" if facts.mergeable else "no",
        "yes" if facts.dense else "no",
        features(size.reads),
        f"{number(size.parameters)}{on}",
        f"{number(size.stored_bytes)}{on}",
        "yes" if facts.selects else "no",
    ]
    return row if vectors is None else [*row, str(len(vectors.get(facts.name, ()))) or "-"]


def first_size(facts: Facts) -> tuple[Size, str]:
    """What it costs on the first backbone that it attaches to; which, if not the usual one."""
    usual = next(family.shown[0] for family in families() if family.shown is not None)
    title, size = next(iter(facts.sizes.items()))
    return size, "" if title == usual else f" ({title})"


def features(names: Iterable[str]) -> str:
    """Names of features, runs of an index as one: ``tokens.0-12``."""
    runs: dict[str, list[int]] = {}
    for name in names:
        kind, _, index = name.partition(".")
        runs.setdefault(kind, []).extend([int(index)] if index else [])
    return ", ".join(
        f"{kind}.{part}" if part else kind
        for kind, indices in runs.items()
        for part in (_ranges(sorted(indices)) or [""])
    )


def _ranges(indices: list[int]) -> list[str]:
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return [f"{low}" if low == high else f"{low}-{high}" for low, high in ranges]


def number(value: int | None) -> str:
    """With thousands separated; a dash where the data decide."""
    return "-" if value is None else f"{value:,}"


def option_value(value: object) -> str:
    """An option's value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def sentences(text: str) -> int:
    """Sentences of a text that has no full stop inside one."""
    return len(re.findall(r"[.!?](?=\s|$)", text))
