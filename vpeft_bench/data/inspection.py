"""What a data set is looked at for, before anything is trained on it.

A number is printed only where it can mean what it says. So every data set is inspected, whichever
reader opened it: what could not mean anything is refused, what a reader of the number should know
is told and becomes a label of the record, and what was counted is recorded. The readers refuse what
they cannot read; what can be read and is wrong all the same is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vpeft_bench.data.findings import Inspection, Track, untracked
from vpeft_bench.data.folders import Folders
from vpeft_bench.data.inspect_content import inspect_content
from vpeft_bench.data.inspect_lists import inspect_lists
from vpeft_bench.data.inspect_names import inspect_names
from vpeft_bench.data.inspect_pictures import inspect_pictures
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset
from vpeft_bench.records.data_facts import DataFacts

__all__ = ["Inspection", "inspect"]

Inspector = Callable[[Dataset, DataConfig, Inspection], None]
"""Looks for one kind of fault, and adds what it finds."""

OF_ALL: tuple[Inspector, ...] = (inspect_lists, inspect_names, inspect_pictures, inspect_content)
"""What holds for every data set."""


def inspect(
    dataset: Dataset,
    config: DataConfig,
    of_task: Sequence[Inspector],
    *,
    full: bool = False,
    max_detections: int | None = None,
    evaluated: str = "test",
    track: Track = untracked,
) -> Inspection:
    """Look at a data set.

    Args:
        dataset: as its reader opened it.
        config: its configuration.
        of_task: look for what does not fit the task.
        full: look at every picture and every label map, not at a sample of them.
        max_detections: most detections of a picture that the head gives, where one is chosen.
        evaluated: the split that is reported: ``val`` under ``protocol=select``.
        track: shows the progress of what takes long.
    """
    inspection = Inspection(
        full=full,
        max_detections=max_detections,
        evaluated=evaluated,
        track=track,
        files=_files(dataset),
        notices=list(dataset.notices),
        facts=DataFacts(
            pictures={name: len(split) for name, split in dataset.splits.items()},
            classes=dataset.num_classes,
        ),
    )
    for inspector in (*OF_ALL, *of_task):
        inspector(dataset, config, inspection)
    return inspection


def _files(dataset: Dataset) -> dict[str, list[str]]:
    """The file of every picture; see :class:`Inspection`."""
    folders = Folders()
    known: dict[str, str] = {}
    files = {}
    for name, split in dataset.splits.items():
        paths = [path for path in map(split.file, range(len(split))) if path is not None]
        known |= {path: folders.file(path) for path in paths if path not in known}
        if len(paths) == len(split):
            files[name] = [known[path] for path in paths]
    return files
