"""Why no part of a file fills a backbone: the kinds of difference first, then some of the names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from vpeft_bench.backbones.fitting import Fit, shortened
from vpeft_bench.formats import counted

# By their names: libraries whose names timm's filters do not read, then other architectures.
LIBRARIES = {
    "Hugging Face transformers": (
        r"(^|\.)embeddings\.|\.attention\.(attention|self|output)\.|\.self_attn\.|layer_?norm"
    ),
    "OpenMMLab": r"\.projection\.|\.ffn\.layers\.|\.ln[12]\.|\.w_msa\.",
    "torchvision's transformers": r"\.encoder_layer_\d|(^|\.)features\.\d",
}
ARCHITECTURES = {
    "a Swin Transformer": r"(^|\.)layers\.\d\.blocks\.",
    "a ResNet": r"(^|\.)layer[1-4]\.",
    "a network of stages": r"(^|\.)stages\.\d\.",
    "a plain ViT": r"(^|\.)(?<!\d\.)blocks\.\d+\.",
}
# What a model has or has not, by a piece of a name.
PARTS = {
    "cls_token": "class token",
    "reg_token": "register tokens",
    "register_tokens": "register tokens",
    "dist_token": "distillation token",
    "fc_norm": "norm after pooling",
    "norm_pre": "norm before the blocks",
    "attn_pool": "pooling by attention",
    "rel_pos_bias": "relative positions",
    "relative_position_bias_table": "relative positions",
    "ls1": "scale per layer",
    "gamma_1": "scale per layer",
    "pos_embed": "position embeddings",
}


def differences(found: Sequence[Fit], own: Collection[str]) -> str:
    """Why none of the parts fills the backbone, told of the one that comes closest.

    Args:
        own: names of the backbone.
    """
    fit = _closest(found, own)
    kinds = list(_kinds(fit, own))
    lines = [f"the first difference: {kinds[0]}"] if kinds else []
    lines += [f"also: {kind}" for kind in kinds[1:3]]
    lines += [f"missing: {name}" for name in shortened(_blocks(fit.missing))]
    lines += [f"unexpected: {name}" for name in shortened(_blocks(fit.unexpected))]
    lines += shortened([f"{n}: file {a}, backbone {b}" for n, (a, b) in fit.misshapen.items()])
    if fit.error and not kinds:
        lines.append(f"timm says: {fit.error}")
    return "\n".join(f"  - {line}" for line in lines)


def _closest(found: Sequence[Fit], own: Collection[str]) -> Fit:
    """The part with most of the backbone's names; all of a file that has few of them."""

    def common(fit: Fit) -> int:
        return sum(name in own for name in fit.state)

    fit = max(found, key=lambda fit: (common(fit), -len(fit.unexpected)))
    if 4 * common(fit) >= len(own):
        return fit
    return max((fit for fit in found if not fit.prefix), key=lambda fit: len(fit.state))


def _kinds(fit: Fit, own: Collection[str]) -> Iterator[str]:
    names = [fit.prefix + name for name in fit.state]
    for library, mark in LIBRARIES.items():
        if _mostly(mark, names):
            yield (
                f"the names are those of {library}, not timm's; the hub has most such weights "
                "under timm's names: https://huggingface.co/timm"
            )
            return
    for architecture, mark in ARCHITECTURES.items():
        if _mostly(mark, names) and not _mostly(mark, own):
            yield f"the names are those of {architecture}, which the backbone is not"
            return
    if prefix := _shared_prefix(names):
        yield f"all {len(names)} names carry the prefix {prefix}"
    here, there = _depths(fit.state), _depths(own)
    for stem in here.keys() & there.keys():
        if here[stem] != there[stem]:
            yield f"another depth: {here[stem]} {stem} in the file, {there[stem]} in the backbone"
    for name, (a, b) in fit.misshapen.items():
        if name == "patch_embed.proj.weight" and a[0] != b[0]:
            yield f"another width: {a[0]} in the file, {b[0]} in the backbone"
        elif name == "patch_embed.proj.weight" and a[2:] != b[2:]:
            yield f"another patch size: {a[2:]} in the file, {b[2:]} in the backbone"
    for piece, what in PARTS.items():
        lacking = any(piece in name for name in fit.missing)
        added = any(piece in name for name in fit.unexpected)
        if lacking != added:
            yield f"the {'file' if lacking else 'backbone'} has no {what} ({piece})"


def _mostly(mark: str, names: Collection[str]) -> bool:
    return 2 * sum(re.search(mark, name) is not None for name in names) >= max(len(names), 1)


def _shared_prefix(names: Sequence[str]) -> str:
    """What all the names begin with, up to a dot or slash."""
    first, last = min(names, default=""), max(names, default="")
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[: max(first.rfind(end, 0, length) for end in "./") + 1]


_BLOCK = re.compile(r"(.*?\b(?:layers\.\d+\.blocks\.|blocks\.|encoderblock_))(\d+)[./].*")


def _depths(names: Iterable[str]) -> dict[str, int]:
    """Number of blocks, by what stands ahead of it: ``blocks``, ``layers.2.blocks``."""
    depths: dict[str, int] = {}
    for name in names:
        if found := _BLOCK.fullmatch(name):
            stem = "blocks" if found[1].endswith("_") else found[1].rstrip(".")
            depths[stem] = max(depths.get(stem, 0), int(found[2]) + 1)
    return depths


def _blocks(names: Sequence[str]) -> list[str]:
    """The names; those of whole blocks in one line ahead of them."""
    found = {name: _BLOCK.fullmatch(name) for name in names}
    block = {name: match[1] + match[2] for name, match in found.items() if match}
    counts: dict[str, int] = {}
    for name in block.values():
        counts[name] = counts.get(name, 0) + 1
    whole = [name for name, count in counts.items() if count >= 5]
    lines = [name for name in names if block.get(name) not in whole]
    if whole:
        last = f" to {whole[-1]}" if len(whole) > 1 else ""
        total = counted(sum(counts[name] for name in whole), "tensor")
        lines.insert(0, f"{whole[0]}{last} ({total})")
    return lines
