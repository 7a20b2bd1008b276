"""What a method may ask of a backbone, in words that name no family.

Importing this module does not import torch.
"""

from __future__ import annotations

from enum import StrEnum


class Trait(StrEnum):
    """A property that some families of backbones have and others lack."""

    GLOBAL_ATTENTION = "every token attends to all others"
    ONE_RESOLUTION = "all blocks have one width and one number of tokens"
    FURTHER_TOKENS = "further tokens may pass through the blocks beside the image's own"
    FREE_TOKENS = "further tokens may stand anywhere: attention knows no positions"
    PATCH_MERGING = "patches are merged between stages"
