"""What every method says of itself holds, and the probe notices where it would not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vpeft_bench
from tests.conftest import Cli
from vpeft_bench.backbones import Backbone
from vpeft_bench.catalogue.probe import probe, reference_vectors
from vpeft_bench.catalogue.wording import features, sentences
from vpeft_bench.methods import registry
from vpeft_bench.methods.base import Category, MergeableModule, Method
from vpeft_bench.methods.names import METHODS
from vpeft_bench.traits import Trait


class Shift(MergeableModule):
    def __init__(self, width: int, start: float, folds: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((width,), start))
        self.folds = folds

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.shift

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        if self.folds:
            leaf.bias.add_(self.shift)  # type: ignore[operator,union-attr]  # a linear's


@dataclass
class Honest(Method):
    """A shift behind fc2 of the last block."""

    name = "honest"
    title = source = "a test"
    arxiv = None
    category = Category.PARTIAL
    start, folds = 0.0, True

    def place(self, backbone: Backbone) -> None:
        block = backbone.blocks[-1]
        block.place("fc2", Shift(block.width, self.start, self.folds))

    def parameter_count(self, backbone: Backbone) -> int:
        return backbone.blocks[-1].width

    def first_changed_block(self, backbone: Backbone) -> int:
        return len(backbone.blocks) - 1


class Moves(Honest):
    start = 0.5


class Misfolds(Honest):
    folds = False


class Modest(Honest):
    not_mergeable = "it says so"


class SaysItServesNoDenseHead(Honest):
    not_dense = "though it does"


class Local(Honest):
    needs = {Trait.ONE_RESOLUTION: "it says so"}

    def check(self, backbone: Backbone) -> None:
        pass


class Miscounts(Honest):
    def parameter_count(self, backbone: Backbone) -> int:
        return 1


class Uncounted(Honest):
    def parameter_count(self, backbone: Backbone) -> int:
        return None  # type: ignore[return-value]  # the mistake itself


class ReadsTooLate(Honest):
    def first_changed_block(self, backbone: Backbone) -> int:
        return len(backbone.blocks)


class ReadsTooEarly(Honest):
    def first_changed_block(self, backbone: Backbone) -> int:
        return 0


class ReadsOneTooMany(Honest):
    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        return ("tokens.0", f"tokens.{len(backbone.blocks)}")


class TrainsTheFirst(Honest):
    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        return backbone.patch_leaves[0].parameters()


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (Honest, ""),
        (Uncounted, ""),
        (Moves, "vit: identity_at_start is False"),
        (Misfolds, "vit: merging fails"),
        (Modest, "vit: said not to be mergeable, though all that it places can be folded"),
        (Local, "swin: said to be unsupported, but it attaches"),
        (SaysItServesNoDenseHead, "vit: under a dense head it learns"),
        (Miscounts, "ViT-B/16: trains 768 parameters, not 1"),
        (ReadsTooLate, "vit: reads features, which training changes"),
        (ReadsTooEarly, "vit: reads tokens.0, while tokens.11 stays the same"),
        (ReadsOneTooMany, "vit: reads tokens.12, which training changes"),
        (TrainsTheFirst, "vit: reads tokens.11, which training changes"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_wrong_claim_is_noticed(
    lie: type[Honest], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._things, "honest", lie)
    found = probe.__wrapped__("honest").contradictions
    assert (says in found) if says else (found == ())


def test_features_in_words() -> None:
    assert features(["images"]) == "images"
    assert features(["tokens.0", "tokens.1", "tokens.2"]) == "tokens.0-2"
    assert features(["tokens.3", "attn.0", "attn.2", "attn.3"]) == "tokens.3, attn.0, attn.2-3"


def test_sentences_are_counted() -> None:
    assert sentences("One bias b. It is 0.1 wide, 2.0 at most.") == 2


def test_reference_vectors_are_those_of_the_entries() -> None:
    vectors = reference_vectors()
    assert vectors is not None
    assert {"lora", "lora_qkv", "swin_lora"} <= set(vectors["lora"])
    assert "full" in vectors["full"]


# ---- the command --------------------------------------------------------------------------------


def test_listing_has_every_method_and_option(cli: Cli) -> None:
    done = cli("methods")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in vpeft_bench.list_methods():
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert "targets=[q,v]" in done.stdout
    for category in Category:
        assert category.value in lines or not any(
            registry.method_class(n).category is category for n in vpeft_bench.list_methods()
        )


def test_one_method_in_full(cli: Cli) -> None:
    told = " ".join(cli("methods", "bitfit").stdout.split())
    bitfit = registry.method_class("bitfit")
    assert bitfit.idea in told
    assert all(deviation in told for deviation in bitfit.deviations)
    assert "method.relative_position_bias=true" in told


def test_capabilities_of_one_method(cli: Cli, tmp_path: Path) -> None:
    done = cli("methods", "linear", "--capabilities")
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("linear")]
    expected = ["linear", "all", "yes", "yes", "yes", "features", "0", "0", "no", "1"]
    assert row.split() == expected


def test_unknown_method_is_refused(cli: Cli) -> None:
    done = cli("methods", "lroa")
    assert done.returncode == 2
    assert "did you mean method=lora" in done.stderr
