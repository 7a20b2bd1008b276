"""Several runs of a sweep in one job of a launcher, one after the other: a pack.

Hydra's launchers make one job of each list of overrides. A pack is such a job: it is launched by
the overrides of its first run, finds all of its runs in the sweep's folder by its own number, and
does to them what Hydra's own launcher does. So each run has its number, folder and note as ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from vpeft_bench import kept
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import RecordError
from vpeft_bench.files import write_atomically
from vpeft_bench.runs.sweep import BUSY, INTERRUPTED, NOTE, read_note

if TYPE_CHECKING:
    from vpeft_bench.runs.rounds import SweepJob

PACKS = "packs"
"""The folder, in that of a sweep, of what each job does."""


@dataclass(frozen=True)
class Pack:
    """What one job does.

    Attributes:
        first: the number of its first run; the others follow.
        runs: the overrides of each.
    """

    first: int
    runs: list[list[str]]


def together(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """The jobs in an order in which those that share most come one after the other.

    First those of one backbone and data set; of these, those of one seed, which start from the same
    model. Else they stay in the order in which they were asked for.
    """
    groups: dict[Hashable, int] = {}
    keys = [_shared(job.config) for job in jobs]
    order = [tuple(groups.setdefault(key[: n + 1], len(groups)) for n in range(2)) for key in keys]
    return [jobs[i] for i in sorted(range(len(jobs)), key=order.__getitem__)]


def _shared(config: RunConfig) -> tuple[Hashable, ...]:
    backbone, data = config.backbone, config.data
    model = (backbone.model, backbone.weights, backbone.image_size, repr(backbone.model_args))
    return (*model, data.name, data.root, str(config.task["name"])), config.seed


def write_packs(directory: Path, runs: Sequence[list[str]], first: int, most: int) -> list[Pack]:
    """Share runs out to jobs, and write down in a sweep's folder what each job does.

    Args:
        directory: of the sweep.
        runs: the overrides of each.
        first: number of the first run, and of the first job.
        most: runs of a job.
    """
    starts = range(0, len(runs), most)
    packs = [Pack(first + start, list(runs[start : start + most])) for start in starts]
    (directory / PACKS).mkdir(exist_ok=True)
    for number, pack in enumerate(packs, start=first):
        content = json.dumps(asdict(pack), indent=1).encode()
        write_atomically(_file(directory, number), content, durable=False)
    return packs


def _file(directory: Path, number: int) -> Path:
    return directory / PACKS / f"{number}.json"


class Packed:
    """What Hydra calls for a job that does a pack, in whichever process.

    Args:
        one: what Hydra would call for a job that does one run.
        context, config: Hydra's own, of the sweep; they compose the config of each run.
    """

    def __init__(
        self, one: Callable[[DictConfig], Any], context: HydraContext, config: DictConfig
    ) -> None:
        self.one, self.context, self.config = one, context, config

    def __call__(self, config: DictConfig) -> None:
        """Do the runs of this job, but for those that have ended: the job may have been requeued.

        Where a GPU answers nothing more, the others are left to another process: the sweep launches
        them again.
        """
        from vpeft_bench.runs.host import device_is_lost  # imports torch

        kept.keep()
        hydra = HydraConfig.get()
        directory = Path(hydra.runtime.output_dir).parent
        pack = Pack(**json.loads(_file(directory, hydra.job.num).read_bytes()))
        for number, overrides in enumerate(pack.runs, start=pack.first):
            if _has_ended(directory / str(number)):
                continue
            self._run(number, overrides)
            if device_is_lost() is not None:
                return

    def _run(self, number: int, overrides: list[str]) -> None:
        composed = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        ended = run_job(
            hydra_context=self.context,
            task_function=self.one,
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        _ = ended.return_value  # raises what ended it


def _has_ended(folder: Path) -> bool:
    """Whether a run left a note that is its last."""
    try:
        return read_note(folder / NOTE).result not in (BUSY, INTERRUPTED)
    except (OSError, RecordError):
        return False
