"""Everything that a first GPU can tell of this project, in one call of under eight minutes.

    python scripts/check_gpu.py                  # all of it
    python scripts/check_gpu.py tests resume     # some of it
    python scripts/check_gpu.py --device cpu     # does the script work? what it can, without a GPU

Each check has a time budget and goes on after a failure. Its rows are written to
``results/check_gpu/<device>.jsonl`` as they come, and shown as one table at the end. Needs no
network: the embedded backbone and data, and random weights. Every run has ``rerun=true``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
LOSS_WITHIN = {"fp32": 0.002, "tf32": 0.005, "bf16": 0.02, "fp16": 0.02}
"""Relative difference of the first epoch's training loss to that of the CPU in fp32.

Later ones differ by more, as training carries small differences on: in three epochs bf16 went from
0.04 to 16 % on a CPU, and scored better.
"""
QUICK = ("data=demo/digits", "train.epochs=3", "rerun=true")


@dataclass(frozen=True)
class Row:
    """What was found.

    Attributes:
        check: which one.
        what: of it.
        found: in words.
        passed: whether that is right; None where there is nothing to judge.
        seconds: that it took.
    """

    check: str
    what: str
    found: str
    passed: bool | None
    seconds: float


class Bench:
    """Where and how long is measured."""

    def __init__(self, device: str, out: Path) -> None:
        self.device = device
        self.out = out
        self.deadline = 0.0
        self.where = ("hardware=gpu", "hardware.precision=fp32")
        if device == "cpu":
            self.where = ("hardware=cpu",)

    @property
    def on_gpu(self) -> bool:
        """Whether there is one."""
        return self.device == "cuda"

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A process; what takes longer than is left to its check is killed, which is a failure."""
        left = max(1.0, self.deadline - time.monotonic())
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        try:
            return subprocess.run(
                [sys.executable, *arguments],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                cwd=REPOSITORY,
                timeout=left,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(arguments, 124, "", "out of time")

    def run(self, name: str, *overrides: str) -> tuple[dict[str, Any] | None, str]:
        """A run of the command line: its record, or None and why there is none."""
        results = self.out / "runs" / name
        done = self.call("-m", "vpeft_bench", *overrides, f"results_dir={results}")
        if done.returncode != 0:
            return None, _last_line(done)
        records = sorted(results.rglob("record.json"), key=lambda path: path.stat().st_mtime)
        return json.loads(records[-1].read_text()), ""


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


Found = Iterator[tuple[str, str, bool | None]]


def check_place(bench: Bench) -> Found:
    """What is there: versions, devices, switches of arithmetic, memory shared by processes."""
    code = (
        "import json, os, shutil, torch; cuda = torch.cuda.is_available();"
        "p = torch.cuda.get_device_properties(0) if cuda else None;"
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda or 'none',"
        "'devices': torch.cuda.device_count(), 'name': p.name if p else 'CPU',"
        "'GiB': round(p.total_memory / 2**30) if p else 0,"
        "'TF32 products': torch.backends.cuda.matmul.allow_tf32,"
        "'TF32 convolutions': torch.backends.cudnn.allow_tf32,"
        "'CPUs': len(os.sched_getaffinity(0)),"
        "'/dev/shm GiB': round(shutil.disk_usage('/dev/shm').total / 2**30, 1)}))"
    )
    done = bench.call("-c", code)
    if done.returncode != 0:
        yield "PyTorch", _last_line(done), False
        return
    for name, value in json.loads(done.stdout).items():
        yield name, str(value), None


def check_tests(bench: Bench) -> Found:
    """The tests that need a GPU."""
    done = bench.call("-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py")
    yield "pytest -m gpu", _last_line(done), done.returncode == 0 if bench.on_gpu else None


def check_precision(bench: Bench) -> Found:
    """The default run in every arithmetic, against the CPU."""
    there, why = bench.run("cpu", *QUICK, "hardware=cpu")
    if there is None:
        yield "CPU fp32", why, False
        return
    expected = _first_loss(there)
    yield "CPU fp32", f"loss {expected:.4f} in the first epoch", None
    precisions = ("fp32", "tf32", "bf16", "fp16") if bench.on_gpu else ("fp32", "bf16")
    for precision in precisions:
        chosen = (*bench.where, f"hardware.precision={precision}")
        record, why = bench.run(precision, *QUICK, *chosen)
        if record is None:
            yield precision, why, False
            continue
        off = abs(_first_loss(record) / expected - 1)
        rate = record["happened"]["train_images_per_second"]
        found = f"loss {_first_loss(record):.4f} ({off:.2%} off), {rate:,.0f} images/s"
        yield precision, found, off <= LOSS_WITHIN[precision]


def _first_loss(record: dict[str, Any]) -> float:
    return float(record["happened"]["curves"]["train_loss"][0])


def check_dense(bench: Bench) -> Found:
    """A detector or a segmenter on the embedded scenes."""
    for data in ("demo/scenes_segmentation", "demo/scenes_detection"):
        name = data.rpartition("_")[2]
        options = (f"data={data}", "train.epochs=1", "rerun=true", "method=lora")
        record, why = bench.run(name, *options, *bench.where)
        if record is None:
            yield name, why, False
            continue
        metrics = record["happened"]["last_epoch"]
        peak = record["happened"]["peak_memory_bytes"]
        memory = f", peak {peak / 2**20:,.0f} MiB" if peak else ""
        value = metrics["values"][metrics["headline"]]
        yield name, f"{metrics['headline']} {value}{memory}", not bench.on_gpu or bool(peak)


def check_resume(bench: Bench) -> Found:
    """Runs that a signal ends in the middle, and that go on; methods with a state of their own."""
    code = (
        "import signal, sys; from vpeft_bench.runs.checkpoint import EpochCheckpoint as C\n"
        "write = C.on_train_epoch_end\n"
        "def stop(self, trainer, module):\n"
        "    write(self, trainer, module)\n"
        "    if trainer.current_epoch == 1: signal.raise_signal(signal.SIGTERM)\n"
        "C.SHARE, C.on_train_epoch_end = 1e9, stop\n"
        "from vpeft_bench.__main__ import main\n"
        "sys.exit(main())"
    )
    methods = ("lora", "hf/adalora", "hf/adamss", "sct") if bench.on_gpu else ("lora", "hf/adalora")
    for method in methods:
        short = ("method.tinit=2", "method.tfinal=3") if method == "hf/adalora" else ()
        options = (f"method={method}", "data=demo/digits", "train.epochs=4", *short, *bench.where)
        name = f"resume_{method.replace('/', '_')}"
        stopped = bench.call("-c", code, *options, f"results_dir={bench.out / 'runs' / name}")
        if stopped.returncode not in (0, 143):
            yield method, _last_line(stopped), False
            continue
        record, why = bench.run(name, *options)
        if record is None:
            yield method, why, False
            continue
        resumed, loss = record["happened"]["resumed"], record["happened"]["train_loss"]
        yield method, f"resumed {resumed}, loss {loss:.4f}", resumed == 1 or stopped.returncode == 0


def check_devices(bench: Bench) -> Found:
    """Two devices against one: two GPUs, or two processes on a CPU."""
    if bench.on_gpu and json.loads(_device_count(bench)) < 2:
        yield "two devices", "there is one GPU", None
        return
    options = (*QUICK, "method=lora", "train.optimizer=sgd", *bench.where)
    losses = []
    for number in (1, 2):
        record, why = bench.run(f"devices_{number}", *options, f"hardware.devices={number}")
        if record is None:
            yield f"{number} devices", why, False
            return
        losses.append(record["happened"]["train_loss"])
        rate = record["happened"]["train_images_per_second"]
        found = f"loss {losses[-1]:.6f}, {rate:,.0f} images/s"
        yield f"{number} devices", found, abs(losses[-1] / losses[0] - 1) < 1e-3


def _device_count(bench: Bench) -> str:
    return bench.call("-c", "import torch; print(torch.cuda.device_count())").stdout or "0"


def check_compile(bench: Bench) -> Found:
    """Compiled blocks against plain ones; on a CPU, where that takes minutes, left out."""
    if not bench.on_gpu:
        yield "compile", "left out on a CPU", None
        return
    for backbone in ("demo_vit",):
        losses = []
        for on in ("false", "true"):
            options = (*QUICK, f"backbone={backbone}", *bench.where, f"hardware.compile={on}")
            record, why = bench.run(f"compile_{on}", *options)
            if record is None:
                yield f"{backbone} compile={on}", why, False
                break
            happened = record["happened"]
            losses.append(happened["train_loss"])
            seconds = sorted(happened["curves"]["train_seconds"])
            found = f"loss {losses[-1]:.4f}, fastest epoch {seconds[0]:.2f} s, slowest "
            found += f"{seconds[-1]:.2f} s"
            yield f"{backbone} compile={on}", found, abs(losses[-1] / losses[0] - 1) < 0.02


def check_loader(bench: Bench) -> Found:
    """Pictures per second of the loader alone: JPEG of 500 x 375 to 224, by processes."""
    code = (
        "import sys, time, tempfile, pathlib, numpy as np; from PIL import Image\n"
        "from vpeft_bench.data.loading import *; from vpeft_bench.data.splits import FileSplit\n"
        "from vpeft_bench.data.schema import *\n"
        "count, workers = int(sys.argv[1]), int(sys.argv[2])\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    path = str(pathlib.Path(folder) / 'x.jpg')\n"
        "    noise = np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)\n"
        "    Image.fromarray(noise).resize((500, 375)).save(path)\n"
        "    split = FileSplit(labels=np.zeros(count, dtype=np.int64), paths=(path,) * count)\n"
        "    pre = Preprocessing((224, 224), 'bicubic', IMAGENET_MEAN, IMAGENET_STD,\n"
        "                        list(Resize)[0], Augmentation.none)\n"
        "    loader = build_loader(split, pre, train=False, seed=0, workers=workers, cache_gib=0,\n"
        "                          sampler=EpochSampler(count, 64, 0, shuffle=False))\n"
        "    start = time.perf_counter(); batches = sum(len(b[1]) for b in loader)\n"
        "    print(batches / (time.perf_counter() - start))\n"
    )
    count = 4096 if bench.on_gpu else 192
    cpus = len(os.sched_getaffinity(0))
    for workers in dict.fromkeys((0, min(4, cpus), max(1, cpus - 2))):
        done = bench.call("-c", code, str(count if workers else count // 4), str(workers))
        well = done.returncode == 0
        found = f"{float(done.stdout):,.0f} pictures/s" if well else _last_line(done)
        yield f"{workers} workers", found, None if well else False


def check_cards(bench: Bench) -> Found:
    """The first part of ``benchmark_gpu.py``, as far as the time reaches."""
    script = str(REPOSITORY / "scripts" / "benchmark_gpu.py")
    tiny = () if bench.on_gpu else ("--tiny",)
    out = ("--out", str(bench.out / "benchmark"))
    done = bench.call(script, "cards_vit", "--device", bench.device, *tiny, *out)
    cards = len(list((bench.out / "benchmark").rglob("*.json")))
    in_time = done.returncode != 124
    found = f"{cards} cards" + ("" if in_time else "; the same command goes on from there")
    yield "cards_vit", found, cards > 0 and (not in_time or done.returncode == 0)


CHECKS: dict[str, tuple[Callable[[Bench], Found], float]] = {
    "place": (check_place, 20),
    "tests": (check_tests, 100),
    "precision": (check_precision, 75),
    "dense": (check_dense, 45),
    "resume": (check_resume, 90),
    "devices": (check_devices, 45),
    "compile": (check_compile, 60),
    "loader": (check_loader, 20),
    "cards": (check_cards, 20),
}
"""What is checked, in this order, and the seconds it may take on a GPU."""


def main() -> int:
    """Check what is asked for; 1 where something is wrong, 2 where there is no such check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "check_gpu")
    arguments = parser.parse_args()
    if unknown := set(arguments.checks) - set(CHECKS):
        parser.error(f"no check {', '.join(sorted(unknown))}; checks: {', '.join(CHECKS)}")
    bench = Bench(arguments.device, arguments.out.resolve())
    if bench.on_gpu and json.loads(_device_count_at_once(bench)) == 0:
        print("error: this machine has no CUDA device; --device cpu tries the script itself")
        return 1
    bench.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with (bench.out / f"{bench.device}.jsonl").open("w", encoding="utf-8") as file:
        for row in checked(bench, arguments.checks or list(CHECKS)):
            rows.append(row)
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            print(f"{row.check}: {row.what}: {row.found}", file=sys.stderr, flush=True)
    print(table(rows))
    wrong = sum(row.passed is False for row in rows)
    print(f"{sum(row.passed is True for row in rows)} right, {wrong} wrong; {bench.out}")
    return 1 if wrong else 0


def _device_count_at_once(bench: Bench) -> str:
    bench.deadline = time.monotonic() + 60
    return _device_count(bench)


def checked(bench: Bench, names: list[str]) -> Iterator[Row]:
    """The rows of these checks, as they come."""
    for name in names:
        check, seconds = CHECKS[name]
        start = time.monotonic()
        bench.deadline = start + (seconds if bench.on_gpu else 20 * seconds)
        try:
            for what, found, passed in check(bench):
                now = time.monotonic()
                yield Row(name, what, found, passed, round(now - start, 1))
                start = now
        except Exception as error:  # the others are to be known all the same
            yield Row(name, "the check itself", f"{type(error).__name__}: {error}", False, 0.0)


def table(rows: list[Row]) -> str:
    """All rows in columns."""
    words = {True: "right", False: "WRONG", None: ""}
    lines = [(r.check, r.what, words[r.passed], f"{r.seconds:.1f} s") for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + f"  {row.found}"
        for line, row in zip(lines, rows, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
