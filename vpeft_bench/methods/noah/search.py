"""NOAH's search: train a supernet, then let its best sub-networks evolve.

Everything random follows from a seed, and what has been computed is kept in one file: a search
that was interrupted goes on with the same draws. On a CPU it ends as it would have ended; a GPU
adds in another order each time.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import NotSelectedError
from vpeft_bench.files import set_aside
from vpeft_bench.methods.base import option
from vpeft_bench.methods.data_pass import SelectionData, evaluating, require_finite
from vpeft_bench.methods.noah.network import PARTS, Subnetwork, Widths, live_parameters
from vpeft_bench.tensor_files import save_tensors

WEIGHT_DECAY = 1e-4
FIRST_RATE, LAST_RATE = 1e-6, 1e-5
"""Learning rates at the start of the warm-up and at the end of the cosine (authors)."""

SECONDS_BETWEEN_SAVES = 30.0

_log = logging.getLogger(__name__)


@dataclass
class SearchOptions:
    """The hyper-parameters of the search."""

    widths: list[int] = option(
        [1, 5, 10], "searched (VTAB; authors' other: 5 to 100)", minimum=1, distinct=True
    )
    depths: list[int] | None = option(
        None,
        "searched; null: quarters of the depth (authors: 3, 6, 9, 12)",
        minimum=1,
        distinct=True,
    )
    budget: int = option(640_000, "parameters of a sub-network (authors)", minimum=1)
    supernet_epochs: int = option(500, "of the supernet (authors)", minimum=1)
    supernet_warmup: int = option(10, "epochs of linear warm-up (authors)", minimum=0)
    supernet_lr: float = option(5e-4, "peak learning rate of the supernet (authors)", minimum=0.0)
    supernet_batch_size: int = option(64, "pictures per step of the supernet (authors)", minimum=1)
    generations: int = option(20, "of the evolution, the random one included (authors)", minimum=1)
    population: int = option(50, "sub-networks per generation (authors)", minimum=1)
    parents: int = option(10, "best ones that others come from (authors)", minimum=1)
    mutations: int = option(25, "per generation (authors)", minimum=0)
    crossovers: int = option(25, "per generation (authors)", minimum=0)
    part_probability: float = option(
        0.2, "that a mutation touches a part (authors)", minimum=0.0, maximum=1.0
    )
    depth_probability: float = option(
        0.4, "that it then draws a new depth for it (authors)", minimum=0.0, maximum=1.0
    )
    search_seed: int = option(0, "of everything random in the search (ours)", minimum=0)


@dataclass(frozen=True)
class Search:
    """Options of a search, and the backbone: its number of ``blocks`` and their ``channels`` D."""

    options: SearchOptions
    channels: int
    blocks: int

    @property
    def depths(self) -> list[int]:
        """How many blocks, from the first on, may have a part."""
        quarters = {-(-self.blocks * quarter // 4) for quarter in range(1, 5)}
        return self.options.depths or sorted(quarters)

    @property
    def widest(self) -> Widths:
        """The supernet."""
        return ((max(self.options.widths),) * self.blocks,) * len(PARTS)

    @property
    def smallest(self) -> Widths:
        """The sub-network with the fewest parameters."""
        return (self._part([min(self.options.widths)] * min(self.depths)),) * len(PARTS)

    def fits(self, candidate: Widths) -> bool:
        """Whether it keeps within the budget."""
        return live_parameters(self.channels, candidate) <= self.options.budget

    def draw(self, rng: random.Random) -> Widths:
        """Any sub-network: a depth for each part, a width for each block that has it."""
        return tuple(self._longer((), rng.choice(self.depths), rng) for _ in PARTS)

    def mutate(self, parent: Widths, rng: random.Random) -> Widths:
        """Some parts of ``parent`` become longer, by blocks of any width, or shorter."""
        return tuple(
            self._longer(self._used(part), rng.choice(self.depths), rng)
            if rng.random() < self.options.part_probability
            and rng.random() < self.options.depth_probability
            else part
            for part in parent
        )

    def cross(self, one: Widths, other: Widths, rng: random.Random) -> Widths:
        """Each part as a whole from either parent."""
        return tuple(rng.choice(pair) for pair in zip(one, other, strict=True))

    def _used(self, part: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(itertools.takewhile(bool, part))

    def _longer(self, used: tuple[int, ...], depth: int, rng: random.Random) -> tuple[int, ...]:
        drawn = [rng.choice(self.options.widths) for _ in range(depth - len(used))]
        return self._part([*used[:depth], *drawn])

    def _part(self, used: list[int]) -> tuple[int, ...]:
        return (*used, *[0] * (self.blocks - len(used)))


class Progress:
    """What a search has done so far, in a file that is replaced as a whole.

    Attributes:
        epochs: that the supernet was trained for; ``tensors``: it and its optimizer by then.
        scores: of the sub-networks that were tried, in the order of trying.
    """

    def __init__(self, path: Path | None, search: Search) -> None:
        self.path = path
        self.of = json.dumps(asdict(search), sort_keys=True)
        self.epochs = 0
        self.tensors: dict[str, Tensor] = {}
        self.scores: dict[Widths, float] = {}
        self._saved = time.monotonic()
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("search") != self.of:
                    raise ValueError("it is the state of another search")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            epochs, scores = int(header["epochs"]), json.loads(header["scores"])
            tried = {tuple(map(tuple, candidate)): float(score) for candidate, score in scores}
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            aside = set_aside(path)
            _log.warning(
                "%s cannot be used (%s); it is kept as %s, and the search starts anew",
                path,
                error,
                aside.name,
            )
            return
        self.tensors, self.epochs, self.scores = tensors, epochs, tried
        _log.info("going on from epoch %d, %d scores", self.epochs, len(self.scores))

    def save(self) -> None:
        """Write, unless that was done a moment ago."""
        if self.path is None or time.monotonic() - self._saved < SECONDS_BETWEEN_SAVES:
            return
        scores = json.dumps(list(self.scores.items()))
        header = {"search": self.of, "epochs": str(self.epochs), "scores": scores}
        save_tensors(self.tensors, self.path, header)
        self._saved = time.monotonic()


def search_widths(
    backbone: Backbone,
    data: SelectionData,
    search: Search,
    build: Callable[[Widths], Subnetwork],
) -> Widths:
    """The best sub-network found; the backbone and its head are left as they were.

    Args:
        build: places a sub-network of the widths it is given.
    """
    if next(iter(data.validation()), None) is None:
        raise NotSelectedError(
            "sub-networks are ranked on validation pictures, and there are none: "
            "BatchData(batches, validation=...)"
        )
    progress = Progress(data.resume_path, search)
    head = {name: t.detach().clone() for name, t in backbone.head.state_dict().items()}
    with evaluating(backbone.model):
        try:
            torch.manual_seed(search.options.search_seed)
            supernet = build(search.widest)
            _train(backbone, supernet, data, search, progress)

            def score(candidate: Widths) -> float:
                if candidate not in progress.scores:
                    supernet.resize(candidate)
                    progress.scores[candidate] = _accuracy(backbone.model, data)
                    progress.save()
                return progress.scores[candidate]

            return evolve(search, score)
        finally:
            backbone.clear()
            backbone.head.load_state_dict(head)
            backbone.head.zero_grad()


def _train(
    backbone: Backbone,
    supernet: Subnetwork,
    data: SelectionData,
    search: Search,
    progress: Progress,
) -> None:
    """Every step trains one sub-network, drawn anew; what it does not use stays as it is."""
    model = backbone.model
    trained = {f"supernet.{n}": p for n, p in supernet.named_parameters()}
    trained |= {f"head.{n}": p for n, p in backbone.head.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=search.options.supernet_lr, weight_decay=WEIGHT_DECAY
    )
    _restore(progress.tensors, trained, optimizer)
    for epoch in range(progress.epochs, search.options.supernet_epochs):
        rng = random.Random(f"{search.options.search_seed} supernet {epoch}")
        torch.manual_seed(rng.getrandbits(62))
        optimizer.param_groups[0]["lr"] = learning_rate(search, epoch)
        model.train()
        batches = data.training(
            augment=True,
            batch_size=search.options.supernet_batch_size,
            hold_out_validation=True,
            epoch=epoch,
        )
        for images, labels in batches:
            supernet.resize(search.draw(rng))
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        require_finite(trained.values(), "supernet")
        progress.epochs = epoch + 1
        progress.tensors = _state(trained, optimizer)
        progress.save()
        if progress.epochs % max(1, search.options.supernet_epochs // 10) == 0:
            _log.info("supernet: epoch %d of %d", progress.epochs, search.options.supernet_epochs)
    model.eval()


def learning_rate(search: Search, epoch: int) -> float:
    """Linear from :data:`FIRST_RATE` in the warm-up, then along a cosine to :data:`LAST_RATE`."""
    if epoch < search.options.supernet_warmup:
        return (
            FIRST_RATE
            + (search.options.supernet_lr - FIRST_RATE) * epoch / search.options.supernet_warmup
        )
    cosine = (1 + math.cos(math.pi * epoch / search.options.supernet_epochs)) / 2
    return LAST_RATE + (search.options.supernet_lr - LAST_RATE) * cosine


def _state(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of what is trained, and of what the optimizer remembers of it."""
    tensors = {name: parameter.detach() for name, parameter in trained.items()}
    for name, parameter in trained.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _restore(
    tensors: dict[str, Tensor], trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Fill in what :func:`_state` gave; nothing where there is nothing."""
    remembered = [key.split(".", 2) for key in tensors if key.startswith("optimizer.")]
    for name, parameter in trained.items() if tensors else ():
        with torch.no_grad():
            parameter.copy_(tensors[name])
        keys = [key for _, key, of in remembered if of == name]
        for key in keys:
            value = tensors[f"optimizer.{key}.{name}"]
            # AdamW counts its steps in main memory.
            place = "cpu" if value.ndim == 0 else parameter.device
            optimizer.state[parameter][key] = value.to(place)


@torch.no_grad()
def _accuracy(model: nn.Module, data: SelectionData) -> float:
    right = total = 0
    for images, labels in data.validation():
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def evolve(search: Search, score: Callable[[Widths], float]) -> Widths:
    """The best of all generations; a sub-network is tried once at most.

    The first generation is random. The next ones are mutations and crossovers of the best so far,
    filled up at random. Which are tried depends on scores and seed alone.
    """
    scores: dict[Widths, float] = {}
    best: list[Widths] = []
    for generation in range(search.options.generations):
        rng = random.Random(f"{search.options.search_seed} generation {generation}")
        found = _proposals(search, best, scores, rng)
        if not scores and not found:
            found = [search.smallest]
        scores |= {candidate: score(candidate) for candidate in found}
        best = sorted([*best, *found], key=scores.__getitem__, reverse=True)[
            : search.options.parents
        ]
        _log.info(
            "generation %d of %d: %.4f", generation + 1, search.options.generations, scores[best[0]]
        )
    return best[0]


def _proposals(
    search: Search, best: list[Widths], known: dict[Widths, float], rng: random.Random
) -> list[Widths]:
    """New sub-networks that fit; fewer than the population where they are hard to find."""
    found: list[Widths] = []

    def add(proposals: Iterator[Widths], number: int, tries: int) -> None:
        wanted = len(found) + number
        for candidate in itertools.islice(proposals, tries):
            if len(found) >= wanted:
                return
            if candidate not in known and candidate not in found and search.fits(candidate):
                found.append(candidate)

    if best:
        mutations = (search.mutate(rng.choice(best), rng) for _ in itertools.count())
        crossovers = (
            search.cross(rng.choice(best), rng.choice(best), rng) for _ in itertools.count()
        )
        add(mutations, search.options.mutations, 10 * search.options.mutations)
        add(crossovers, search.options.crossovers, 10 * search.options.crossovers)
    fresh = (search.draw(rng) for _ in itertools.count())
    add(fresh, search.options.population - len(found), 100 * search.options.population)
    return found
