"""Golden files of the unified methods."""

from __future__ import annotations

from entries.entry import Entry

ENTRIES: dict[str, Entry] = {}
