"""Pretrain the embedded demo backbone on procedurally rendered scenes.

No picture is read or downloaded: every image is drawn from a random number generator, and what
was drawn gives the labels. A scene is a stack of textured shapes and pen strokes ("glyphs") in
front of a textured background. Each patch token predicts the attributes of the object under it,
and the pooled token predicts, at a lower weight, the attributes of the whole image: image-level
labels alone learn far more slowly.

The budget is wall-clock time or a number of images, and the cosine schedule follows the budget,
so that a run on a busy machine still ends on time with a fully annealed network.

Example, one hour on two cores::

    python scripts/pretrain_demo_backbone.py --minutes 60 --processes 2 --out pretrain/
    cp pretrain/demo_vit.safetensors vpeft_bench/backbones/
"""

from __future__ import annotations

from pretrain.training import parse_options, pretrain

if __name__ == "__main__":
    pretrain(parse_options(description=__doc__.partition("\n")[0]))
