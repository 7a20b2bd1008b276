from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli
from vpeft_bench.catalogue import facts
from vpeft_bench.data.demo import DIGITS_VERSION, _build_digits, cached
from vpeft_bench.errors import MethodOptionError
from vpeft_bench.methods.hf import types as hf_types
from vpeft_bench.methods.registry import list_methods


def test_the_stored_facts_are_those_of_the_classes() -> None:
    """Where this fails: python scripts/generate_docs.py."""
    stored = json.loads(facts.FILE.read_text(encoding="utf-8"))
    assert stored["code"] == facts.code_fingerprint()
    assert facts.native_methods() == facts.collected()
    assert [facts.method(name) for name in list_methods("hf/")] == facts.collected_of_peft()


def test_a_method_that_is_none() -> None:
    with pytest.raises(MethodOptionError, match="did you mean method=lora"):
        facts.method("lorra")
    with pytest.raises(MethodOptionError, match="is not offered: "):
        facts.method(f"hf/{next(iter(hf_types.NOT_OFFERED))}")


def test_another_version_of_peft_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    right = facts.method("hf/lora")
    stored = json.loads(facts.FILE.read_text(encoding="utf-8"))
    assert stored["peft"] == hf_types.version()
    stored |= {"peft": "0.0.1", "of_peft": []}
    monkeypatch.setattr(facts, "_stored", lambda: stored)
    assert facts.method("hf/lora") == right


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
        ["methods", "hf/lora"],
        ["methods", "lorra"],
        ["data"],
        ["--version"],
        ["--help"],
        ["method=lorra"],
        ["train.epochz=3"],
        ["leaderboard", "--help"],
        ["statistics", "--help"],
    ],
)
def test_what_only_prints_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    cached(f"digits-v{DIGITS_VERSION}", _build_digits)  # whoever is first to need them makes them
    script = f"""
import sys
from vpeft_bench.__main__ import _dispatch
from vpeft_bench.errors import ProblemsError
try:
    _dispatch({arguments!r})
except (SystemExit, ProblemsError):
    pass
heavy = {{"torch", "timm", "torchvision", "pytorch_lightning", "sklearn", "peft"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_method_is_described_as_its_class_says(cli: Cli) -> None:
    shown = " ".join(cli("methods", "lora").stdout.split())
    for part in ("lora:", "arXiv 2106.09685", "method.rank=", "mergeable: yes"):
        assert part in shown


def test_own_methods_are_listed_and_described(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "mine (1)"
    (own / "method").mkdir(parents=True)
    (own / "method" / "wide.yaml").write_text("name: lora\nrank: 64\n")
    for place in (["--config-dir", str(own), "methods"], ["methods", "--config-dir", str(own)]):
        assert "method=wide: options of lora" in cli(*place).stdout
    assert "lora: LoRA" in cli("methods", "wide", f"--config-dir={own}").stdout
