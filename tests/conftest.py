"""Shared by every test: one torch thread, and the real data beside the checkout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.command_server import REPOSITORY, CommandServer

SHARED = REPOSITORY.parent / "shared"

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_SILENT", "true")


def shared_path(relative: str) -> Path:
    """A file or folder of the shared test material.

    Skips where the material is absent as a whole; where it is there, the path must exist: a test
    that needs it is never skipped silently on a machine that has it.
    """
    if not SHARED.is_dir():
        pytest.skip(f"no shared test material at {SHARED}")
    path = SHARED / relative
    assert path.exists(), f"{SHARED} is there, but lacks {relative}"
    return path


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """Runs commands in processes of their own, without importing torch for each of them."""
    server = CommandServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture
def cli(tmp_path: Path, command_server: CommandServer) -> Cli:
    """``python -m vpeft_bench ...`` in an empty directory, as a user runs it."""

    def run(
        *arguments: str, cwd: Path = tmp_path, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "120"}
        return command_server.run(list(arguments), cwd, environment, timeout)

    return run


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the VTAB layout: real handwritten digits, 200 to train on and 60 to test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    root = tmp_path_factory.mktemp("tiny_digits")
    (root / "images").mkdir()
    lines = []
    for index in range(260):
        pixels = (digits.images[index] * (255 / 16)).astype("uint8")
        Image.fromarray(pixels).convert("RGB").save(root / "images" / f"{index:06d}.jpg")
        lines.append(f"images/{index:06d}.jpg {digits.target[index]}\n")
    splits = {"train800": (0, 160), "val200": (160, 200), "train800val200": (0, 200)}
    for name, (low, high) in {**splits, "test": (200, 260)}.items():
        (root / f"{name}.txt").write_text("".join(lines[low:high]))
    return root
