"""Files of a run that are damaged, left over, or cannot be written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from tests.conftest import Cli
from tests.running import run_here, signal_after_epoch
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.records.run_record import Status, find
from vpeft_bench.runs import feature_store
from vpeft_bench.runs.feature_store import DiskStore
from vpeft_bench.runs.interruption import Interrupted
from vpeft_bench.runs.run import Outcome, Result
from vpeft_bench.runs.shown import reopen, show

Start = Callable[..., Outcome]


def options_of(data: Path) -> tuple[str, ...]:
    """A run of a few seconds."""
    return ("data=imagelist", f"data.root={data}", "train.epochs=2")


@pytest.fixture
def said() -> StringIO:
    """What the runs of the test print."""
    return StringIO()


@pytest.fixture
def start(tmp_path: Path, tiny_data: Path, said: StringIO) -> Start:
    """Starts the same small run, again and again."""

    def once(*overrides: str) -> Outcome:
        console = Console(file=said, width=400)
        options = (*options_of(tiny_data), *overrides)
        return run_here(tmp_path / "results", *options, console=console)

    return once


@pytest.fixture(scope="module")
def stopped_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that was stopped after its first epoch."""
    results = tmp_path_factory.mktemp("stopped") / "results"
    with pytest.MonkeyPatch.context() as patch:
        signal_after_epoch(patch, 1, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run_here(results, *options_of(tiny_data), "method=bitfit")
    return results


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """The checkpoint of such a run, of which ``start`` starts the same again."""
    shutil.copytree(stopped_run, tmp_path / "results")
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    return checkpoint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    """One bit in the middle: of a tensor, which would be read without a word."""
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 200] ^= 1
    path.write_bytes(content)


def changed(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return write


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"PK\x03\x04garbage"),
    "cut": cut,
    "flipped": flip,
    "another file": lambda path: torch.save([1, 2], path),
    "another version of torch": changed(lambda c: c.update(torch_version="1.13.0")),
    "no word of its version": changed(lambda c: c.pop("torch_version")),
    "a tensor less": changed(lambda c: c["state_dict"].popitem()),
    "a tensor of another shape": changed(
        lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.zeros(7)})
    ),
    "a diverged training": changed(lambda c: next(iter(c["state_dict"].values())).fill_(torch.nan)),
    "other groups": changed(lambda c: c["optimizer_states"][0]["param_groups"].pop()),
    "no epochs": changed(lambda c: c.pop("loops")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(start: Start, stopped: Path, said: StringIO, damage: str) -> None:
    DAMAGES[damage](stopped)
    damaged = stopped.read_bytes()
    outcome = start("method=bitfit")
    assert outcome.result is Result.DONE
    assert outcome.record is not None
    assert outcome.record.happened.resumed == 0
    assert outcome.record.happened.curves["epoch"] == [1, 2]
    aside = stopped.with_name("last.ckpt.damaged")
    assert aside.read_bytes() == damaged
    told = [line for line in said.getvalue().splitlines() if "last.ckpt" in line]
    assert len(told) == 1
    assert "cannot be used" in told[0]
    assert aside.name in told[0]


def test_a_sound_checkpoint_is_gone_on_from(start: Start, stopped: Path) -> None:
    record = start("method=bitfit").record
    assert record is not None
    assert record.happened.resumed == 1
    assert not list(stopped.parent.glob("*damaged*"))


def test_a_damaged_record(start: Start, said: StringIO) -> None:
    first = start("method=linear")
    path = first.directory / "record.json"
    for number in ("", "2"):
        path.write_text(path.read_text()[:100])
        again = start("method=linear")
        assert again.result is Result.DONE
        assert path.with_name(f"record.json.damaged{number}").exists()
    assert again.record is not None
    assert first.record is not None
    assert again.record.happened.last_epoch == first.record.happened.last_epoch
    assert said.getvalue().count("record.json cannot be used") == 2


@pytest.mark.parametrize("content", ["garbage", "another selection"])
def test_a_damaged_selection(start: Start, said: StringIO, content: str) -> None:
    first = start("method=sct")
    path = first.directory / "selection.safetensors"
    sound = path.read_bytes()
    path.write_bytes(b"garbage")
    if content == "another selection":
        save_file({"elsewhere": torch.zeros(3, dtype=torch.int64)}, path)
    (first.directory / "record.json").unlink()
    again = start("method=sct")
    assert again.record is not None
    assert first.record is not None
    assert again.record.happened.checksums == first.record.happened.checksums
    assert said.getvalue().count("selection.safetensors cannot be used") == 1
    assert path.with_name("selection.safetensors.damaged").exists()
    assert path.read_bytes() == sound


def test_what_killed_writers_left_is_swept(start: Start) -> None:
    directory = start("method=linear").directory
    left = [".record.json.0123.tmp", ".last.ckpt.4567.tmp", "metrics.csv.tmp"]
    for name in left:
        (directory / name).write_bytes(b"half")
    start("method=linear", "rerun=true")
    assert not list(directory.glob("*.tmp"))


# ---- what a record vouches for ------------------------------------------------------------------


def test_files_beside_a_record(start: Start, said: StringIO) -> None:
    """Another delta is noticed where it is used; a finished run stays finished without it."""
    done = start("method=lora")
    delta = done.directory / "delta.safetensors"
    tensors = load_file(delta)
    content = bytearray(delta.read_bytes())
    content[-1] ^= 1
    delta.write_bytes(content)
    with pytest.raises(VpeftBenchError, match=r"delta\.safetensors: it is not the file"):
        show(reopen(done.directory))
    skipped = start("method=lora")
    assert (skipped.result, skipped.reason) == (Result.SKIPPED, "a finished record exists")
    save_file({name: tensor[:1] for name, tensor in tensors.items()}, delta)
    assert "delta.safetensors beside it: gone or changed since" in start("method=lora").reason
    delta.unlink()
    assert "delta.safetensors beside it: gone or changed since" in start("method=lora").reason
    with pytest.raises(VpeftBenchError, match=r"delta\.safetensors: it is not there"):
        show(reopen(done.directory))


# ---- kept features -------------------------------------------------------------------------------


def test_damaged_features(start: Start, said: StringIO, tmp_path: Path) -> None:
    kept = ("hardware.feature_cache=disk", f"hardware.feature_cache_dir={tmp_path / 'kept'}")
    first = start("method=linear", *kept)
    entries = [path.parent for path in (tmp_path / "kept").rglob("features.json")]
    assert len(entries) == 2
    (entries[0] / "features.json").write_text("{")
    os.truncate(entries[1] / "features", 8)
    again = start("method=linear", *kept, "rerun=true")
    assert first.record is not None
    assert again.record is not None
    assert again.record.happened.checksums == first.record.happened.checksums
    assert said.getvalue().count(f"it is kept as {entries[0].name}.damaged") == 1
    assert said.getvalue().count(f"it is kept as {entries[1].name}.damaged") == 1
    third = start("method=linear", *kept, "rerun=true").record
    assert third is not None
    assert third.happened.frozen_features is not None
    assert third.happened.frozen_features.found


def test_unfinished_and_damaged_features_make_room(tmp_path: Path) -> None:
    """Of nobody's other folders; what a living process works on stays."""
    store = DiskStore(tmp_path, limit=1000)
    dead, alive, broken, others = ("d" * 20, "a" * 20, "b" * 20, "somebody's")
    (tmp_path / f"{dead}.unfinished").mkdir()
    (tmp_path / f"{alive}.unfinished").mkdir()
    (tmp_path / f"{others}.unfinished").mkdir()
    (tmp_path / f"{broken}.damaged").mkdir()
    (tmp_path / f"{broken}.damaged" / "features").write_bytes(b"0" * 900)
    with store.locked(alive):
        store.empty("c" * 20, {"features": (50,)}, torch.float32)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {f"{alive}.unfinished", f"{others}.unfinished", f"{'c' * 20}.unfinished"}


# ---- a disk that refuses -------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"nothing can be mounted: {error}")
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, tiny_data: Path, said: StringIO) -> None:
    """One line with the file; the record of the failure is small, and is written."""
    options = ("data=imagelist", f"data.root={tiny_data}", "method=full", "train.epochs=2")
    with pytest.raises(VpeftBenchError, match=r"No space left on device") as caught:
        run_here(small_disk, *options)
    assert "\n" not in str(caught.value)
    ((path, record),) = find([small_disk]).records
    assert record.status is Status.FAILED
    assert record.error is not None
    assert "No space left on device" in record.error
    assert not list(path.parent.glob("*.tmp"))


def test_a_full_disk_and_no_room_for_the_record(
    small_disk: Path, tiny_data: Path, said: StringIO
) -> None:
    (small_disk / "filler").write_bytes(b"0" * 180 * 1024)
    options = ("data=imagelist", f"data.root={tiny_data}", "method=lora", "train.epochs=2")
    with pytest.raises(VpeftBenchError, match="No space left on device"):
        run_here(small_disk, *options, console=Console(file=said, width=400))
    if not list(small_disk.rglob("record.json")):
        assert "no record of it could be written" in said.getvalue()


def test_features_on_a_full_disk(small_disk: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Room is asked for before it is filled: a mapped file on a full disk kills the process."""
    feature_store.forget()
    options = (
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=partial",
        "hardware.feature_cache=disk",
        f"hardware.feature_cache_dir={small_disk}",
    )
    with pytest.raises(VpeftBenchError, match="No space left on device"):
        run_here(tmp_path / "results", *options)


def test_a_limit_on_the_size_of_files(tmp_path: Path, tiny_data: Path) -> None:
    """``ulimit -f``: one line, exit status 1, and a record."""
    command = f"ulimit -f 40; exec {sys.executable} -m vpeft_bench method=lora data=imagelist"
    command += f" data.root={tiny_data} train.epochs=1 hardware.threads=1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "File too large" in done.stderr
    ((_, record),) = find([tmp_path]).records
    assert record.status is Status.FAILED


@pytest.mark.parametrize("multirun", [(), ("-m", "seed=0,1")])
def test_a_folder_that_takes_no_files(cli: Cli, tiny_data: Path, multirun: tuple[str, ...]) -> None:
    """In ``/proc`` nobody, not even root, makes a folder."""
    options = ("method=linear", "data=imagelist", f"data.root={tiny_data}")
    done = cli(*multirun, *options, "results_dir=/proc/results")
    assert done.returncode == 1, done.stderr + done.stdout
    assert "/proc/results" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
