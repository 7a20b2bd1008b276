"""Golden files of the partial methods."""

from __future__ import annotations

from entries.entry import Entry

ENTRIES: dict[str, Entry] = {
    "full": Entry("full", merges=True),
    "linear": Entry("linear", merges=True),
    "bitfit": Entry("bitfit", merges=True),
    "swin_bitfit": Entry("bitfit", merges=True),
    "lntune": Entry("ln_tune", merges=True),
    "swin_lntune": Entry("ln_tune", merges=True),
}
