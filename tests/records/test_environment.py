from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vpeft_bench.records import environment as environment_module
from vpeft_bench.records.environment import Git, environment


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_checkout_is_named_and_its_state(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    assert environment_module._git(root) is None
    git(root, "init", "-q")
    assert environment_module._git(root) is None, "no commit yet"
    (root / "code.py").write_text("1")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    commit = git(root, "rev-parse", "HEAD")
    assert environment_module._git(root) == Git(commit, dirty=False)
    (root / "code.py").write_text("2")
    assert environment_module._git(root) == Git(commit, dirty=True)
    (root / "installed").mkdir()
    assert environment_module._git(root / "installed") is None, "somebody else's checkout"


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, vpeft_bench.records.run_record, vpeft_bench.records.cost_card\n"
        "from vpeft_bench.records.environment import environment; environment()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "torch" in environment()["versions"]
