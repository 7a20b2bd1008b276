"""What is counted in a data set before anything is trained on it; part of every record."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataFacts:
    """What was counted in the data set before training.

    Attributes:
        pictures: number of pictures by split.
        classes: number of classes.
        counts: further numbers by split, then by what is counted: ``classes`` that occur,
            ``objects``, ``ignored_objects``, ``pixels``, ``ignored_pixels``; label maps are counted
            in a sample, whose size is ``sampled``.
        image_format: ``jpeg``, ``png``, ...; ``array`` where pictures are rendered; several are
            joined by ``+``.
        pixels: by split, the hash of the decoded pixels of a seeded sample.
    """

    pictures: dict[str, int] = field(default_factory=dict)
    classes: int | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    image_format: str | None = None
    pixels: dict[str, str] = field(default_factory=dict)
