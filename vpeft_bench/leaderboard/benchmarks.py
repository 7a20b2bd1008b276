"""Which data sets a benchmark consists of, and which images a protocol scores."""

from __future__ import annotations

from dataclasses import dataclass, field

from vpeft_bench.record import Split


@dataclass(frozen=True)
class Benchmark:
    """A fixed list of data sets that are shown together.

    Attributes:
        name: the value of ``data.benchmark`` in a record.
        groups: data sets by group, in the order in which they are shown.
        aliases: other names in use, and the data set each stands for.
        prefix: folder of the data sets' names; by default the benchmark's name.
        averaged: whether a mean over its data sets says something; not where one is an average
            precision and another an intersection over union.
    """

    name: str
    groups: dict[str, tuple[str, ...]]
    aliases: dict[str, str] = field(default_factory=dict)
    prefix: str | None = None
    averaged: bool = True

    @property
    def datasets(self) -> tuple[str, ...]:
        """All data sets, group after group."""
        return tuple(name for members in self.groups.values() for name in members)

    def member(self, data: str) -> str | None:
        """The data set that ``data`` names, with or without the benchmark's own prefix."""
        name = data.removeprefix(f"{self.prefix or self.name}/")
        name = self.aliases.get(name, name)
        return name if name in self.datasets else None


VTAB1K = Benchmark(
    name="vtab1k",
    groups={
        "natural": (
            "cifar100",
            "caltech101",
            "dtd",
            "oxford_flowers102",
            "oxford_iiit_pet",
            "svhn",
            "sun397",
        ),
        "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
        "structured": (
            "clevr_count",
            "clevr_dist",
            "dmlab",
            "kitti",
            "dsprites_loc",
            "dsprites_ori",
            "smallnorb_azi",
            "smallnorb_ele",
        ),
    },
    aliases={"cifar": "cifar100"},
)
FGVC = Benchmark(
    name="fgvc",
    groups={
        "all": ("cub_200_2011", "nabirds", "oxford_flowers", "stanford_dogs", "stanford_cars"),
    },
    aliases={"cub": "cub_200_2011"},
)
DEMO = Benchmark(
    name="demo",
    groups={"all": ("digits", "sprites_count", "sprites_location", "sprites_orientation")},
)

DEMO_DENSE = Benchmark(
    name="demo_dense",
    groups={"all": ("scenes_detection", "scenes_instances", "scenes_segmentation")},
    prefix="demo",
    averaged=False,
)
DENSE = Benchmark(
    name="dense",
    groups={"all": ("coco", "voc0712", "ade20k", "voc2012_masks")},
    averaged=False,
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in (VTAB1K, FGVC, DENSE, DEMO, DEMO_DENSE)}

PROTOCOL_SPLIT = {"select": Split.VAL, "final": Split.TEST}
