"""The bars on whole runs and whole processes."""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from speed.harness import (
    accelerator,
    bare_epochs,
    config_of,
    finished_run,
    harness_epochs,
    noise_pictures,
    vit_b16,
)
from speed.measure import Measure, Row, Settings, interleaved, ratios, seconds_of
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import FeatureCache
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import Memory
from vpeft_bench.records.run_record import RunRecord, read
from vpeft_bench.runs import feature_store


def linear_cached(settings: Settings) -> list[Row]:
    """Linear probing, 100 epochs on 1,000 pictures, with and without kept features."""
    return _cached("linear", 40.0, settings)


def lst_cached(settings: Settings) -> list[Row]:
    """LST, 100 epochs on 1,000 pictures, with and without kept features."""
    return _cached("lst", 2.5, settings)


def last_cached(settings: Settings) -> list[Row]:
    """LAST, 100 epochs on 1,000 pictures, with and without kept features."""
    return _cached("last", 2.5, settings)


def _cached(method: str, bar: float, settings: Settings) -> list[Row]:
    with TemporaryDirectory() as folder:
        config = config_of(
            settings,
            f"method={method}",
            *embedded(settings, Path(folder)),
            f"train.epochs={2 if settings.quick else 100}",
            "train.batch_size=64",  # of the published protocol
        )
        configs = {
            "uncached": _with_cache(config, FeatureCache.off),
            "cached": _with_cache(config, FeatureCache.memory),
        }
        records: dict[str, RunRecord] = {}

        def run(name: str, fill: bool) -> float:
            if fill:
                feature_store.forget()

            def action() -> None:
                records[name] = finished_run(configs[name])

            return seconds_of(action, settings.device)

        for name in configs:  # what only the first run of a process does
            finished_run(replace(configs[name], train=replace(config.train, epochs=1)))
        found: dict[str, list[float]] = {"uncached": [], "cached": [], "cached already": []}
        for repeat in range(settings.repeats):
            if repeat < settings.slow_repeats:
                found["uncached"].append(run("uncached", False))
            found["cached"].append(run("cached", True))
            found["cached already"].append(run("cached", False))
        feature_store.forget()
    top1 = ", ".join(f"{name} {_top1(record):.2f} %" for name, record in records.items())
    note = (
        f"demo_vit, {config.data.name}, {config.train.epochs} epochs, batch 64, fp32; top-1: {top1}"
    )
    return [
        Row(
            name,
            f"time of a run uncached / time of one {name}",
            ratios(found["uncached"], found[name]),
            at_least=settings.bar(bar) if name == "cached" else None,
            sides={f"{side} [s]": found[side] for side in ("uncached", name)},
            note=note,
        )
        for name in ("cached", "cached already")
    ]


def embedded(settings: Settings, folder: Path) -> list[str]:
    """The embedded backbone and data, 1,000 pictures to train on; a few where it must be quick."""
    common = [f"results_dir={folder}/runs", "rerun=true", "backbone=demo_vit"]
    return [*common, *(noise(folder, 8, 32) if settings.quick else ["data=demo/digits"])]


def noise(folder: Path, count: int, side: int) -> list[str]:
    """The overrides for a data set of ``count`` meaningless pictures."""
    pictures = folder / f"{count}_pictures_of_{side}"
    pictures.mkdir(exist_ok=True)
    noise_pictures(pictures, count, side)
    return ["data=imagelist", f"data.root={pictures}"]


def _with_cache(config: RunConfig, cache: FeatureCache) -> RunConfig:
    return replace(config, hardware=replace(config.hardware, feature_cache=cache))


def _top1(record: RunRecord) -> float:
    scored = record.happened.last_epoch
    assert scored is not None
    top1 = scored.values["top1"]
    assert top1 is not None
    return top1


EPOCH_METHODS = ("linear", "lst", "lora", "ssf", "full")


def hundred_epochs(settings: Settings) -> list[Row]:
    """100 epochs on 1,000 pictures with ViT-B/16, whole runs of five methods; hours on a CPU."""
    rows = []
    with TemporaryDirectory() as folder:
        epochs, pictures = (2, 8) if settings.quick else (100, 1000)
        data = noise(Path(folder), pictures, 32 if settings.quick else 224)
        for method in EPOCH_METHODS:
            config = config_of(
                settings,
                *vit_b16(settings),
                *data,
                f"method={method}",
                *(f"results_dir={folder}/runs", "rerun=true", f"train.epochs={epochs}"),
                *("train.batch_size=64", "hardware.feature_cache_gib=16"),
                *([] if settings.device.type == "cpu" else ["hardware.precision=bf16"]),
            )

            def whole(config: RunConfig = config) -> None:
                feature_store.forget()
                finished_run(config)

            seconds = [seconds_of(whole, settings.device) for _ in range(settings.slow_repeats)]
            what = f"{epochs} epochs, {pictures:,} pictures, batch 64"
            quantity = "time of a whole run, features kept where they can be"
            precision = config.hardware.precision.value
            rows.append(Row(method, quantity, seconds, unit="s", note=f"{what}, {precision}"))
    return rows


def harness_vs_bare(settings: Settings) -> list[Row]:
    """Training as the harness runs it against a bare loop over the same batches and steps."""
    with TemporaryDirectory() as folder:
        small = config_of(
            settings,
            "method=lora",
            *embedded(settings, Path(folder)),
            f"train.epochs={2 if settings.quick else 5}",
            "train.batch_size=64",
        )
        large = config_of(
            settings,
            "method=lora",
            f"results_dir={folder}/runs",
            "rerun=true",
            *vit_b16(settings),
            *noise(Path(folder), 4 * settings.batch_size, 32 if settings.quick else 224),
            f"train.epochs={2 if settings.quick else 4}",
            f"train.batch_size={settings.batch_size}",
        )
        return [
            _against_bare("demo_vit", _with_cache(small, FeatureCache.off), 1.03, settings),
            _against_bare("ViT-B/16", _with_cache(large, FeatureCache.off), 1.01, settings),
        ]


def _against_bare(name: str, config: RunConfig, bar: float, settings: Settings) -> Row:
    sides: dict[str, Measure] = {
        "harness": lambda: harness_epochs(config),
        "bare loop": lambda: bare_epochs(config, settings.device),
    }
    finished_run(replace(config, train=replace(config.train, epochs=1)))  # the first run's imports
    found = interleaved(sides, settings.repeats)
    return Row(
        name,
        "time of an epoch in the harness / in the bare loop",
        ratios(found["harness"], found["bare loop"]),
        at_most=settings.bar(bar),
        sides={f"{side} [s]": seconds for side, seconds in found.items()},
        note=f"LoRA, batch {config.train.batch_size}, {config.train.epochs - 1} epochs after the "
        "first, fp32",
    )


SIDE_METHODS = ("lst", "last", "e3va")


def memory_side(settings: Settings) -> list[Row]:
    """Memory of a training step of side networks and linear probing, over full fine-tuning."""
    batch = 2 if settings.quick else 32
    methods = ("full", "lst") if settings.quick else ("full", *SIDE_METHODS, "linear")
    found: dict[str, list[Memory]] = {method: [] for method in methods}
    for _ in range(settings.slow_repeats):
        for method in methods:
            found[method].append(_memory(settings, method, batch))
    peaks = {m: [float(memory.peak or math.nan) for memory in found[m]] for m in methods}
    saved = {m: [float(memory.saved_for_backward) for memory in found[m]] for m in methods}
    kind = "growth of resident memory" if settings.device.type == "cpu" else "allocated"
    return [
        Row(
            f"{method}, {what}",
            f"{what} of {method} / of full",
            ratios(of_bytes[method], of_bytes["full"]),
            at_most=bar if method in SIDE_METHODS else None,
            sides={f"{m} [MiB]": [b / 2**20 for b in of_bytes[m]] for m in ("full", method)},
            note=f"batch {batch}, fp32, {explained}",
        )
        for what, of_bytes, bar, explained in (
            ("peak memory", peaks, settings.bar(0.35), f"{kind}, a fresh process each"),
            ("saved for backward", saved, None, "tensors that autograd keeps"),
        )
        for method in methods[1:]
    ]


def _memory(settings: Settings, method: str, batch: int) -> Memory:
    """As ``python -m vpeft_bench cost`` measures it, with next to no time spent on the rest."""
    with TemporaryDirectory() as folder:
        command = (
            *("cost", f"method={method}", *vit_b16(settings), f"cost.batch_size={batch}"),
            *("cost.warmup_steps=1", "cost.steps=1", "cost.blocks=1"),
            *("cost.inference_batch_size=1", "cost.allow_busy=true"),
            *(f"cost.results_dir={folder}", accelerator(settings)),
        )
        seconds_until(None, command, folder)
        ((_, card),) = cards.find([Path(folder)]).cards
    assert card.measured is not None, card.error
    return card.measured.memory


def start_up(settings: Settings) -> list[Row]:
    """How long the command line takes to the first training step, and to its help."""
    with TemporaryDirectory() as folder:
        run = ("train.epochs=1", accelerator(settings), "rerun=true")
        sides: dict[str, Measure] = {
            "first training step": lambda: seconds_until("steps per epoch", run, folder),
            "--help": lambda: seconds_until(None, ("--help",), folder),
        }
        for measure in sides.values():  # the files are read from disk once
            measure()
        found = interleaved(sides, settings.repeats)
    bars = {"first training step": 8.0, "--help": 1.5}
    return [
        Row(
            name,
            "seconds from the start of the process",
            seconds,
            unit="s",
            at_most=settings.bar(bars[name]),
            note="files in the system's cache",
        )
        for name, seconds in found.items()
    ]


def seconds_until(text: str | None, arguments: Sequence[str], folder: str) -> float:
    """Seconds from starting ``python -m vpeft_bench`` until it prints ``text``, or ends.

    The process is stopped there. The line is printed when training starts, before the first
    step.
    """
    command = [sys.executable, "-m", "vpeft_bench", *arguments]
    lines = []
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if text is not None and text in line:
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    if text is not None or process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{''.join(lines)}")
    return time.perf_counter() - start


SHORT_METHODS = ("linear", "lora", "bitfit", "ssf", "adapter", "ln_tune", "fact_tk", "repadapter")


def short_runs(settings: Settings) -> list[Row]:
    """A sweep of 40 short runs against a shell loop of 40 processes."""
    methods, seeds = (SHORT_METHODS[:1], 2) if settings.quick else (SHORT_METHODS, 5)
    sides = {"processes": short_processes, "one sweep": short_sweep}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    overheads: list[float] = []
    for _ in range(settings.slow_repeats):
        for name, side in sides.items():
            with TemporaryDirectory() as folder:
                before = _cpu_seconds()
                wall[name].append(side(settings, methods, seeds, folder))
                cpu[name].append(_cpu_seconds() - before)
                if name == "one sweep":
                    overheads.append(statistics.median(_overheads(Path(folder))))
    count = len(methods) * seeds
    what = f"{count} runs of 1 epoch of 4 pictures per class, 1 thread"
    note = f"demo_vit, demo/digits, {what}: {', '.join(methods)}"
    return [
        *(
            Row(
                what,
                f"{what} of {count} processes / of one sweep",
                ratios(found["processes"], found["one sweep"]),
                at_least=bar,
                sides={f"{side} [s]": seconds for side, seconds in found.items()},
                note=note,
            )
            for what, found, bar in (
                ("wall time", wall, settings.bar(2.0)),
                ("processor time", cpu, None),
            )
        ),
        Row(
            "overhead of a run",
            "seconds of a run of the sweep after the first, beside training and evaluation",
            overheads,
            unit="s",
            at_most=settings.bar(1.5),
            note="median over the runs of a sweep",
        ),
    ]


def short_processes(settings: Settings, methods: Sequence[str], seeds: int, folder: str) -> float:
    """Seconds of a process for each run, one after the other."""
    runs = [(f"method={method}", f"seed={seed}") for method in methods for seed in range(seeds)]
    return sum(seconds_until(None, (*_short(settings), *run), folder) for run in runs)


def short_sweep(settings: Settings, methods: Sequence[str], seeds: int, folder: str) -> float:
    """Seconds of the same runs as a sweep of one process."""
    swept = (f"method={','.join(methods)}", f"seed=range(0,{seeds})")
    return seconds_until(None, ("-m", *_short(settings), *swept), folder)


def _short(settings: Settings) -> tuple[str, ...]:
    few = ("data=demo/digits", "data.per_class=4", "train.epochs=1")
    return (*few, "hardware.threads=1", accelerator(settings))


def _cpu_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _overheads(folder: Path) -> list[float]:
    """Of each run of a sweep but the first: seconds beside training and evaluation."""
    found = []
    for ended in folder.glob("results/runs/sweeps/*/*/outcome.json"):
        if ended.parent.name == "0":
            continue
        begun, note = ended.with_name("job.json"), json.loads(ended.read_bytes())
        spent = read(folder / note["file"]).happened.seconds
        worked = (spent.train or 0) + (spent.eval or 0)
        found.append(ended.stat().st_mtime - begun.stat().st_mtime - worked)
    return found


ITEMS = (
    linear_cached,
    lst_cached,
    last_cached,
    harness_vs_bare,
    memory_side,
    start_up,
    short_runs,
    hundred_epochs,
)
