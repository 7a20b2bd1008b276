"""The wheel carries all it needs; the code is linted, typed, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"vpeft_bench/configs/{p.relative_to(REPOSITORY / 'configs')}" for p in yaml_files()}
    assert len(configs) > 60
    assert configs <= names
    published = (REPOSITORY / "results" / "published").glob("*.csv")
    assert {f"vpeft_bench/published/{path.name}" for path in published} <= names
    assert "vpeft_bench/py.typed" in names
    assert "vpeft_bench/backbones/demo_vit.safetensors" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "results/")) for name in names)


def yaml_files() -> list[Path]:
    return list((REPOSITORY / "configs").rglob("*.yaml"))


@pytest.mark.slow
def test_installed_wheel_runs_from_any_directory(wheel: Path, tmp_path: Path) -> None:
    """Installed alone into a directory of its own: configs and weights come from the wheel."""
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
    ]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = "import vpeft_bench.config.choices as c; print(c.config_dir())"
    assert run(sys.executable, "-c", where).strip() == str(site / "vpeft_bench" / "configs")
    console_entry = str(site / "bin" / "vpeft-bench")
    assert "method=" in run(console_entry, "--help")
    output = run(console_entry, "method=linear", "train.epochs=1", "hardware.threads=1")
    assert "top-1, last epoch" in output
    assert list(elsewhere.rglob("record.json"))
    run(console_entry, "leaderboard", "--compare", "published")
    written = (elsewhere / "results" / "leaderboard" / "not_compared.csv").read_text()
    assert "published numbers are with vit_b16" in written


def test_help_is_quick_and_imports_no_torch() -> None:
    """1.5 s is the promise on a quiet machine; what would break it is an import."""
    code = (
        "import sys; sys.argv = ['vpeft_bench', '--help']; from vpeft_bench.__main__ import main; "
        "main(); assert not {'torch', 'timm', 'pandas', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for group in ("method=", "data=", "backbone=", "head=", "protocol=", "hardware=", "logger="):
        assert group in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "check", "."), id="ruff-check"),
        pytest.param(("ruff", "format", "--check", "."), id="ruff-format"),
        pytest.param(("mypy",), id="mypy", marks=pytest.mark.slow),
    ],
)
def test_lint_and_types(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_imports_point_one_way() -> None:
    """The contracts of pyproject.toml: what each room of the package may know."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
