"""Tests against the oldest and the newest versions that pyproject.toml allows.

    python scripts/try_versions.py [oldest] [newest]

Makes a virtual environment for each (about 6 GB, a few minutes), runs the tests that meet the most
of the other libraries, and prints what was installed and how it went.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TRIED = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "pytorch-lightning",
    "torchmetrics",
    "peft",
)
TESTS = (
    "tests/backbones/test_block_map.py",
    "tests/golden",
    "tests/heads",
    "tests/methods/test_hf.py",
    "tests/config/test_config.py",
    "tests/cli/test_jobs.py",
    "tests/runs/test_resuming.py",
    "tests/runs/test_run.py",
)


def oldest() -> list[str]:
    """Each tried library at the lower bound of its range."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["hf"]]
    bounds = dict(map(_bound, asked))
    return [f"{name}=={bounds[name]}" for name in TRIED]


def _bound(requirement: str) -> tuple[str, str]:
    found = re.match(r"([\w-]+)>=([\d.]+)", requirement)
    assert found, f"{requirement} has no lower bound"
    return found[1], found[2]


PINNED = {"oldest": oldest, "newest": list}


def tried(which: str, folder: Path) -> bool:
    """Install, test and tell; whether all tests passed."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--editable", ".[test]"]
    subprocess.run([*install, *PINNED[which]()], cwd=REPOSITORY, check=True)
    listed = [python, "-m", "pip", "list", "--format=freeze"]
    found = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    print(which, *(line for line in found if line.split("==")[0] in TRIED), flush=True)
    tests = [python, "-m", "pytest", "-q", "--numprocesses", "2", "--dist", "worksteal", *TESTS]
    return subprocess.run(tests, cwd=REPOSITORY, check=False).returncode == 0


def main() -> int:
    """The process's exit status: whether anything failed."""
    asked = sys.argv[1:] or list(PINNED)
    if unknown := set(asked) - set(PINNED):
        print(f"{', '.join(unknown)}: give {' or '.join(PINNED)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        passed = [tried(which, Path(folder) / which) for which in asked]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
