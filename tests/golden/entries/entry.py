"""Which method of ours a golden file is about, with which options, and whose tensor is whose.

Adding a method is adding one entry. Its map goes from a name of the reference to ours: one name, or
several whose tensors, put behind each other along the first axis, make up the reference's (a pair
stacked in one matrix, the prompts of many blocks in one tensor). Where it is the other way round, a
:class:`Part` says which piece of ours a tensor of the reference is. An empty list names a tensor
that the reference lists and never uses. Shapes are adapted, so a trailing axis of size one needs no
mention. Names of ours may be parameters, buffers, or the head's (``head.weight``). ``blocks`` holds
names inside one block, ``whole`` the others. What is trained in place keeps timm's name and needs
no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from golden_files import GoldenFile
from torch import Tensor, nn

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones import Backbone


@dataclass(frozen=True)
class Part:
    """A tensor of ours, or a piece of one.

    Attributes:
        name: of the tensor.
        where: index of the piece; all of it by default.
        addition: what the reference trains in place, ours learns as an addition to: it starts at
            zero, and the file holds a gradient and no value for it.
    """

    name: str
    where: Any = ...
    addition: bool = False


Hyper = Mapping[str, Any]
Names = Mapping[str, str | Part | list[str] | list[Part]]


def nothing(*_: object) -> Names:
    return {}


@dataclass(frozen=True)
class Entry:
    """How to run one golden file.

    Attributes:
        method: our method's name.
        options: ``meta.hyper`` -> our options.
        blocks: names below a block, the same in every block.
        whole: names outside the blocks, or across several.
        merges: the reference can be folded into the backbone, so ours has to be.
        leading: the reference's tensors are larger than ours, which are their leading slices (the
            weights of a supernet), or absent where the slice is empty; beyond them its gradient is
            zero.
        head: what the reference calls the head.
        calibration: batches for the method's data pass, from the file.
        check_selection: asserts that the data pass selected what the file says.
        only_ours: names of tensors that ours trains and the reference does not.
        masks: group of masks in the file, one per tensor that it lists as trained: only where they
            hold are the tensors trained, while the file's gradients are those of whole tensors.
        module: a stand-alone module for a file of that level; ``whole`` then names its parameters.
        other_sizes: changes ``meta.hyper`` to other valid sizes, where one more of each is none.
    """

    method: str
    options: Callable[[Hyper], dict[str, Any]] = lambda hyper: {}
    blocks: Callable[[Hyper], Names] = nothing
    whole: Callable[[Hyper, Backbone], Names] = nothing
    merges: bool = False
    leading: bool = False
    head: str = "head"
    calibration: Callable[[GoldenFile], list[tuple[Tensor, ...]]] | None = None
    check_selection: Callable[[GoldenFile, Attached], None] | None = None
    only_ours: Callable[[Backbone], set[str]] = lambda backbone: set()
    masks: str | None = None
    module: Callable[[Hyper], nn.Module] | None = None
    other_sizes: Callable[[dict[str, Any]], None] | None = None

    def names(self, hyper: Hyper, backbone: Backbone) -> dict[str, list[Part]]:
        """Every name of the reference -> the parts of ours that make it up, in order."""
        names = {
            f"{block.path}.{theirs}": [Part(f"{block.path}.{our.name}") for our in listed(ours)]
            for block in backbone.blocks
            for theirs, ours in self.blocks(hyper).items()
        }
        whole = self.whole(hyper, backbone).items()
        return names | {theirs: listed(ours) for theirs, ours in whole}


def listed(names: str | Part | list[str] | list[Part]) -> list[Part]:
    if not isinstance(names, list):
        names = [names]  # type: ignore[assignment]  # one of either kind
    return [Part(name) if isinstance(name, str) else name for name in names]
