"""Golden files of the side methods."""

from __future__ import annotations

from entries.entry import Entry

ENTRIES: dict[str, Entry] = {}
