"""What a data set with label maps is looked at for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.config.sections import IGNORED_LABEL
from vpeft_bench.data.dense_files import FileMaps
from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.folders import shortened
from vpeft_bench.data.inspect_classes import PARTS, VALIDATION, tell_of_classes
from vpeft_bench.data.pictures import Colour, palette_of
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset, LabelMapSplit
from vpeft_bench.errors import VpeftBenchError

VALUES = 256
SAMPLE_PIXELS = 50_000_000
"""Of each part, that are looked at before a run: about a second."""
SMALLEST_SAMPLE = 32
"""Maps of each part, however large they are."""
OFTEN = 3
"""Maps of a sample that each class found must be in, for one that is not found to be absent."""
SHARE_TOLD = 0.01
"""A smaller share of ignored pixels is not worth a label."""
MANY_VALUES = 16
"""So many values that are no class are no slip of a number, but another kind of picture."""

_Counted = tuple[NDArray[np.int64], list[Colour] | None]
"""How often each value occurs in a map, and its palette if it has one."""


@dataclass
class _Part:
    """The values in the label maps of a split, as they are in the files.

    Attributes:
        name: what messages call the split.
        where: it is listed.
        total: number of its maps.
        first: value of the first class; 0 is no class where that is 1.
        num_classes: K.
        looked_at: number of maps that were read.
        pixels: (256,) how often each value occurs.
        maps: (256,) in how many maps.
        unreadable: what is wrong with maps that cannot be used.
        wrong: the maps that hold values that are no class, and these values.
        colours: of the maps with a palette, the colours of the values that they hold.
    """

    name: str
    where: str
    total: int
    first: int
    num_classes: int
    looked_at: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(VALUES, np.int64))
    maps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(VALUES, np.int64))
    unreadable: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    colours: list[tuple[str, dict[int, Colour]]] = field(default_factory=list)

    @property
    def beyond(self) -> int:
        """The first value after those of the classes."""
        return self.first + self.num_classes

    @property
    def classes(self) -> set[int]:
        """Those that occur, from 0."""
        return set(np.flatnonzero(self.pixels[self.first : self.beyond]).tolist())

    @property
    def ignored(self) -> dict[int, int]:
        """Pixels of each value that is no class by design."""
        values = (*range(self.first), IGNORED_LABEL)
        return {value: int(self.pixels[value]) for value in values if self.pixels[value]}

    @property
    def wrong_values(self) -> list[int]:
        """Those that occur and are neither a class nor ignored."""
        found = np.flatnonzero(self.pixels[self.beyond : IGNORED_LABEL]) + self.beyond
        return [int(value) for value in found]

    @property
    def maps_looked_at(self) -> str:
        """The maps that were read, in words."""
        some = "" if self.looked_at == self.total else f"{self.looked_at} of the "
        return f"{some}{self.total} {self.name} maps"

    @property
    def is_settled(self) -> bool:
        """Whether a class that was not found does not occur, or hardly ever."""
        often = self.maps[self.first : self.beyond]
        return self.looked_at == self.total or bool((often[often > 0] >= OFTEN).all())

    def add(self, counted: _Counted | str, file: str) -> None:
        """Count one map: what is in it, or why it cannot be used."""
        self.looked_at += 1
        if isinstance(counted, str):
            self.unreadable.append(counted)
            return
        found, palette = counted
        if palette:
            held = np.flatnonzero(found[: len(palette)]).tolist()
            self.colours.append((file, {value: palette[value] for value in held}))
        self.pixels += found
        self.maps += found > 0
        wrong = np.flatnonzero(found[self.beyond : IGNORED_LABEL]) + self.beyond
        if len(wrong):
            values = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            self.wrong.append(f"{file} holds {values}")


def inspect_maps(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Refuse label maps of which nothing can be learnt; tell what of them is of no class.

    A sample is looked at, spread over the list; all of them where ``inspection.full`` says so, or
    where the sample has fewer than two classes.
    """
    parts = [_looked_at(dataset, split, name, inspection) for split, name in PARTS.items()]
    for split, part in zip(PARTS, parts, strict=True):
        inspection.count(split, "classes", len(part.classes))
        inspection.count(split, "pixels", int(part.pixels.sum()))
        inspection.count(split, "ignored_pixels", sum(part.ignored.values()))
        inspection.count(split, "sampled", part.looked_at)
    judged = list(parts)
    if inspection.evaluated == "val":
        judged.append(_looked_at(dataset, "val", VALIDATION, inspection))
    sound = [_is_sound(part, inspection) for part in judged]  # all are looked at
    _judge_palettes(judged, inspection)
    if not all(sound):
        return
    _tell_of_ignored(parts, inspection)
    trained, tested = parts
    if trained.is_settled and tested.is_settled:
        tell_of_classes(dataset, trained.classes, tested.classes, inspection, "pixel")


def _looked_at(dataset: Dataset, name: str, part_name: str, inspection: Inspection) -> _Part:
    """The values in the maps of a split, or in a sample of them."""
    split = dataset.split(name)
    assert isinstance(split, LabelMapSplit)
    first = int(isinstance(split, FileMaps) and split.zero_is_ignored)
    part = _Part(part_name, dataset.listed_in(name), len(split), first, dataset.num_classes)
    count = _values_of(split)
    with ThreadPoolExecutor() as threads:

        def look_at(indices: list[int]) -> None:
            found = threads.map(count, indices)
            what = f"{part_name} maps"
            for index, values in zip(
                indices, inspection.track(found, what, len(indices)), strict=True
            ):
                file = split.pictures[index].map_path if isinstance(split, FileMaps) else ""
                part.add(values, file)

        sample = list(range(len(split))) if inspection.full else _sample(split)
        look_at(sample)
        if len(part.classes) < 2:
            look_at(sorted(set(range(len(split))) - set(sample)))
    return part


def _values_of(split: LabelMapSplit) -> Callable[[int], _Counted | str]:
    """Counts the values of one map of a split, or says why it cannot be used."""

    def count(index: int) -> _Counted | str:
        palette = None
        try:
            if isinstance(split, FileMaps):
                values = split.values(index)
                palette = palette_of(split.pictures[index].map_path)
            else:
                values = split.label_map(index)
        except VpeftBenchError as error:
            return str(error)
        return np.bincount(values.ravel(), minlength=VALUES), palette

    return count


def _sample(split: LabelMapSplit) -> list[int]:
    """Places spread over the split, as many as can be looked at in about a second."""
    if not len(split):
        return []
    try:
        pixels = split.label_map(0).size
    except VpeftBenchError:  # it is found again, with the others
        pixels = SAMPLE_PIXELS
    count = max(SMALLEST_SAMPLE, SAMPLE_PIXELS // pixels)
    return sorted(set(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int).tolist()))


def _is_sound(part: _Part, inspection: Inspection) -> bool:
    """Whether the maps can be used and hold classes; refuse them otherwise."""
    before = len(inspection.problems)
    if part.unreadable:
        what = f"{len(part.unreadable)} of {part.maps_looked_at} cannot be used:"
        inspection.refuse(part.where, what, "\n".join(shortened(part.unreadable)))
    elif part.wrong:
        what = f"{len(part.wrong)} of {part.maps_looked_at} hold values that are no class:"
        lines = [*shortened(part.wrong), *_readings(part)]
        inspection.refuse(part.where, what, "\n".join(lines))
    elif part.total and not part.classes:
        what = f"no pixel of the {part.total} {part.name} maps is of any class"
        inspection.refuse(part.where, what, "\n".join(_readings(part)))
    elif part.num_classes == 1 or (part.name == PARTS["trainval"] and len(part.classes) == 1):
        what = f"1 of {part.num_classes} classes occurs in the {part.total} {part.name} maps: "
        what += "with one class every answer is right"
        inspection.refuse(part.where, what, "\n".join(_readings(part)))
    return len(inspection.problems) == before


def _judge_palettes(parts: list[_Part], inspection: Inspection) -> None:
    """Refuse maps whose palettes number the same colours otherwise; tell of other colours.

    Programs that keep only the colours that a picture has number them anew in each: class 2 of a
    map without class 1 is 1. Where maps with other colours number nothing otherwise, they may have
    been drawn by several programs.
    """
    maps = [(part, *of_map) for part in parts for of_map in part.colours]
    values: dict[Colour, tuple[int, str]] = {}
    colours: dict[int, Colour] = {}
    renumbered: dict[str, list[str]] = {}
    others = 0
    for part, file, of_file in maps:
        drawn = list(of_file.values())
        others += any(colours.setdefault(value, c) != c for value, c in of_file.items())
        for value, colour in of_file.items():
            if drawn.count(colour) > 1:  # a palette that is not made to tell them apart
                continue
            first, place = values.setdefault(colour, (value, file))
            if first != value:
                line = f"{file}: colour {colour} is {value}, and {first} in {place}"
                renumbered.setdefault(part.where, []).append(line)
                break
    for where, lines in renumbered.items():
        what = f"{len(lines)} maps number the colours of their palettes otherwise:"
        fix = "save all maps with one palette; where the numbers are right, without any (grey)"
        inspection.refuse(where, what, "\n".join([*shortened(lines), fix]))
    if others and not renumbered:
        count = f"{others} of {len(maps)} label maps with a palette"
        inspection.tell(f"{count} give a value another colour than those before them")


def _readings(part: _Part) -> list[str]:
    """What maps that cannot mean anything may be meant as, and what to type then."""
    last, wrong = part.beyond - 1, part.wrong_values
    lines = []
    if len(wrong) >= MANY_VALUES:
        lines.append(
            f"{len(wrong)} such values are shades, not numbers of classes: was a map stored as "
            "JPEG, resized smoothly or drawn in colours?"
        )
    elif wrong:
        lines.append(
            f"the {part.num_classes} classes are {part.first} to {last}; {IGNORED_LABEL} is none"
        )
        if not part.first and wrong == [part.beyond]:
            lines.append("where classes count from 1 and 0 is none: data.zero_is_ignored=true")
        if wrong[-1] <= 2 * part.beyond:
            lines.append(f"where there are more: data.num_classes={wrong[-1] + 1 - part.first}")
        else:
            seen = [value for value in range(IGNORED_LABEL + 1) if part.pixels[value]]
            to = [str(part.first + place) for place in range(len(seen))]
            old = ", ".join(map(str, seen))
            lines.append(f"where {old} are shades of classes: store {', '.join(to)} instead")
    elif part.pixels[IGNORED_LABEL] and part.classes <= {0}:
        lines.append(
            f"{IGNORED_LABEL} is no class: in masks of 0 and {IGNORED_LABEL} store the number of "
            f"the class instead of {IGNORED_LABEL}"
        )
    if not wrong and part.first and part.pixels[0]:
        lines.append("0 is no class: where it is one, type data.zero_is_ignored=false")
        if part.num_classes == 1:
            lines[-1] += " data.num_classes=2"
    return lines


def _tell_of_ignored(parts: list[_Part], inspection: Inspection) -> None:
    """Tell which share of the pixels is of no class, and which value says so."""
    shares: list[str] = []
    values: set[int] = set()
    for part in parts:
        share = sum(part.ignored.values()) / max(1, int(part.pixels.sum()))
        if share >= SHARE_TOLD:
            shares.append(f"{100 * share:.0f} % of {part.name}")
            values |= part.ignored.keys()
    if shares:
        value = " or ".join(map(str, sorted(values)))
        inspection.tell(f"{' and '.join(shares)} pixels are of no class (value {value})")
