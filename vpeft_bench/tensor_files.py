"""safetensors files, written whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vpeft_bench.files import replacing


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors by name so that ``path`` is at any moment absent, the old file or the new one.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        usual = temporary.stat().st_mode  # the library lets nobody but the owner read its files
        try:
            save_file(ready, temporary, metadata)
            temporary.chmod(usual)
        except SafetensorError as error:  # the library's name for every failure of the disk
            raise OSError(errno.EIO, str(error), str(path)) from error
