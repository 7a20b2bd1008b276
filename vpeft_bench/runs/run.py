"""One run, top to bottom: config, backbone and data, method, training, evaluation, record."""

from __future__ import annotations

import functools
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.config import benchmarks
from vpeft_bench.config.schema import RunConfig, plain, trained_split
from vpeft_bench.config.sections import FeatureCache, Precision, Protocol, evaluated_split
from vpeft_bench.data.inspect_content import compare_content
from vpeft_bench.data.loading import Preprocessing
from vpeft_bench.errors import (
    ClaimedError,
    ClaimLostError,
    ConfigError,
    DamagedError,
    DivergedError,
    Problem,
    VpeftBenchError,
    told,
)
from vpeft_bench.files import sha256
from vpeft_bench.metric_names import METRICS
from vpeft_bench.records import run_record as records
from vpeft_bench.records.environment import processor_name
from vpeft_bench.records.run_record import RunRecord, Status
from vpeft_bench.runs import interruption
from vpeft_bench.runs.auto_batch import smaller_batches
from vpeft_bench.runs.batch_norm import share_statistics
from vpeft_bench.runs.build import (
    build_model,
    build_task,
    compile_in_place,
    device_of,
    head_parameters,
    head_state,
    own_gpu,
)
from vpeft_bench.runs.callbacks import Curves, MethodSteps, ProgressBar, StepSeed, StillOurs
from vpeft_bench.runs.checkpoint import EpochCheckpoint, Progress, WholeFiles, progress
from vpeft_bench.runs.claim import Claim, claimed
from vpeft_bench.runs.divergence import Divergence
from vpeft_bench.runs.evaluation import write_evaluation
from vpeft_bench.runs.feature_cache import (
    FeatureReader,
    TooLarge,
    describe,
    refusal,
    worth_keeping,
)
from vpeft_bench.runs.host import (
    device_is_lost,
    flush_denormals,
    forget_peak,
    free_device_memory,
    keep_freed_memory,
    out_of_memory,
    set_float32,
)
from vpeft_bench.runs.identified import Identified, identify, wants_predictions, why_skipped
from vpeft_bench.runs.loggers import open_sinks
from vpeft_bench.runs.predictions import store_again, storing
from vpeft_bench.runs.run_files import RunFiles
from vpeft_bench.runs.run_state import RunState, run_id
from vpeft_bench.runs.selection import RunData, select
from vpeft_bench.runs.team import MeanGradients, Team, assembled, placed
from vpeft_bench.tasks.base import Model, Task
from vpeft_bench.tasks.names import kind_of
from vpeft_bench.tensor_files import save_tensors
from vpeft_bench.terminal import Terminal

LIGHTNING_PRECISION = {
    Precision.fp32: "32-true",
    Precision.tf32: "32-true",
    Precision.bf16: "bf16-mixed",
    Precision.fp16: "16-mixed",
}
NO_PEAK_ON_CPU = (
    "the CPU has no allocator statistics; resident memory would count the whole process"
)


class Result(StrEnum):
    """What became of a run that was asked for."""

    DONE = "done"
    SKIPPED = "skipped"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """The answer to one request.

    Attributes:
        result: done now, skipped because done before, busy in another process, or failed.
        directory: the run directory; ``record.json`` lies there.
        record: what was recorded; None where another process is still at it.
        reason: why it was skipped or failed, or who is busy.
    """

    result: Result
    directory: Path
    record: RunRecord | None
    reason: str = ""


def run(config: RunConfig, console: Console, settled: Collection[str] = ()) -> Outcome:
    """Run what ``config`` asks for, unless its record exists.

    ``config`` has passed :func:`vpeft_bench.runs.validation.check`.

    Args:
        config: what is asked for.
        console: is told what happens.
        settled: outcomes of a record beside ``ok`` that are an answer: such a run is not tried
            again, and ending so raises nothing.

    Raises:
        VpeftBenchError: it failed; what is known of it is recorded.
        Interrupted: a signal ended it; likewise, and the same call goes on from there.
    """
    if (why := device_is_lost()) is not None:
        what = f"the GPU answers nothing more in this process, since an earlier run: {why}"
        raise VpeftBenchError(f"{what}. Start it again; what is finished is skipped")
    with interruption.interruptible():
        try:
            return _run(config, console, settled)
        except BrokenPipeError:  # of the terminal: the command line ends quietly
            raise
        except OSError as error:  # the disk is full, a folder read-only, a limit reached
            raise VpeftBenchError(told(error)) from error
        finally:
            free_device_memory()


def _run(config: RunConfig, console: Console, settled: Collection[str]) -> Outcome:
    asked = identify(config)
    config, dataset, directory = asked.config, asked.dataset, asked.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError) as error:
        what = f"cannot be written to: {error}"
        raise ConfigError([Problem(f"results_dir={config.results_dir}", what)]) from error
    files = RunFiles(directory, console)
    try:
        with claimed(directory / records.CLAIM, config.train.epochs) as claim:
            files.sweep()
            if config.rerun:
                files.forget_progress()
            elif (done := files.finished(settled)) is not None:
                if wants_predictions(config, done, directory):
                    _prepare(config)
                    said = store_again(config, dataset, done, directory)
                    _tell(console, f"predictions: stored by the weights of the finished run{said}")
                return Outcome(Result.SKIPPED, directory, done, why_skipped(directory, done))
            return _Run(asked, files, console, settled, claim).execute()
    except ClaimedError as error:
        reason = f"another process is working on this run: {error.holder}"
        return Outcome(Result.BUSY, directory, None, reason)
    except ClaimLostError as error:
        return Outcome(Result.BUSY, directory, None, str(error))


def follow(config: RunConfig, team: Team) -> None:
    """Compute what the leader of ``team`` computes, and write nothing.

    Args:
        config: as the leader runs it.
        team: this process is a helper of it.
    """
    _prepare(config)
    if device_of(config.hardware.accelerator).type == "cuda":
        torch.cuda.set_device(team.rank)
    asked, quiet = identify(config), Terminal(quiet=True)
    _Run(asked, RunFiles(asked.directory, quiet), quiet, team=team).compute()


def _begun(asked: Identified, files: RunFiles) -> RunState:
    """What is known of a run before its start."""
    config, dataset = asked.config, asked.dataset
    evaluated = evaluated_split(config.protocol.name)
    return RunState(
        run_id=run_id(asked.directory, config.results_dir),
        config_hash=asked.config_hash,
        asked=plain(config),
        variant=config.variant.name or asked.method.described(),
        uncounted=asked.uncounted,
        method_version=asked.method.version,
        weights_identity=asked.weights,
        data_fingerprint=dataset.fingerprint,
        data=asked.inspection.facts,
        labels=asked.notices,
        curves=Curves(files.metrics, []),
        eval_split=records.Split(evaluated),
        eval_images=len(dataset.split(evaluated)),
    )


class _Run:
    """The story of one run, and what has become known of it so far.

    Without a claim it is a helper's: nothing is written.
    """

    def __init__(
        self,
        asked: Identified,
        files: RunFiles,
        console: Console,
        settled: Collection[str] = (),
        claim: Claim | None = None,
        team: Team | None = None,
    ) -> None:
        self.config = asked.config
        self.dataset = asked.dataset
        self.state = _begun(asked, files)
        self.files = files
        self.directory = files.directory
        self.console = console
        self.settled = settled
        self.claim = claim
        self.team = team or Team()
        self.kind = kind_of(asked.config)
        self._scoring: Callable[[], bool] = lambda: False
        self.curves = self.state.curves

    def execute(self) -> Outcome:
        """Run to the end, and record how it ended."""
        try:
            model, task = self._execute()
            record = self._record(Status.OK, None)
        except BaseException as caught:  # whatever went wrong is recorded before it is shown
            return self._failed(caught)
        self.files.checkpoint.unlink(missing_ok=True)
        if self.config.predictions and self.config.hardware.devices > 1:
            # Each process has predicted a share; the files hold all pictures, in their order.
            self._tell("predictions: stored by the weights of the run, on one device")
            store_again(self.config, self.dataset, record, self.directory)
        if self.config.render:
            self._render(model, task)
        return Outcome(Result.DONE, self.directory, record)

    def _failed(self, caught: BaseException) -> Outcome:
        """Record what ended the run, and raise it again unless that is an answer."""
        with interruption.closing():
            if (signal := interruption.received()) is not None:
                # Whatever else was raised since, in tidying up, has this for its cause.
                caught = interruption.Interrupted(signal)
            if not self._claim.touch():  # nothing here is this process's to write any more
                raise caught
            status, error = _ending(caught)
            if isinstance(caught, DivergedError):
                what = records.Diverged(caught.quantity, caught.epoch, caught.step)
                self.state.diverged = what
                self.files.forget_progress()  # what led there is nothing to go on from
            record = None
            try:
                self.files.forget_results()
                record = self._record(status, error)
            except OSError as failure:
                self._tell(f"no record of it could be written: {told(failure)}")
        if status is Status.OOM or (record is not None and record.outcome in self.settled):
            return Outcome(Result.FAILED, self.directory, record, error)
        raise caught

    def _record(self, status: Status, error: str | None) -> RunRecord:
        self._claim.require()
        record = self.state.record(status, error)
        records.write(record, self.files.record)
        return record

    @property
    def _claim(self) -> Claim:
        assert self.claim is not None
        return self.claim

    def _execute(self) -> tuple[Model, Task]:
        for notice in self.state.labels:
            self._tell(f"note: {notice}")
        _prepare(self.config)
        while (done := self._attempt()) is None:
            free_device_memory()
        model, task = done
        self._store(model.attached, task)
        return model, task

    def _attempt(self) -> tuple[Model, Task] | None:
        """Compute; None where memory was not enough and the config is changed so that it may be."""
        try:
            with assembled(self.config.hardware.devices) as self.team:
                return self.compute()
        except Exception as error:
            hardware = self.config.hardware
            if not (hardware.auto_batch and out_of_memory(error)):
                raise
            smaller = smaller_batches(self.config, self.dataset, scoring=self._scoring())
            if smaller is None:
                raise
        self._tell(f"out of memory: going on with {smaller.said}")
        self.config = smaller.config
        self.state.asked = plain(self.config)
        self.curves = self.state.curves = Curves(self.files.metrics, [])
        return None

    def compute(self) -> tuple[Model, Task]:
        """Build, train and evaluate; on several devices each process does so."""
        self._scoring = lambda: False
        setup_start = time.perf_counter()
        model = build_model(self.config, self.dataset)
        self.state.setup_seconds = time.perf_counter() - setup_start
        if model.attached.method.selects:
            self._select(model)
        self.team.tell(self.config)  # what was selected lies there by now

        train_loader, eval_loader = self._loaders(model)
        sampler: Any = train_loader.sampler
        task = build_task(self.config, self.dataset, model, sampler.batches, sampler.share)
        self._scoring = lambda: task.scoring
        if self.team.size > 1:
            _require_combined(task, self.config)
            share_statistics(task)
        self._note_setup(model, task)
        if self.config.hardware.compile:
            compile_in_place(model.attached, any_size=self.kind.any_size)
        trainer = self._train(task, model.attached, train_loader, eval_loader)
        self._evaluate(trainer, task, eval_loader)
        return model, task

    def _select(self, model: Model) -> None:
        """Let the method look at training data before it is placed."""
        start = time.perf_counter()
        attached = model.attached
        name = attached.method.name
        self.console.print(f"{name}: looking at training data before training")
        device = device_of(self.config.hardware.accelerator)
        attached.model.to(device)
        data = RunData(
            self.config,
            self.dataset,
            model.preprocessing,
            device,
            self.files.selection_state,
        )
        select(attached, data, self.files)
        self.state.selection_seconds = time.perf_counter() - start

    # ---- the steps -----------------------------------------------------------------------------

    def _loaders(self, model: Model) -> tuple[DataLoader, DataLoader]:
        """Training and evaluation batches, as the protocol says: of pictures or of features."""
        train_split = trained_split(self.config)
        eval_split = evaluated_split(self.config.protocol.name)
        self._scoring = lambda: True  # as much at once as in an evaluation
        loaders = self._features(model, train_split, eval_split)
        if loaders is None:
            start = time.perf_counter()
            config, dataset, preprocessing = self.config, self.dataset, model.preprocessing
            batches = self.kind.batches
            train = batches(config, dataset, preprocessing, train_split, train=True)
            evaluation = batches(config, dataset, preprocessing, eval_split, train=False)
            self.state.data_seconds = time.perf_counter() - start
            loaders = train, evaluation
        sampler, team = cast(Any, loaders[0].sampler), self.team
        sampler.parts = self.config.hardware.accumulate * team.size
        sampler.rank, sampler.ranks = team.rank, team.size
        cast(Any, loaders[1].sampler).take(team.rank, team.size)
        on_gpu = device_of(self.config.hardware.accelerator).type == "cuda"
        for loader in loaders:  # a GPU takes batches by itself where they lie in pinned memory
            loader.pin_memory = on_gpu and not getattr(loader.dataset, "on_device", False)
        self._compare_content(train_split, eval_split, loaders)
        return loaders

    def _compare_content(
        self, train_split: str, eval_split: str, loaders: tuple[DataLoader, DataLoader]
    ) -> None:
        """Refuse evaluated pictures that are trained on under other names, or tell if allowed."""
        trained, evaluated = (cast(Any, loader.dataset).pixels for loader in loaders)
        splits = (train_split, trained), (eval_split, evaluated)
        found = compare_content(self.dataset, self.config.data, *splits)
        found.require_sound()
        for notice in found.notices:
            self._tell(f"note: {notice}")
            self.state.labels.append(notice)

    def _features(
        self, model: Model, train_split: str, eval_split: str
    ) -> tuple[DataLoader, DataLoader] | None:
        """Batches of frozen features, computed once; None where pictures are needed."""
        config = self.config
        if config.hardware.feature_cache is FeatureCache.off or not worth_keeping(model):
            return None
        start = time.perf_counter()
        reason = refusal(config, model)
        if reason is None:
            reader = FeatureReader(config, self.dataset, model, self._tell)
            try:
                reader.require_room((train_split, eval_split))
            except TooLarge as error:
                reason = str(error)
        if reason is not None:
            self.console.print(f"frozen features: not kept, {reason}")
            return None
        train, kept_train = reader.loader(train_split, train=True)
        evaluation, kept_evaluation = reader.loader(eval_split, train=False)
        kept = (kept_train, kept_evaluation)
        self.state.features_seconds = time.perf_counter() - start
        self.state.frozen_features = records.FrozenFeatures(
            list(reader.names),
            config.hardware.feature_cache.value,
            config.hardware.feature_cache_dtype.value,
            sum(part.bytes for part in kept) * reader.times,
            all(part.found for part in kept),
        )
        what = describe(kept, reader.names, config)
        self.console.print(f"frozen features: {what}")
        return train, evaluation

    def _train(
        self,
        task: Task,
        attached: Attached,
        train_loader: DataLoader,
        eval_loader: DataLoader,
    ) -> pl.Trainer:
        """Train, resuming from the last whole epoch where a checkpoint lies."""
        validate = self.config.protocol.name is Protocol.select
        device = device_of(self.config.hardware.accelerator)
        self.team.join(device)
        resumes = self._resume(task, train_loader)
        if self.team.leads:
            self.curves.sinks = open_sinks(
                self.config.logger, self.directory, self.state.run_id, self.state.asked
            )
        place = placed(self.team, device)
        trainer = pl.Trainer(
            accelerator=device.type,
            precision=LIGHTNING_PRECISION[self.config.hardware.precision],  # type: ignore[arg-type]
            max_epochs=self.config.train.epochs,
            gradient_clip_val=self.config.train.clip_norm,
            accumulate_grad_batches=self.config.hardware.accumulate,
            limit_val_batches=1.0 if validate else 0,
            num_sanity_val_steps=0,
            callbacks=[
                # Before anything is written of a step or an epoch.
                *([] if self.claim is None else [StillOurs(self.claim)]),
                *([] if self.team.size == 1 else [MeanGradients(self.team)]),
                StepSeed(self.config.seed),
                MethodSteps(attached),
                Divergence(),  # before anything is kept of an epoch
                self.curves,
                EpochCheckpoint(self.files.checkpoint, self.config.hardware.checkpoint_minutes),
                ProgressBar(
                    self.console, f"{self.config.method['name']} on {self.config.data.name}"
                ),
            ],
            **{**place, "plugins": [WholeFiles(), *place["plugins"]]},
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.directory,
        )
        device = trainer.strategy.root_device
        self.state.device = _named(device, self.team.size)
        self.state.threads = torch.get_num_threads()
        if device.type == "cuda":
            forget_peak(device)
        try:
            trainer.fit(
                task,
                train_loader,
                eval_loader if validate else None,
                ckpt_path=self.files.checkpoint if resumes else None,
            )
        finally:
            for sink in self.curves.sinks:
                sink.close()
        if device.type == "cuda":
            peaks = self.team.gather(self.curves.peak_memory)
            self.state.peak_memory_bytes = max((p for p in peaks if p is not None), default=None)
        else:
            self.state.peak_memory_note = NO_PEAK_ON_CPU
        return trainer

    def _resume(self, task: Task, train_loader: DataLoader) -> bool:
        """Whether a sound checkpoint lies there; the loader then starts in the epoch after it.

        Lightning starts the loader's processes, which read ahead, before it tells the sampler which
        epoch comes first.
        """
        done = self.team.of_leader(self._done_before(task) if self.team.leads else Progress())
        sampler: Any = train_loader.sampler
        sampler.go_on(done.epochs, done.parts)
        return bool(done)

    def _done_before(self, task: Task) -> Progress:
        """How far the checkpoint is; not at all where there is no sound one."""
        try:
            return progress(self.files.checkpoint, task, self.config.hardware.accumulate)
        except FileNotFoundError:
            return Progress()
        except DamagedError as error:
            self.files.set_aside(error.path, error.what)
            return Progress()

    def _evaluate(self, trainer: pl.Trainer, task: Task, loader: DataLoader) -> None:
        """Score the last epoch; under ``protocol=select`` also name the best validation epoch."""
        start = time.perf_counter()
        split = self.state.eval_split
        stored: AbstractContextManager[None] = nullcontext()
        if self.config.predictions and self.team.size == 1:
            stored = storing(task, self.config, self.dataset, split, self.directory)
        with stored:
            trainer.test(task, loader, verbose=False)
        if not self.team.leads:
            return
        if not self.config.predictions:
            self.files.forget_predictions()
        self.curves.eval_seconds += time.perf_counter() - start
        epochs = self.config.train.epochs
        values = task.metrics()
        self.state.last_epoch = self.state.metrics(epochs, values)
        for doubt in task.doubts():
            self.state.labels.append(doubt)
            self._tell(f"note: {doubt}")
        if self.config.protocol.name is Protocol.select:
            headline = next(iter(values))
            gain = METRICS.get(headline).gain
            curve = [
                -math.inf if math.isnan(value) else gain(value)
                for value in self.curves.curves[f"val_{headline}"]
            ]
            best = max(range(len(curve)), key=curve.__getitem__)  # the earliest of equals
            self.state.selected_epoch = self.state.metrics(
                best + 1, {name: self.curves.curves[f"val_{name}"][best] for name in values}
            )

    def _store(self, attached: Attached, task: Task) -> None:
        """Delta, head, and what the score is made of, on the disk before the record."""
        self._claim.require()
        files = self.files
        files.record.unlink(missing_ok=True)  # an old one vouches for the files that go now
        attached.save(files.delta)
        save_tensors(head_state(attached, task.model), files.head)
        assert self.state.last_epoch is not None
        write_evaluation(task, self.dataset, self.state.last_epoch, files.evaluation)
        sizes = (files.delta.stat().st_size, files.head.stat().st_size)
        self.state.stored_bytes = records.StoredBytes(*sizes)
        stored = (files.delta, files.head, files.evaluation)
        self.state.checksums = {path.name: sha256(path) for path in stored}

    def _render(self, model: Model, task: Task) -> None:
        """Draw what the task predicts beside the truth; the run counts without it."""
        from vpeft_bench.runs.shown import FILE, draw

        split, path = self.state.eval_split, self.directory / FILE
        try:
            draw(self.config, self.dataset, split, model, task, path)
            self.console.print(f"pictures:    {path}", soft_wrap=True)
        except Exception as error:  # the record is written: no picture may cost it
            self.console.print(f"no pictures: {_one_line(error)}", soft_wrap=True)

    # ---- what is known -------------------------------------------------------------------------

    def _note_setup(self, model: Model, task: Task) -> None:
        backbone, attached, preprocessing = model.loaded, model.attached, model.preprocessing
        demo = backbone.source.kind == "package"
        random = backbone.source.kind == "none"
        label = records.WeightsLabel.PRETRAINED
        if random:
            label = records.WeightsLabel.RANDOM
            self.state.labels.append("random weights")
        elif demo:
            label = records.WeightsLabel.DEMO
        if demo:
            self.state.labels.append("demo backbone")
        benchmark = benchmarks.find(self.config.data.benchmark)
        if benchmark is not None and benchmark.demo:
            self.state.labels.append("demo data")
        published, here = self.config.data.test_size, len(self.dataset.split("test"))
        if published is not None and published != here:
            self.state.labels.append(f"test split of {here:,} images, published {published:,}")
        notes = f" ({'; '.join(backbone.notes)})" if backbone.notes else ""
        self.state.weights = records.Weights(
            None if random else f"{backbone.source.name}{notes}",
            attached.base_fingerprint(),
            label,
            self.state.weights_identity,
        )
        self.state.preprocessing = records.Preprocessing(
            list(preprocessing.mean),
            list(preprocessing.std),
            preprocessing.interpolation,
            None if preprocessing.image_size is None else list(preprocessing.image_size),
            *(preprocessing.sides or (None, None)),
        )
        head = sum(p.numel() for p in head_parameters(attached, task.model) if p.requires_grad)
        method = sum(p.numel() for p in attached.trainable_parameters())
        everything = sum(p.numel() for p in task.model.parameters())
        self.state.parameters = records.Parameters(method, head, method + head, everything)
        self.console.print(
            f"input {_size(preprocessing)}, "
            f"{preprocessing.interpolation}, mean {_short(preprocessing.mean)}, "
            f"std {_short(preprocessing.std)} ({self.config.data.normalization.value}); "
            f"weights: {backbone.source.name}{notes}",
            soft_wrap=True,
        )

    def _tell(self, text: str) -> None:
        _tell(self.console, text)


def _size(preprocessing: Preprocessing) -> str:
    """The input's size in words."""
    if preprocessing.sides is not None:
        return f"of any size up to {preprocessing.sides[1]} pixels"
    height, width = preprocessing.height_and_width
    return f"{height}x{width}"


def _prepare(config: RunConfig) -> None:
    """Set the process up for computing: the same numbers as every other run of ``config``."""
    _quiet_lightning()
    _quick_device_checks()
    keep_freed_memory()
    flush_denormals()
    set_float32(config.hardware.precision)
    if (gpu := own_gpu(config.hardware)) is not None:
        torch.cuda.set_device(gpu)
    every = _own_threads()  # the processes of several devices share them
    threads = config.hardware.threads or max(1, every // config.hardware.devices)
    torch.set_num_threads(threads)
    pl.seed_everything(config.seed, verbose=False)


def _require_combined(task: Task, config: RunConfig) -> None:
    """Refuse a task whose scores of several devices cannot be put together.

    Raises:
        ConfigError
    """
    if type(task).combine is Task.combine:
        where = f"task={config.task['name']} hardware.devices={config.hardware.devices}"
        what = f"{type(task).__name__} has no scored() and combine() for what each device scored"
        raise ConfigError([Problem(where, what, "hardware.devices=1")])


def _named(device: torch.device, count: int) -> str:
    """What a record calls the devices of a run."""
    if device.type == "cuda":
        return f"{count} x " * (count > 1) + torch.cuda.get_device_name(device)
    return processor_name() + f", {count} processes" * (count > 1)


@functools.cache
def _own_threads() -> int:
    """Torch's own choice, before any run has made another."""
    return torch.get_num_threads()


def _tell(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)


def _quick_device_checks() -> None:
    """Without a GPU, let ``torch.cuda.is_available()`` answer from memory.

    Lightning has it load the driver's library each time, so that asking starts nothing on a GPU;
    optimizers ask in every step.
    """
    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def _quiet_lightning() -> None:
    """Lightning advises people who write training loops, not people who run this one."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*|lightning_fabric\..*")


def _ending(caught: BaseException) -> tuple[Status, str]:
    """How a run ended that raised ``caught``, and why."""
    if isinstance(caught, interruption.Interrupted):
        return Status.INTERRUPTED, str(caught)
    if isinstance(caught, KeyboardInterrupt | SystemExit):  # of a handler that is not ours
        return Status.INTERRUPTED, f"interrupted: {_one_line(caught)}"
    if isinstance(caught, BrokenPipeError):
        return Status.INTERRUPTED, f"interrupted: {caught.strerror}"
    if out_of_memory(caught):
        return Status.OOM, _one_line(caught)
    if isinstance(caught, DivergedError):
        return Status.FAILED, str(caught)
    return Status.FAILED, _one_line(caught)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _short(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)
