"""``python -m vpeft_bench backbones``: what timm offers, without building it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from vpeft_bench.backbones.families import FAMILIES
from vpeft_bench.catalogue.facts import BACKBONES, code_fingerprint
from vpeft_bench.cli import backbones


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert backbones.main(arguments) == 0
    return capsys.readouterr().out


def test_the_file_is_of_this_code() -> None:
    stored = backbones._stored()
    assert stored is not None
    assert stored.code == code_fingerprint(BACKBONES), "run scripts/generate_docs.py"
    assert list(stored.families) == FAMILIES.names()


def test_families_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys)
    assert all(name in out for name in FAMILIES.names())
    assert "have no block map" in out


@pytest.mark.parametrize(
    ("pattern", "row", "reason"),
    [
        ("vit_small_patch16_dinov3", "eva 256 21.6M yes lvd1689m", ""),
        ("VIT_SMALL_PATCH16_DINOV3.lvd1689m", "eva 256 21.6M yes lvd1689m", ""),
        ("swinv2_cr_tiny_224", "- 224 - no", "swin_transformer_v2_cr has no block map"),
        ("vit_small_patch16_18x2_224", "vit 224 64.3M no", "blocks.0 is ParallelThingsBlock"),
        ("resnet1[08]", "- 224 - no", "timm's resnet has no block map"),
    ],
)
def test_a_model_is_listed(
    pattern: str, row: str, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = printed(capsys, pattern)
    assert row in " ".join(out.split())
    assert reason in " ".join(out.split())


def test_a_family_is_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "deit")
    assert "4 models" in out
    assert out.count("_distilled_") == 4


def test_what_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        backbones.main(["vit_bsae_patch16_224"])
    assert stopped.value.code == 2
    assert "did you mean vit_base_patch16_224" in capsys.readouterr().err


def test_of_another_timm_it_says_what_timm_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.loads(backbones.FILE.read_text())
    stale = tmp_path / "backbones.json"
    stale.write_text(json.dumps(raw | {"timm": "0.1"}))
    monkeypatch.setattr(backbones, "FILE", stale)
    found = backbones.listing()
    assert found.timm == importlib.metadata.version("timm")
    (model,) = [m for m in found.models if m.name == "beit_base_patch16_224"]
    assert (model.family, model.parameters, model.refusal) == ("beit", None, "")
    assert "in22k_ft_in22k" in model.tags
    stale.write_text("{")
    assert backbones.listing() == found
