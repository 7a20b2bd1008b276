"""What a kind of task decides, in one object.

Everything else (the run, the validation, the commands, the leaderboard) asks this object, and asks
nowhere which kind it is. A new kind is a folder with a subclass of :class:`TaskKind` and the file
``configs/task/NAME.yaml``. Importing this module does not import torch: kinds import what computes
where they need it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vpeft_bench.errors import Problem
from vpeft_bench.metric_names import Metric
from vpeft_bench.options import typed, wrong_options

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

    from vpeft_bench.backbones.block_map import Backbone
    from vpeft_bench.backbones.load import LoadedBackbone
    from vpeft_bench.config.schema import RunConfig
    from vpeft_bench.data.dataset import Dataset
    from vpeft_bench.data.inspection import Inspector
    from vpeft_bench.data.loading import EpochSampler, Preprocessing
    from vpeft_bench.drawing import Panel
    from vpeft_bench.tasks.base import Model, Task, Training
    from vpeft_bench.tasks.writers import PredictionWriter


@dataclass
class NoOptions:
    """Of a kind that has none."""


@dataclass(frozen=True)
class Mistake:
    """A picture that was taken for one of another class.

    Attributes:
        index: of the picture in its split.
        true: its class.
        predicted: what it was taken for.
        confidence: of that, from 0 to 1; of retrieval the cosine to what lies nearest.
        nearest: index of the picture that it was taken for, where that is a picture.
    """

    index: int
    true: int
    predicted: int
    confidence: float
    nearest: int | None = None


@dataclass(frozen=True)
class Drawn:
    """What a trained task predicts on some pictures of a split.

    Attributes:
        panels: the pictures.
        heading: what they show.
        mistakes: all of the split, the most confident first; None where a picture has no one
            answer that is right or wrong.
    """

    panels: list[Panel]
    heading: str
    mistakes: list[Mistake] | None = None


class TaskKind(ABC):
    """One kind of task.

    Attributes:
        name: as in ``task=NAME``.
        metrics: what it measures, by name; which of them is the headline the evaluation says.
        options: a dataclass: what may follow ``task.`` besides the name, with its defaults. Fields
            say of themselves what they are by :func:`vpeft_bench.fields.setting`.
        any_size: pictures of any size reach the backbone, and a head reads its feature maps.
        classifies: a run gives one logit for each class of a picture.
        in_parts: its loss is a mean over the pictures of a batch, which may come in parts.
        legend: of pictures of its truth, what follows a title.
    """

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    options: ClassVar[type] = NoOptions
    any_size: ClassVar[bool] = False
    classifies: ClassVar[bool] = False
    in_parts: ClassVar[bool] = True
    legend: ClassVar[str] = ""

    # ---- its options -----------------------------------------------------------------------------

    def completed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Its options, those that ``asked`` does not name at their defaults."""
        own = {key: value for key, value in asked.items() if key != "name"}
        return {**dataclasses.asdict(self.options()), **typed(self.options, own)}

    def option_problems(self, asked: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with its options as they were asked for."""
        own = {key: value for key, value in asked.items() if key != "name"}
        defaults = dataclasses.asdict(self.options())
        return wrong_options(self.options, own, "task", f"task={self.name}", defaults)

    # ---- what is asked of it ---------------------------------------------------------------------

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """What of the config does not fit it; nothing is read or imported for that."""
        yield from ()

    def data_problems(self, config: RunConfig, dataset: Dataset) -> Iterator[Problem]:
        """What of the data set does not fit it, beyond what its inspectors find."""
        yield from ()

    def backbone_problems(self, config: RunConfig, backbone: Backbone) -> Iterator[Problem]:
        """What of the backbone does not fit it; its weights are not loaded."""
        yield from ()

    def method_refusal(self, config: RunConfig, method: Any) -> str | None:
        """Why a method is not offered for it, or None."""
        return None

    def batch_norms(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        """What of it trains with statistics of a batch, and what to type for something else."""
        yield from ()

    # ---- its data --------------------------------------------------------------------------------

    @abstractmethod
    def accepts(self, dataset: Dataset) -> bool:
        """Whether a data set has what it learns from."""

    @abstractmethod
    def inspectors(self) -> Sequence[Inspector]:
        """What looks for faults in its data, after what every data set is looked at for."""

    @abstractmethod
    def preprocessing(self, config: RunConfig, loaded: LoadedBackbone) -> Preprocessing:
        """How a picture becomes the network's input."""

    @abstractmethod
    def batches(
        self,
        config: RunConfig,
        dataset: Dataset,
        preprocessing: Preprocessing,
        split: str,
        *,
        train: bool,
    ) -> DataLoader[Any]:
        """Batches ``(pictures, targets)``; ``loader.dataset.pixels`` has hashes by index."""

    @abstractmethod
    def sampler(
        self, config: RunConfig, dataset: Dataset, split: str, *, train: bool
    ) -> EpochSampler:
        """Which pictures make each batch of an epoch."""

    def not_kept(self, config: RunConfig) -> str | None:
        """Why frozen features are not the same in every epoch, or None."""
        return None

    # ---- its network -----------------------------------------------------------------------------

    @abstractmethod
    def outputs(self, config: RunConfig, dataset: Dataset) -> int:
        """Outputs of the backbone's own classifier; 0: it has none."""

    def change_classifier(self, config: RunConfig, model: nn.Module) -> None:  # noqa: B027
        """Change the backbone's own classifier, once the method is attached."""

    def network(self, config: RunConfig, dataset: Dataset, model: Model) -> Any:
        """The network that is trained: the backbone itself, or a head around it."""
        return model.attached.model

    @abstractmethod
    def module(
        self,
        config: RunConfig,
        dataset: Dataset,
        model: Model,
        network: Any,
        training: Training | None,
    ) -> Task:
        """Loss and metrics on a network; without ``training`` it can only be evaluated."""

    # ---- what is shown and kept of it ------------------------------------------------------------

    @abstractmethod
    def truth(self, dataset: Dataset, split: str, index: int, cell: int) -> Panel:
        """A picture with what belongs to it drawn, its longer side ``cell`` pixels."""

    @abstractmethod
    def drawn(self, task: Any, dataset: Dataset, split: str, batches: Any, pictures: int) -> Drawn:
        """What a trained task predicts on some pictures of a split."""

    @abstractmethod
    def writer(
        self, config: RunConfig, dataset: Dataset, split: str, folder: Path
    ) -> PredictionWriter:
        """Stores what is predicted on a split."""
