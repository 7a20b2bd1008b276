"""A family of backbones: all that is particular to some of timm's model classes, in one object.

Each family lies in one file and is known by its name in :mod:`vpeft_bench.backbones.families`.
Nothing outside this package asks what family a backbone is of: methods ask for a
:class:`~vpeft_bench.traits.Trait`, everything else for what the family says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vpeft_bench.backbones.further_tokens import TokenPlace
from vpeft_bench.traits import Trait

if TYPE_CHECKING:
    from vpeft_bench.backbones.block_map import Backbone, Block

# timm's models are Any to a family: nn.Module types every attribute as a tensor or a module.


class Family(ABC):
    """What is particular to a family.

    Class attributes:
        name: the family's own, as shown to users.
        title: in words.
        models: timm's classes; a subclass of one is another model, and may be of another family.
        modules: timm's modules whose models are of these classes, by their last name.
        traits: what its backbones have.
        any_size: arguments of timm's model that let it take pictures of any size, as dense heads
            need; None where it stays with the square that it was built for.
        norms_last: norms stand after the branches, not before them.
        attention_knows_positions: it is opened with its block, to let further tokens pass.
        stream_is_map: blocks pass on ``(B, H, W, D)``, not ``(B, N, D)``.
        shown: the model on which the sizes of methods are stated, its title and timm's name; None
            where they are stated on another family only.
        small: timm's name and arguments of a small model on which methods are probed.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    models: ClassVar[tuple[type[nn.Module], ...]]
    modules: ClassVar[tuple[str, ...]]
    traits: ClassVar[frozenset[Trait]]
    any_size: ClassVar[Mapping[str, Any] | None] = None
    norms_last: ClassVar[bool] = False
    attention_knows_positions: ClassVar[bool] = False
    stream_is_map: ClassVar[bool] = False
    shown: ClassVar[tuple[str, str] | None] = None
    small: ClassVar[tuple[str, Mapping[str, Any]] | None] = None

    @abstractmethod
    def map(self, model: Any) -> Backbone:
        """The block map of one of its models.

        Raises:
            UnsupportedBackboneError: this one has parts that the map does not cover.
        """

    def prepare(self, model: Any) -> None:  # noqa: B027  # most families need none
        """Make a model that was just built ready for its weights; nothing by default."""

    @abstractmethod
    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """Tensors of other releases under timm's names, by timm's own filter.

        Args:
            options: of the filter: how positions are resampled.
        """

    @abstractmethod
    def flops(self, backbone: Backbone, image_size: tuple[int, int]) -> int | None:
        """Operations of a forward pass on one image, by formula; None where there is no formula.

        Args:
            image_size: height and width, pixels.
        """

    @abstractmethod
    def attended_tokens(self, backbone: Backbone, block: Block) -> int:
        """Tokens that attend to each other in a block."""

    # Of families with Trait.FURTHER_TOKENS; no method calls them on another one.

    def token_place(self, at: int | None) -> TokenPlace:
        """Where further tokens stand in the stream.

        Args:
            at: the image's own tokens before them, None for all; of no meaning where the stream is
                a map.
        """
        raise NotImplementedError

    def count_further_tokens(self, backbone: Backbone, count: int, block: Block | None) -> None:
        """Make the model ready for further tokens, as many more as ``count`` (or fewer: negative).

        Args:
            block: that they pass through; None where they enter the first and stay to the end.
        """
        raise NotImplementedError

    def levels(self, model: Any) -> Sequence[Mapping[str, Any]]:
        """timm's ``feature_info`` of the maps that dense heads read."""
        return model.feature_info[-1:]  # type: ignore[no-any-return]
