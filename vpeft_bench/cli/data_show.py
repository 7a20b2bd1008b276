"""``python -m vpeft_bench data show``: pictures with their truth drawn, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpeft_bench.cli.arguments import typed_count, typed_picture
from vpeft_bench.cli.data_asked import answered, asked, parser
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.drawing import save, sheet
from vpeft_bench.errors import ConfigError, Problem
from vpeft_bench.tasks.names import kind_of

PICTURES = 16
COLUMNS = 4
CELL = 320  # longer side of a drawn picture, pixels


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Draw pictures of a data set; 0, or 1 where that fails, 2 for a wrong command line or data.

    Args:
        arguments: what follows ``data show``.
        own: a further folder of configs (``--config-dir``).
    """
    made = parser("show", "Draw pictures and their truth: classes, boxes, masks, label maps.")
    made.add_argument("--split", default="train", help="default: train")
    made.add_argument("--count", type=typed_count, default=PICTURES, help=f"default: {PICTURES}")
    made.add_argument("--out", type=typed_picture, help="default: data-NAME-SPLIT.png, here")
    options = made.parse_intermixed_args(arguments)

    def command() -> int:
        config = asked(options.overrides, own)
        name = f"data-{config.data.name.replace('/', '-')}-{options.split}.png"
        print(show(config, options.split, options.count, options.out or Path(name)))
        return 0

    return answered(command)


def show(config: RunConfig, split: str, count: int, path: Path) -> Path:
    """Write a sheet of ``count`` pictures, spread evenly over the split; its path.

    Raises:
        ConfigError: there is no such split.
        VpeftBenchError: the data set is not there or cannot be read.
        OSError: the sheet cannot be written.
    """
    dataset = open_dataset(config.data)
    size, kind = len(dataset.split(split)), kind_of(config)
    if not kind.accepts(dataset):
        fix = f"task={dataset.task} (by itself where it is not typed)"
        raise ConfigError([Problem(f"task={kind.name}", f"{dataset.name} is not for it", fix)])
    places = np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()
    panels = [kind.truth(dataset, split, index, CELL) for index in places]
    title = f"{dataset.name}, {split}: {len(panels)} of {size:,} pictures{kind.legend}"
    versions = max((len(panel.versions) for panel in panels), default=1)
    save(sheet(panels, title, dataset, COLUMNS // versions, CELL), path)
    return path
