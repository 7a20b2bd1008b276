"""The circumstances of a measurement: versions, checkout, machine, time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict

_DISTRIBUTIONS = (
    "faster-coco-eval",
    "hydra-core",
    "numpy",
    "omegaconf",
    "peft",
    "pillow",
    "pytorch-lightning",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
    "vpeft-bench",
)
_GIT_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Git:
    """The checkout the package ran from.

    Attributes:
        commit: full hash of HEAD.
        dirty: whether the work tree differed from it, untracked files included.
    """

    commit: str
    dirty: bool


class Environment(TypedDict):
    """What can be known without running anything."""

    versions: dict[str, str]
    git: Git | None
    hostname: str
    platform: str
    python: str


def utc_now() -> str:
    """The time: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def require_utc(**times: str) -> None:
    """Refuse a time by name that is not ISO 8601 in UTC.

    Raises:
        ValueError
    """
    for name, text in times.items():
        if datetime.fromisoformat(text).utcoffset() != timedelta(0):
            raise ValueError(f"{name} is {text!r}, which is not in UTC")


def environment() -> Environment:
    """Versions, checkout and machine, found without importing any of the libraries named."""
    versions: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Environment(
        versions=versions,
        git=_git(Path(__file__).resolve().parents[2]),
        hostname=socket.gethostname(),
        platform=platform.platform(),
        python=platform.python_version(),
    )


def processor_name() -> str:
    """The CPU's own name where the system tells it, and its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} cores"


def _git(root: Path) -> Git | None:
    """The checkout whose top is ``root``; None if there is none, or it has no commit yet."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=_GIT_TIMEOUT_SECONDS
        ).stdout.strip()

    try:
        # An installed package may lie in an environment inside some other project's checkout.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return Git(commit=git("rev-parse", "HEAD"), dirty=bool(git("status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return None
