"""How values become text. Every number of a leaderboard passes through here."""

from __future__ import annotations

from collections.abc import Collection

MISSING = "–"

KIB = 1024
MIB = 1024**2

_NO_PUNCTUATION = str.maketrans("", "", '"[]')


def exact(value: float | None) -> str:
    """A number for a file: integers as they are, others with four decimals; empty for None."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A percentage for a reader: two decimals."""
    return MISSING if value is None else f"{value:.2f}"


def quantity(value: float | None, unit: int = 1) -> str:
    """Any other measurement for a reader, in multiples of ``unit``: three digits or whole."""
    if value is None:
        return MISSING
    multiple = value / unit
    return f"{multiple:,.0f}" if multiple >= 100 else f"{multiple:.3g}"


def short_options(text: str) -> str:
    """Option text for a reader: without the options that are null, and with little punctuation."""
    given = [option for option in text.split(" ") if not option.endswith("=null")]
    return " ".join(given).translate(_NO_PUNCTUATION)


def span(counts: Collection[int]) -> str:
    """A count that all seeds should share; ``low..high`` where they differ, empty for none."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return exact(low) if low == high else f"{exact(low)}..{exact(high)}"
