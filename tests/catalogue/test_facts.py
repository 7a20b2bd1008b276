from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli
from vpeft_bench.catalogue import facts


def test_the_stored_facts_are_those_of_the_classes() -> None:
    """Where this fails: python scripts/generate_docs.py."""
    stored = json.loads(facts.FILE.read_text(encoding="utf-8"))
    assert stored["code"] == facts.code_fingerprint()
    assert facts.native_methods() == facts.collected()


def test_where_the_code_has_changed_the_classes_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = {"code": "older", "methods": []}
    monkeypatch.setattr(facts, "FILE", tmp_path / "methods.json")
    for text in (json.dumps(stale), "{", None):
        if text is not None:
            facts.FILE.write_text(text)
        assert facts.native_methods() == facts.collected()
        facts.FILE.unlink(missing_ok=True)


def test_a_change_of_the_code_changes_its_fingerprint(tmp_path: Path) -> None:
    seen = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "method.py").write_text(text)
        seen.add(facts.code_fingerprint(tmp_path))
    (tmp_path / "other.py").write_text("")
    assert facts.code_fingerprint(tmp_path) not in seen
    assert len(seen) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["methods"],
        ["methods", "lora"],
        ["data"],
        ["--version"],
        ["--help"],
        ["method=lorra"],
        ["train.epochz=3"],
        ["leaderboard", "--help"],
    ],
)
def test_what_only_prints_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    script = f"""
import sys
from vpeft_bench.__main__ import _dispatch
from vpeft_bench.errors import ProblemsError
try:
    _dispatch({arguments!r})
except (SystemExit, ProblemsError):
    pass
heavy = {{"torch", "timm", "torchvision", "pytorch_lightning", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_method_is_described_as_its_class_says(cli: Cli) -> None:
    shown = " ".join(cli("methods", "lora").stdout.split())
    for part in ("lora:", "arXiv 2106.09685", "method.rank=", "mergeable: yes"):
        assert part in shown
