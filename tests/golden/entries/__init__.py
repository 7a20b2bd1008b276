"""Which method of ours each golden file is about; one module per category of methods."""

from entries import addition, partial, reparameterisation, side, unified
from entries.entry import Entry

ENTRIES: dict[str, Entry] = (
    addition.ENTRIES | side.ENTRIES | partial.ENTRIES | reparameterisation.ENTRIES | unified.ENTRIES
)

__all__ = ["ENTRIES", "Entry"]
