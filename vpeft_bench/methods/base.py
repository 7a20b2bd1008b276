"""The method contract: a dataclass of hyper-parameters that places modules on a block map.

A method states facts (paper, needs, count, merge); everything else (the trainable set, the delta
checkpoint, the counts, the optimizer's groups) is derived from what it placed and unfroze, never
from parameter names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vpeft_bench import always_counted
from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.families import families, families_with
from vpeft_bench.backbones.joined import JoinedLinear
from vpeft_bench.backbones.placement import Placement
from vpeft_bench.errors import Problem, UnsupportedBackboneError
from vpeft_bench.fields import DEFAULT, neutral
from vpeft_bench.formats import option_text
from vpeft_bench.methods.data_pass import Selection, SelectionData
from vpeft_bench.traits import Trait


class Category(StrEnum):
    """The survey's categories (arXiv 2402.02242)."""

    ADDITION = "addition"
    SIDE = "side"
    PARTIAL = "partial"
    REPARAMETERISATION = "re-parameterisation"
    UNIFIED = "unified"


class Length(StrEnum):
    """What one method may change the length of, and another may rely on."""

    BLOCK = "the number of tokens that a block sees"
    STREAM = "the number of tokens between the blocks"
    MAP = "the size of the attention maps"


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Iterable[str] = (),
    distinct: bool = False,
    neutral: Any = DEFAULT,
    only_on: Iterable[Trait] = (),
    only_where: Mapping[str, Any] | None = None,
    search: Iterable[Any] = (),
) -> Any:
    """A hyper-parameter of a method: a dataclass field that knows its range and meaning.

    An option may be added at any time: where it is neutral it is no part of a run's identity, so
    that runs, deltas and cost cards from before it existed stay what they were.

    Args:
        default: value, or a list (copied for each instance).
        help: what it is and where the default comes from; shown by the ``methods`` command.
        minimum, maximum: inclusive range of a number, or of each item of a list.
        choices: valid values of a string, or of each item of a list.
        distinct: the numbers of a list name things, such as blocks, and none may be there twice;
            strings always do, while other numbers are quantities and may be equal.
        neutral: the value at which the method does what it did before it had the option; needed
            where that is not the default.
        only_on: what a backbone must have for it to have an effect.
        only_where: values of other options without which it has no effect.
        search: values that ``python -m vpeft_bench tune`` tries, in order, the default among them;
            a method searches two options at most.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": tuple(choices),
        "distinct": distinct,
        "neutral": neutral,
        "only_on": tuple(only_on),
        "only_where": dict(only_where or {}),
        "search": list(search),
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class MergeableModule(nn.Module):
    """A module placed on a linear, norm or convolution that can be folded into it.

    Class attributes:
        adds: what it adds to the output depends on the input alone, so that several of them can be
            folded in any order.
    """

    adds: ClassVar[bool] = False

    def obstacle(self, leaf: nn.Module) -> str | None:
        """Why it cannot be folded into this very ``leaf``, or None where it can."""
        return None

    def merge_into(self, leaf: nn.Module) -> None:
        """Change ``leaf``'s own weights so that it alone gives what both gave together.

        A method whose modules do not say how names the reason in ``not_mergeable``.
        """
        raise NotImplementedError


class WeightUpdate(MergeableModule):
    """A module placed on a leaf's weight or bias: called with it, it gives the one that is used."""

    parameter = "weight"

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """The updated weight takes the place of the weight; computed in float64, rounded once."""
        weight = getattr(leaf, self.parameter)
        assert isinstance(weight, Tensor)
        weight.copy_(self(weight.double()))


@dataclass
class Method:
    """Base class of every method; subclasses are dataclasses of their hyper-parameters.

    Class attributes:
        name: as typed in ``method=``.
        title, arxiv, source: the paper, its arXiv id, and the section of it that is implemented.
        category: where the survey lists the method.
        idea: what it does, in two sentences.
        deviations: each place where code, papers or published tables disagree, what is the default
            here, and the option that gives the other; which published row used which.
        needs: what it asks of a backbone, each with the reason that is shown where it is missing.
        not_mergeable: why it cannot be merged with its default options, or None where it can; where
            other options decide otherwise, :attr:`merge_refusal` does.
        not_dense: why it cannot serve dense heads (detection, segmentation), or None where it can.
        batch_statistics: it normalises over the batch: to train it takes two pictures at least.
        version: raised when the method computes something else than before with the same options;
            results of an earlier version are told apart.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    arxiv: ClassVar[str | None]
    source: ClassVar[str]
    category: ClassVar[Category]
    idea: ClassVar[str] = ""
    deviations: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Mapping[Trait, str]] = {}
    not_mergeable: ClassVar[str | None] = None
    not_dense: ClassVar[str | None] = None
    batch_statistics: ClassVar[bool] = False
    version: ClassVar[int] = 1

    # Each method has ``place`` and ``parameter_count``; a dataclass is easier to subclass than an
    # abstract one.

    def place(self, backbone: Backbone) -> None:
        """Place modules on the backbone; every original parameter is frozen when this is called."""
        raise NotImplementedError

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Original parameters that the method trains; none by default."""
        return ()

    def rewritten(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Original parameters that placing changes and that stay frozen then; none by default.

        They are stored in the delta checkpoint, and given back by detaching.
        """
        return ()

    def conflicts(self) -> Iterable[Problem]:
        """Options that are valid by themselves and make no sense together; none by default."""
        return ()

    @property
    def merge_refusal(self) -> str | None:
        """Why it cannot be merged with these options, or None; ``not_mergeable`` by default."""
        return self.not_mergeable

    @property
    def dense_refusal(self) -> str | None:
        """Why it cannot serve a dense head, or None where it can.

        A dense head reads the residual streams, and has no classes for a picture.
        """
        if self.selects:
            return "it chooses what it trains by a classifier's gradients or classes"
        return self.not_dense

    def obstacles(self, backbone: Backbone) -> Iterator[str]:
        """What stands against merging on this very backbone."""
        for placement in backbone.placements:
            if not isinstance(placement.module, MergeableModule):
                yield f"{placement.path}: a {type(placement.module).__name__} cannot be folded"
            elif obstacle := placement.module.obstacle(placement.host) or _unheld(placement):
                yield f"{placement.path}: {obstacle}"

    def merge(self, backbone: Backbone) -> None:
        """Fold what is placed into the backbone's own weights; nothing stands against it."""
        for placement in backbone.placements:
            assert isinstance(placement.module, MergeableModule)
            with backbone.folding(placement.host) as leaf:
                placement.module.merge_into(leaf)

    def parameter_count(self, backbone: Backbone) -> int | None:
        """Trainable parameters without the head, in closed form; None where the data decide."""
        raise NotImplementedError

    @property
    def lengths_changed(self) -> frozenset[Length]:
        """What has another length with the method than in the plain model; nothing by default."""
        return frozenset()

    @property
    def lengths_known(self) -> frozenset[Length]:
        """What it takes to be as long as in the plain model; nothing by default.

        A method that changes one of them cannot be attached beside it.
        """
        return frozenset()

    @property
    def identity_at_start(self) -> bool:
        """Whether the model with the method attached starts as the pretrained one, bit for bit."""
        return True

    def first_changed_block(self, backbone: Backbone) -> int:
        """Index of the first block whose output training can change.

        What the blocks before it put out is the same in every epoch. ``len(backbone.blocks)`` if
        the whole trunk is frozen.
        """
        return 0

    @property
    def changes_embedding(self) -> bool:
        """Whether training can change the tokens that enter the first block."""
        return False

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """The frozen features that training reads (names of ``trunk.read_features``).

        They are the same in every epoch, as long as pictures and frozen parts are deterministic:
        whoever has them needs nothing else of the frozen network.
        """
        first = self.first_changed_block(backbone)
        if self.changes_embedding:
            return ("images",)
        return ("features",) if first == len(backbone.blocks) else (f"tokens.{first}",)

    # ---- looking at data before training, and around steps -------------------------------------

    @property
    def selects(self) -> bool:
        """Whether the method looks at training data before anything is placed."""
        return False

    def shortened(self) -> Self:
        """The method with the least work before training, for measuring and trying it out.

        What it then finds means nothing, but it costs the same to train and can do the same. Itself
        by default; for methods with ``selects`` that search for long.
        """
        return self

    def select(self, backbone: Backbone, data: SelectionData) -> Selection:
        """Decide from data on the plain, frozen model; for methods with ``selects``."""
        raise NotImplementedError

    def place_selected(self, backbone: Backbone, selection: Selection) -> None:
        """As :meth:`place`, with what :meth:`select` decided; for methods with ``selects``."""
        raise NotImplementedError

    def before_step(self, backbone: Backbone, step: int, steps: int) -> None:
        """Called before training step ``step`` of ``steps``, counted from 0."""

    def after_step(self, backbone: Backbone, step: int, steps: int) -> None:
        """Called after the optimizer's step, while the gradients are still there."""

    def step_state(self, backbone: Backbone) -> dict[str, Any]:
        """What the step hooks remember outside the model, for a run to be taken up again."""
        return {}

    def load_step_state(self, backbone: Backbone, state: dict[str, Any]) -> None:
        """Go on from what :meth:`step_state` gave."""

    def penalty(self, backbone: Backbone) -> Tensor | None:
        """A term of the training loss beside the task's own; none by default."""
        return None

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone the method is not defined on.

        Raises:
            UnsupportedBackboneError: names the method, the family and the reason.
        """
        family = backbone.family
        if (reason := self.unsupported().get(family.name)) is not None:
            raise UnsupportedBackboneError(
                f"method {self.name} does not support {family.name} backbones: {reason} "
                f"(supported: {', '.join(self.supported())})"
            )

    @classmethod
    def supported(cls) -> tuple[str, ...]:
        """Names of the families that have what it needs."""
        return families_with(cls.needs)

    @classmethod
    def unsupported(cls) -> dict[str, str]:
        """For each other family the reason."""
        missing = {f.name: [t for t in cls.needs if t not in f.traits] for f in families()}
        return {name: cls.needs[traits[0]] for name, traits in missing.items() if traits}

    def options(self) -> dict[str, Any]:
        """The hyper-parameters by name, as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def described(self) -> str:
        """Name of the method, and what of its options is not default."""
        defaults = default_options(type(self))
        differing = {k: v for k, v in self.options().items() if v != defaults[k]}
        return f"{self.name} {option_text(differing)}".rstrip()

    def uncounted(self, traits: Collection[Trait]) -> list[str]:
        """Options that are no part of the identity of a run on a backbone with ``traits``.

        They have no effect there, or came later and are neutral.
        """
        always = always_counted.options(self.name)
        return [
            one.name
            for one in fields(self)
            if one.name not in always
            and (not self._has_effect(one, traits) or getattr(self, one.name) == neutral(one))
        ]

    def _has_effect(self, option: Field[Any], traits: Collection[Trait]) -> bool:
        needed: Mapping[str, Any] = option.metadata.get("only_where", {})
        return set(option.metadata.get("only_on", ())) <= set(traits) and all(
            getattr(self, name) == value for name, value in needed.items()
        )

    @classmethod
    def completed(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Recorded ``options``, those that came later at the value that changes nothing."""
        return {one.name: neutral(one) for one in fields(cls)} | dict(options)


def _unheld(placement: Placement) -> str | None:
    """What the pieces of a linear could not hold once the module were folded, or None."""
    if not isinstance(placement.host, JoinedLinear):
        return None
    trial = placement.host.plain()
    placement.module.merge_into(trial)  # type: ignore[operator]  # a MergeableModule
    return placement.host.obstacle(trial.bias)


def default_options(method_class: type[Method]) -> dict[str, Any]:
    """Name and default of every hyper-parameter of a method class."""
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(method_class)
    }


def adapted_blocks(backbone: Backbone, last_blocks: int | None) -> list[Block]:
    """The last ``last_blocks`` blocks, or all of them where it is None."""
    return backbone.blocks if last_blocks is None else backbone.blocks[-last_blocks:]


def bottleneck_linears(width: int, bottleneck: int, init: str) -> tuple[nn.Linear, nn.Linear]:
    """The down- and up-projection of an adapter, ``D -> bottleneck -> D``.

    Args:
        init: ``standard`` (Kaiming-uniform down, zero up, zero biases: the identity with a live
            gradient), ``vpb`` (truncated normal 0.02, zero biases: what V-PETL Bench's model
            constructor leaves) or ``vpt`` (all zero, as in KMnP/vpt: only the up bias ever learns).
    """
    down, up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
    for linear in (down, up):
        nn.init.zeros_(linear.bias)
    if init == "vpb":
        nn.init.trunc_normal_(down.weight, std=0.02)
        nn.init.trunc_normal_(up.weight, std=0.02)
    else:
        nn.init.zeros_(up.weight)
        if init == "vpt":
            nn.init.zeros_(down.weight)
        else:
            nn.init.kaiming_uniform_(down.weight, a=5**0.5)
    return down, up


@torch.no_grad()
def add_in_float64(parameter: Tensor, update: Tensor) -> None:
    """``parameter += update``, rounded once, so that merging costs no more than one rounding."""
    parameter.copy_(parameter.double() + update.double())
