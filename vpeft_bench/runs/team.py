"""One run on several devices: a process for each of them, and what they tell each other.

The process that was asked for the run leads. It starts the others itself, in a session of their
own, so that a run is started in the same way everywhere: by the command line, as a job of a sweep,
under a scheduler, or from Python. Helpers (:mod:`vpeft_bench.runs.helper`) compute their share of
every batch and write nothing. They end with their leader, and a leader ends where it lost one.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import distributed, nn
from torch._C._distributed_c10d import TCPStore

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.runs.host import out_of_memory

HERE = "127.0.0.1"
WAIT = timedelta(hours=12)
"""Of one process for another, which may be evaluating; one that has gone is noticed at once."""
GRACE = 20.0
"""Seconds in which a process is to notice by itself that another has gone."""
_BUCKET = 16 * 2**20  # numbers that are averaged at once

T = TypeVar("T")


class Team:
    """The processes of one run; by itself, those of a run on one device.

    Attributes:
        rank: of this process; the leader's is 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written."""
        return self.rank == 0

    def tell(self, config: RunConfig) -> None:
        """Let the helpers prepare what ``config`` asks for, while this process does so as well."""

    def join(self, device: torch.device) -> None:
        """Wait until all are ready to compute; this process does so on ``device``."""

    def gather(self, value: T) -> list[T]:
        """What each process gives, in the order of their ranks; to be called by all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def of_leader(self, value: T) -> T:
        """What the leader gives; to be called by all of them."""
        values: list[Any] = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values, src=0)
        result: T = values[0]
        return result

    def finish(self) -> None:
        """Part at the end of a run that went well."""
        if self.size > 1:
            distributed.destroy_process_group()

    def cause(self, error: BaseException) -> BaseException:
        """What was really wrong where ``error`` was raised here."""
        return error


class _Leader(Team):
    def __init__(self, size: int) -> None:
        super().__init__(0, size)
        self._over = threading.Event()
        self._store: Any = None
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-m", "vpeft_bench.runs.helper"]
        self._helpers = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,  # signals of the terminal are the leader's
            )
            for _ in range(1, size)
        ]

    def tell(self, config: RunConfig) -> None:
        self._store = TCPStore(
            HERE, 0, self.size, is_master=True, timeout=WAIT, wait_for_workers=False
        )
        for rank, helper in enumerate(self._helpers, start=1):
            assert helper.stdin is not None
            with suppress(BrokenPipeError):  # it has ended, which is told below
                pickle.dump((config, rank, self.size, self._store.port), helper.stdin)
                helper.stdin.flush()

    def join(self, device: torch.device) -> None:
        keys = [_ready(rank) for rank in range(1, self.size)]
        while not self._store.check(keys):
            if (lost := self._lost()) is not None:
                raise lost
            time.sleep(0.05)
        _meet(self._store, device, 0, self.size)
        threading.Thread(target=self._watch, name="team", daemon=True).start()

    def finish(self) -> None:
        for helper in self._helpers:
            helper.wait()
        super().finish()

    def cause(self, error: BaseException) -> BaseException:
        """The error of a helper, where that is why it cannot be reached any more."""
        if not isinstance(error, RuntimeError) or out_of_memory(error):
            return error
        deadline = time.monotonic() + GRACE / 2
        while (lost := self._lost()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return lost or error

    def close(self) -> None:
        """Leave nobody."""
        self._over.set()
        for helper in self._helpers:
            helper.kill()
            helper.wait()
            with suppress(OSError):
                if helper.stdin is not None:
                    helper.stdin.close()
        if distributed.is_initialized():  # something went wrong: nobody answers any more
            with suppress(RuntimeError):
                distributed.destroy_process_group()

    def _lost(self) -> BaseException | None:
        """Why a helper has ended before its time; None where all are there, or have finished."""
        for rank, helper in enumerate(self._helpers, start=1):
            if self._store is not None and self._store.check([_failed(rank)]):
                error: BaseException = pickle.loads(self._store.get(_failed(rank)))
                return error
            if status := helper.poll():
                how = f"exit status {status}"
                if status < 0:
                    how = signal.Signals(-status).name
                return VpeftBenchError(
                    f"the process of device {rank} (of 0 to {self.size - 1}) was ended by {how}; "
                    "the same command goes on from the last checkpoint"
                )
        return None

    def _watch(self) -> None:
        """End this process where it waits for a helper that has gone, and would for hours."""
        while not self._over.wait(0.5):
            if any(helper.poll() for helper in self._helpers) and not self._over.wait(GRACE):
                print(f"error: {self._lost()}", file=sys.stderr, flush=True)
                os._exit(1)


@contextmanager
def assembled(devices: int) -> Iterator[Team]:
    """The team of a run on ``devices`` devices, led by this process.

    Raises:
        VpeftBenchError: a helper failed; it is the helper's error.
    """
    if devices == 1:
        yield Team()
        return
    leader = _Leader(devices)
    try:
        yield leader
        leader.finish()
    except Exception as error:
        if (cause := leader.cause(error)) is not error:
            raise cause from error
        raise
    finally:
        leader.close()


class Helper(Team):
    """A helper's side of a team.

    Args:
        port: where its leader listens.
    """

    def __init__(self, rank: int, size: int, port: int) -> None:
        super().__init__(rank, size)
        self._store: Any = TCPStore(HERE, port, size, is_master=False, timeout=WAIT)

    def join(self, device: torch.device) -> None:
        """Wait for all others."""
        self._store.set(_ready(self.rank), "")
        _meet(self._store, device, self.rank, self.size)

    def failed(self, error: BaseException) -> None:
        """Tell the leader why this process ends."""
        try:
            content = pickle.dumps(error)
            pickle.loads(content)  # of an error that cannot be made again
        except Exception:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            content = pickle.dumps(VpeftBenchError(f"device {self.rank}: {what}"))
        self._store.set(_failed(self.rank), content)


def _ready(rank: int) -> str:
    return f"ready/{rank}"


def _failed(rank: int) -> str:
    return f"failed/{rank}"


def _meet(store: Any, device: torch.device, rank: int, size: int) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)


# ---- training together ---------------------------------------------------------------------------


class _OneMachine(ClusterEnvironment):
    """What Lightning asks about the processes; it starts none."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return HERE

    @property
    def main_port(self) -> int:
        return 0  # the processes have met already

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.team.size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self.team.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self.team.rank

    def node_rank(self) -> int:
        return 0


class _DataParallel(DDPStrategy):
    """Data parallel training without the wrapper that averages gradients as they come.

    What is trained is small here, so that there is little to overlap. Methods freeze parameters in
    the middle of training and heads leave some unused, for which that wrapper has no answer:
    :class:`MeanGradients` averages what there is.
    """

    def setup(self, trainer: pl.Trainer) -> None:
        """As on one device: every process has the same model already, all of it."""
        Strategy.setup(self, trainer)

    def _setup_model(self, model: Any) -> Any:
        return model

    def _configure_launcher(self) -> None:
        """All processes are there."""


def placed(team: Team, device: torch.device) -> dict[str, Any]:
    """What Lightning's trainer is told of the devices; ``device`` is this process's."""
    environment = _OneMachine(team)
    if team.size == 1:
        return {
            "devices": [device.index or 0] if device.type == "cuda" else 1,
            "plugins": [environment],
        }
    strategy = _DataParallel(cluster_environment=environment, timeout=WAIT)
    return {"devices": team.size, "strategy": strategy, "plugins": []}


class MeanGradients(pl.Callback):
    """Averages the gradients of all processes, once for each step of the optimizer.

    Every process weights its part of a batch by its share, see
    :meth:`vpeft_bench.data.loading.EpochSampler.share`: the mean is that of the whole batch.
    """

    def __init__(self, team: Team) -> None:
        self.team = team
        self._last_part = False
        self._seen: set[nn.Parameter] = set()
        self._unused: set[nn.Parameter] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the leader's values; frozen weights are the same files everywhere."""
        changing: Any = pl_module.changing  # type: ignore[operator]
        for tensor in changing().values():
            distributed.broadcast(tensor.detach(), src=0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Of a batch in parts, the last one completes the gradients."""
        self._last_part = (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Average, before anything looks at the gradients: clipping, or the scaler of fp16."""
        if self._last_part:
            groups = trainer.optimizers[0].param_groups
            self.average([p for group in groups for p in group["params"] if p.requires_grad])

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of ``parameters``, which are the same on every process.

        A parameter that no process has used keeps having none. Which are used is agreed upon in
        the first step, and whenever others are trained than before: asking in every step would wait
        for the device.
        """
        if new := [place for place, p in enumerate(parameters) if p not in self._seen]:
            used = [place for place in new if parameters[place].grad is not None]
            agreed = {place for places in self.team.gather(used) for place in places}
            self._seen |= {parameters[place] for place in new}
            self._unused |= {parameters[place] for place in new if place not in agreed}
        for parameter in self._unused:
            if parameter.grad is not None:
                raise RuntimeError("a parameter is used that no process used in the first step")
        for some in _buckets([p for p in parameters if p not in self._unused]):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
            flat = torch.cat([grad.flatten() for grad in grads])
            distributed.all_reduce(flat)
            flat /= self.team.size
            for parameter, mean in zip(some, flat.split([p.numel() for p in some]), strict=True):
                parameter.grad = mean.view_as(parameter)


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type, some at a time."""
    some: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in some) + parameter.numel() > _BUCKET
        if some and (full or parameter.dtype != some[0].dtype):
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some
