"""What is known of the types of the peft library: which are offered here, which are not and why.

Importing this module imports neither torch nor peft: the command line and its listings use it. The
options of a type are read from the installed library (:mod:`vpeft_bench.methods.hf.options`).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vpeft_bench.traits import Trait

PREFIX = "hf/"
INSTALL = "pip install 'vpeft_bench[hf]'"

LINEARS = ("qkv", "proj", "fc1", "fc2")
NORMS = ("norm1", "norm2")


class Start(Enum):
    """What the model with the adapter attached computes before training."""

    SAME = "the pretrained model, bit for bit"
    ROUNDED = "the pretrained model up to rounding"
    CHANGED = "not the pretrained model"


@dataclass(frozen=True)
class HfType:
    """One type of the peft library.

    Attributes:
        title, arxiv, source: the paper, its arXiv id, and where it is to be found without one.
        category: where the survey lists it, or would.
        idea: what it does, in two sentences.
        start: what it computes before training, with the options of the library's defaults.
        starts: the same where one option has another value: ``{option: {value: start}}``.
        targets: where it may be placed; all of them by default.
        hidden: fields of the config class that are no options here, beside those of every type.
        fixed: arguments of the config class that are always given.
        limits: which values fit the widths of the linears, by option: names of rules of
            :mod:`vpeft_bench.methods.hf.limits`.
        needs: what it asks of a backbone, with the reason shown where it is missing.
        not_mergeable: why it cannot be folded into the weights, or None where it can.
        notes: where library and paper disagree, or what a user should know.
    """

    title: str
    arxiv: str | None
    category: str
    idea: str
    source: str = ""
    start: Start = Start.SAME
    starts: Mapping[str, Mapping[Any, Start]] = field(default_factory=dict)
    targets: tuple[str, ...] = LINEARS
    hidden: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[Trait, str] = field(default_factory=dict)
    not_mergeable: str | None = None
    notes: tuple[str, ...] = ()


_REPARAMETERISATION = "re-parameterisation"
_PARTIAL = "partial"

OFFERED: dict[str, HfType] = {
    "adalora": HfType(
        "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "2303.10512",
        _REPARAMETERISATION,
        "A low-rank update P E Q of each linear has a diagonal of its own, whose entries of least "
        "importance are set to zero during training. What is left of the ranks so goes to the "
        "layers that need them.",
        hidden=("r", "init_lora_weights", "use_rslora", "use_dora", "lora_bias", "total_step"),
        notes=(
            "the number of training steps (total_step) is taken from the run; steps count from 1",
            "the penalty on P and Q (orth_reg_weight) is added to the loss of every run; the "
            "library itself adds it only to models that compute their own loss",
        ),
    ),
    "adamss": HfType(
        "AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning",
        None,
        _REPARAMETERISATION,
        "The rows of each weight are clustered by its leading singular vectors, and each cluster "
        "gets a low-rank update of its own inside the common subspace. With use_asa, the updates "
        "of least importance are frozen during training.",
        source="openreview.net/forum?id=8ZdWmpYxT0",
        hidden=("init_weights",),
        limits={"r": "at most both"},
        notes=(
            "attaching takes seconds to minutes: a decomposition and a clustering per layer",
            "the sizes of the clusters are found on attaching; a delta from a machine that finds "
            "others is refused",
        ),
    ),
    "beft": HfType(
        "BEFT: Bias-Efficient Fine-Tuning of Language Models",
        "2509.15974",
        _PARTIAL,
        "A vector is added to the output of each targeted linear. It starts at zero and is folded "
        "into the bias.",
        notes=("the paper trains the bias of the value projection alone; here q, k, v are one",),
    ),
    "boft": HfType(
        "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
        "2311.06243",
        _REPARAMETERISATION,
        "Each weight is multiplied by an orthogonal matrix of small blocks, and its outputs are "
        "scaled. The blocks come from skew-symmetric matrices by the Cayley transform.",
        hidden=("boft_n_butterfly_factor",),
        limits={"boft_block_size": "divides in", "boft_block_num": "divides in"},
        notes=(
            "one butterfly factor: without its CUDA extension the library silently takes one, "
            "whatever boft_n_butterfly_factor says, so the option is not offered",
        ),
    ),
    "c3a": HfType(
        "Parameter-Efficient Fine-Tuning via Circular Convolution",
        "2407.19342",
        _REPARAMETERISATION,
        "A block-circular matrix is added to each weight. One vector per block is trained, and the "
        "product is a convolution computed by Fourier transforms.",
        start=Start.CHANGED,
        starts={"init_weights": {True: Start.SAME}},
        limits={"block_size": "divides both"},
        notes=("starts away from the pretrained model unless init_weights=true",),
    ),
    "deft": HfType(
        "DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models",
        None,
        _REPARAMETERISATION,
        "A low-rank subspace is projected out of each weight, and what is learnt is put in its "
        "place. Both the subspace and its new content are trained.",
        source="NeurIPS 2025",
        start=Start.ROUNDED,
    ),
    "delora": HfType(
        "Decoupling Angles and Strength in Low-rank Adaptation",
        "2503.18225",
        _REPARAMETERISATION,
        "A low-rank update is normalised, so that its matrices decide its direction only. A single "
        "trained number per layer decides how strong it is.",
    ),
    "fourierft": HfType(
        "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
        "2405.03003",
        _REPARAMETERISATION,
        "The update of each weight is the inverse Fourier transform of a sparse spectrum. Only the "
        "spectrum's entries, at random places, are trained.",
        start=Start.CHANGED,
        starts={"init_weights": {True: Start.SAME}},
        limits={"n_frequency": "at most product"},
        notes=("starts away from the pretrained model unless init_weights=true",),
    ),
    "frod": HfType(
        "Full-Rank Efficient Fine-Tuning with Rotational Degrees",
        None,
        _REPARAMETERISATION,
        "All weights of one kind are decomposed on a common basis, and the diagonal of each is "
        "trained with a sparse set of rotations. The update has full rank.",
        source="AAAI 2026, doi.org/10.1609/aaai.v40i31.39813",
        start=Start.ROUNDED,
        hidden=("progressbar", "runtime_offload_base_weight"),
        fixed={"progressbar": False},
        needs={Trait.ONE_RESOLUTION: "its common basis needs the same width in every block"},
        notes=("the delta holds the frozen bases: it is as large as the adapted weights",),
    ),
    "glora": HfType(
        "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning",
        "2306.07967",
        _REPARAMETERISATION,
        "Weight and bias of each linear are scaled and shifted by five terms. Each term is of low "
        "rank, a vector, a number or absent.",
    ),
    "gralora": HfType(
        "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
        "2505.20355",
        _REPARAMETERISATION,
        "Each weight is cut into k x k blocks, and every block gets a low-rank update of its own. "
        "The number of parameters is that of one update of the whole.",
        limits={"gralora_k": "divides both"},
    ),
    "hira": HfType(
        "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models",
        None,
        _REPARAMETERISATION,
        "The update of each weight is the weight itself times a low-rank matrix, entry by entry. "
        "It so has a high rank.",
        source="openreview.net/forum?id=TwJrTz9cRS",
        starts={"init_weights": {False: Start.CHANGED}},
    ),
    "hra": HfType(
        "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection "
        "Adaptation",
        "2405.17484",
        _REPARAMETERISATION,
        "Each weight is multiplied by a chain of r Householder reflections. Pairs of equal "
        "reflections cancel at the start.",
        start=Start.ROUNDED,
        notes=("an odd r starts away from the pretrained model: the reflections do not pair up",),
    ),
    "ia3": HfType(
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        "2205.05638",
        _REPARAMETERISATION,
        "The output of each targeted linear is scaled by a trained vector. Linears named in "
        "feedforward_modules have their input scaled instead.",
        notes=("the paper scales keys and values; here q, k, v are one linear",),
    ),
    "lily": HfType(
        "Low-Rank Interconnected Adaptation across Layers",
        "2407.09946",
        _REPARAMETERISATION,
        "Neighbouring layers share the down-projection of a low-rank update, and all layers share "
        "a few up-projections. A router mixes the up-projections by what it sees.",
        not_mergeable="its router depends on the input",
        notes=(
            "the library averages the router over the whole batch: the logits of a picture depend "
            "on the pictures beside it, in evaluation too",
        ),
    ),
    "ln_tuning": HfType(
        "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
        "2312.11420",
        _PARTIAL,
        "The norms of the blocks are trained. Everything else is frozen.",
        targets=NORMS,
    ),
    "loha": HfType(
        "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
        "2108.06098",
        _REPARAMETERISATION,
        "The update of each weight is the product, entry by entry, of two low-rank matrices. Its "
        "rank can be the square of theirs.",
        hidden=("use_effective_conv2d",),
    ),
    "lokr": HfType(
        "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
        "2309.14859",
        _REPARAMETERISATION,
        "The update of each weight is a Kronecker product of a small matrix and one of low rank. "
        "The factor sizes follow from the layer's width.",
        starts={"init_weights": {False: Start.CHANGED}},
        hidden=("use_effective_conv2d",),
    ),
    "lora": HfType(
        "LoRA: Low-Rank Adaptation of Large Language Models",
        "2106.09685",
        _REPARAMETERISATION,
        "A trained product of two thin matrices is added to each weight. One of them starts at "
        "zero.",
        starts={
            "init_lora_weights": {
                False: Start.CHANGED,
                "olora": Start.ROUNDED,
                "pissa": Start.ROUNDED,
                "pissa_niter_4": Start.ROUNDED,
                "pissa_niter_16": Start.ROUNDED,
                "orthogonal": Start.ROUNDED,
            }
        },
        notes=(
            "init_lora_weights: eva, corda, loftq and LoRA-GA are not offered; they need data, "
            "gradients or quantised weights before anything is attached",
            "pissa and olora take the part that is trained out of the weight; the delta then holds "
            "the weights too, so that it can be loaded exactly",
        ),
    ),
    "miss": HfType(
        "MiSS: Balancing LoRA Performance and Efficiency with Simple Shard Sharing",
        "2409.15371",
        _REPARAMETERISATION,
        "Each weight is cut into shards that share one trained update. A single matrix per layer "
        "is trained, starting at zero.",
        starts={"init_weights": {False: Start.CHANGED}},
        limits={"r": "at most in"},
        notes=("this library called its first version BONE",),
    ),
    "oft": HfType(
        "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
        "2306.07280",
        _REPARAMETERISATION,
        "Each weight is multiplied by a block-diagonal orthogonal matrix. The blocks come from "
        "skew-symmetric matrices by the Cayley transform or its series.",
        limits={"oft_block_size": "divides in", "r": "divides in"},
        notes=(
            "the library changes a block size that does not fit, layer by layer; here it is "
            "refused, so that what is asked for is what runs",
        ),
    ),
    "osf": HfType(
        "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
        "2504.07097",
        _REPARAMETERISATION,
        "The smaller singular values of each weight are trained with their vectors. Gradients are "
        "projected away from the larger ones, which stay as they are.",
        start=Start.ROUNDED,
        notes=(
            "effective_rank counts what stays frozen; with the default half of each weight "
            "is trained, which is more than parameter-efficient",
        ),
    ),
    "peanut": HfType(
        "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers",
        "2410.01870",
        _REPARAMETERISATION,
        "A small network takes the frozen weight itself as input and gives its update. The network "
        "is trained, the weight is not.",
    ),
    "psoft": HfType(
        "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation",
        "2505.11235",
        _REPARAMETERISATION,
        "The leading singular subspace of each weight is rotated by a trained orthogonal matrix. "
        "Two trained vectors relax the orthogonality.",
        limits={"r": "at most both"},
    ),
    "pvera": HfType(
        "PVeRA: Probabilistic Vector-Based Random Matrix Adaptation",
        "2512.07703",
        _REPARAMETERISATION,
        "As VeRA, with the scaling of the hidden units drawn from a trained distribution. Its mean "
        "is taken in evaluation.",
        hidden=("sample_at_inference", "generator_seed"),
    ),
    "randlora": HfType(
        "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
        "2502.00987",
        _REPARAMETERISATION,
        "The update of each weight is a sum of fixed random low-rank matrices. Their diagonal "
        "scales are trained, and together they reach full rank.",
        notes=("the delta holds the frozen random bases: it is far larger than what is trained",),
    ),
    "road": HfType(
        "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and "
        "Composability",
        "2409.00119",
        _REPARAMETERISATION,
        "Pairs of output channels of each linear are rotated and scaled. Angle and scale are "
        "trained.",
        limits={"group_size": "divides out, even"},
    ),
    "shira": HfType(
        "Sparse High Rank Adapters",
        "2406.13175",
        _PARTIAL,
        "A small random set of the entries of each weight is trained. The set has as many entries "
        "as a LoRA of rank r.",
        limits={"r": "at most sparse"},
        notes=("random_seed=null draws the same entries in every run, whatever its seed",),
    ),
    "supertuning": HfType(
        "Super-Tuning",
        "2607.09287",
        _PARTIAL,
        "The largest entries of each weight are trained, all others are frozen. With r, a low-rank "
        "update is added.",
    ),
    "tinylora": HfType(
        "Learning to Reason in 13 Parameters (TinyLoRA)",
        "2602.04118",
        _REPARAMETERISATION,
        "The leading singular vectors of each weight are mixed by a small matrix, which is a sum "
        "of fixed random ones. Only the few coefficients of the sum are trained.",
        starts={"init_weights": {"uniform": Start.CHANGED}},
        limits={"r": "at most both"},
    ),
    "unilora": HfType(
        "Uni-LoRA: One Vector is All You Need",
        "2506.00799",
        _REPARAMETERISATION,
        "Every entry of every low-rank matrix is an entry of one trained vector, scaled. Which "
        "one it is, is drawn at random and fixed.",
        start=Start.CHANGED,
    ),
    "vblora": HfType(
        "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
        "2405.15179",
        _REPARAMETERISATION,
        "The low-rank matrices of all layers are put together from pieces of one bank of vectors. "
        "Bank and choice (the top k of a softmax) are trained.",
        start=Start.CHANGED,
        limits={"vector_length": "divides both"},
    ),
    "vera": HfType(
        "VeRA: Vector-based Random Matrix Adaptation",
        "2310.11454",
        _REPARAMETERISATION,
        "All layers share one pair of frozen random low-rank matrices. Two vectors per layer scale "
        "hidden units and outputs, and they alone are trained.",
        notes=("the delta holds the shared random matrices",),
    ),
    "waveft": HfType(
        "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets",
        "2505.12532",
        _REPARAMETERISATION,
        "The update of each weight is the inverse wavelet transform of a sparse matrix. Only its "
        "entries, at random places, are trained.",
        limits={"n_frequency": "at most product"},
    ),
}

_PROMPTS = (
    "it learns prompts of a language model through the transformers library; for a vision "
    "transformer there are method=vpt_shallow and method=vpt_deep"
)

NOT_OFFERED: dict[str, str] = {
    "adaption_prompt": "it rebuilds the attention of LLaMA models of the transformers library",
    "bone": "the library replaced it by MiSS: method=hf/miss",
    "cartridge": _PROMPTS,
    "cpt": _PROMPTS,
    "multitask_prompt_tuning": _PROMPTS,
    "p_tuning": _PROMPTS,
    "poly": "every batch would have to say which task each picture belongs to",
    "prefix_tuning": f"{_PROMPTS}, and method=prefix",
    "prompt_tuning": _PROMPTS,
    "shadow": "it runs beside a decoder of the transformers library",
    "trainable_tokens": "it trains rows of a token embedding; pictures have no such table",
    "xlora": "it mixes LoRA adapters that were trained before",
}


def names() -> list[str]:
    """Names of the offered types, as in ``method=``, sorted."""
    return [f"{PREFIX}{name}" for name in sorted(OFFERED)]


def why_not_offered(method: str) -> str | None:
    """For the name of a type that the library has and that is not offered here: the reason."""
    return NOT_OFFERED.get(method.removeprefix(PREFIX)) if method.startswith(PREFIX) else None


def installed() -> bool:
    """Whether the peft library is there; it is not imported to find out."""
    return version() is not None


def version() -> str | None:
    """Of the installed peft library; None where there is none."""
    try:
        return importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        return None
