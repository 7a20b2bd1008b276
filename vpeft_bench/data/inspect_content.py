"""What decoded pictures are compared for: the same picture in two places, under two names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.folders import shortened
from vpeft_bench.data.inspect_lists import TRAINING_PART
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset, LabelledSplit

Hashes = Mapping[int, str]
"""Of the decoded pixels, by index. Pictures that were not decoded, or have one colour alone and so
nothing to be known by, are not in it."""


def inspect_content(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Compare all pictures, where all were decoded."""
    if not inspection.full:
        return
    pixels = inspection.pixels
    _judge_shared(dataset, "val", ("train",), pixels, config, inspection)
    _judge_shared(dataset, "test", TRAINING_PART, pixels, config, inspection)
    for split in ("trainval", "test"):
        _tell_of_repeated(dataset, split, pixels.get(split, {}), inspection)


def compare_content(
    dataset: Dataset,
    config: DataConfig,
    trained: tuple[str, Hashes],
    evaluated: tuple[str, Hashes],
) -> Inspection:
    """Compare the pictures that a run has decoded.

    Args:
        dataset: of the run.
        config: its configuration.
        trained: the split to train on, and its pictures.
        evaluated: the split to report, and its pictures.
    """
    inspection = Inspection()
    pixels = dict([trained, evaluated])
    _judge_shared(dataset, evaluated[0], (trained[0],), pixels, config, inspection)
    return inspection


def _judge_shared(
    dataset: Dataset,
    split: str,
    others: Sequence[str],
    pixels: Mapping[str, Hashes],
    config: DataConfig,
    inspection: Inspection,
) -> None:
    """Refuse pictures of ``split`` that are in ``others`` as well, or tell of them if allowed.

    What is the same file is left to the lists, where that is refused in any case.
    """
    places: dict[str, tuple[str, int]] = {}
    for other in others:
        for index, content in pixels.get(other, {}).items():
            places.setdefault(content, (other, index))
    lines = []
    for index, content in pixels.get(split, {}).items():
        if content not in places or _is_one_file(inspection, (split, index), places[content]):
            continue
        other, place = places[content]
        entry, same = dataset.split(split).entry(index), dataset.split(other).entry(place)
        lines.append(f"{entry} is {same} of {dataset.listed_in(other)}")
    if not lines:
        return
    if config.allow_duplicates:
        are = "picture is" if len(lines) == 1 else "pictures are"
        inspection.tell(f"{len(lines)} {split} {are} in the training part by content")
        return
    total = len(dataset.split(split))
    what = f"{len(lines)} of the {total} {split} pictures are in the training part by content:"
    fix = "leave them out of one of both, or type data.allow_duplicates=true: the record says so"
    inspection.refuse(dataset.listed_in(split), what, "\n".join([*shortened(lines), fix]))


def _is_one_file(inspection: Inspection, picture: tuple[str, int], other: tuple[str, int]) -> bool:
    files = [
        inspection.files[split][index] if split in inspection.files else None
        for split, index in (picture, other)
    ]
    return files[0] is not None and files[0] == files[1]


def _tell_of_repeated(dataset: Dataset, name: str, pixels: Hashes, inspection: Inspection) -> None:
    """Tell how many pictures of a split repeat another one, and whether their labels agree."""
    counts = Counter(pixels.values())
    repeats = len(pixels) - len(counts)
    if not repeats:
        return
    part = "test" if name == "test" else "training"
    repeat = "repeats" if repeats == 1 else "repeat"
    notice = f"{repeats} of {len(pixels)} {part} pictures {repeat} another one by content"
    split = dataset.split(name)
    if isinstance(split, LabelledSplit):
        labels: dict[str, set[int]] = {}
        for index, content in pixels.items():
            labels.setdefault(content, set()).add(int(split.labels[index]))
        if contradictory := sum(len(of_content) > 1 for of_content in labels.values()):
            notice += f", {contradictory} of them with another label"
    inspection.tell(notice)
