"""Which data sets a benchmark consists of, and which images a protocol scores."""

from __future__ import annotations

from dataclasses import dataclass, field

from vpeft_bench.record import Split


@dataclass(frozen=True)
class Benchmark:
    """A fixed list of data sets whose accuracies are averaged.

    Attributes:
        name: the value of ``data.benchmark`` in a record.
        groups: data sets by group, in the order in which they are shown.
        aliases: other names in use, and the data set each stands for.
    """

    name: str
    groups: dict[str, tuple[str, ...]]
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def datasets(self) -> tuple[str, ...]:
        """All data sets, group after group."""
        return tuple(name for members in self.groups.values() for name in members)

    def member(self, data: str) -> str | None:
        """The data set that ``data`` names, with or without the benchmark's own prefix."""
        name = data.removeprefix(f"{self.name}/")
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

BENCHMARKS = {benchmark.name: benchmark for benchmark in (VTAB1K, FGVC, DEMO)}

PROTOCOL_SPLIT = {"select": Split.VAL, "final": Split.TEST}
