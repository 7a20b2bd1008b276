"""What the pictures of a data set are looked at for, whatever belongs to them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.folders import fingerprint
from vpeft_bench.data.pictures import PictureFacts, Size, content_hash, decode, is_flat, pixel_hash
from vpeft_bench.data.schema import LOSSLESS, DataConfig
from vpeft_bench.data.splits import Dataset, PictureFiles
from vpeft_bench.errors import VpeftBenchError

SAMPLE = 8
"""Pictures of a split whose pixels stand for those of the split."""

RENDERED = "array"
"""The format of pictures that are rendered."""

_DARK = 1 / 8  # of the range of 16 bits; 5 of 8 bits or fewer are left of what stays below


@dataclass(frozen=True)
class _Looked:
    """What is kept of a picture that was decoded; see :class:`~vpeft_bench.data.pictures.Decoded`.

    Attributes:
        facts: what its file says.
        transparent: whether any pixel is not opaque.
        further_frames: whether only the first of several frames was read.
        highest: of a 16-bit picture.
        flat: whether all pixels have one colour.
        size: width and height.
        pixels: their hash.
    """

    facts: PictureFacts
    transparent: bool
    further_frames: bool
    highest: float | None
    flat: bool
    size: Size
    pixels: str


def inspect_pictures(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Decode a sample of the pictures of every split, or all of them.

    What cannot be read, or is of another size than its annotation says, is refused. Formats, the
    pixels of the sample and the hashes of all that was decoded are noted. Of rendered pictures,
    which their generator identifies, none is made unless all are wanted.
    """
    chosen = {
        name: range(len(split)) if inspection.full else sample(len(split))
        for name, split in dataset.splits.items()
    }
    files = {name: s for name, s in dataset.splits.items() if isinstance(s, PictureFiles)}
    paths = dict.fromkeys(s.file(index) for name, s in files.items() for index in chosen[name])
    look = functools.partial(_look, background=config.background)
    with ThreadPoolExecutor() as threads:
        found = inspection.track(threads.map(look, paths), "decoding pictures", len(paths))
        read = dict(zip(paths, found, strict=True))
    looked = {path: found for path, found in read.items() if isinstance(found, _Looked)}
    wrong = {path: str(found) for path, found in read.items() if isinstance(found, Exception)}
    wrong |= _other_sizes(files, chosen, looked)
    for path, message in wrong.items():
        inspection.refuse(path, message.removeprefix(path).strip())

    for name, split in dataset.splits.items():
        if isinstance(split, PictureFiles):
            found = {index: looked.get(split.file(index)) for index in chosen[name]}
            pixels = {index: picture.pixels for index, picture in found.items() if picture}
            of_sample = (pixels.get(index, "") for index in sample(len(split)))
            inspection.facts.pixels[name] = fingerprint(text.encode() for text in of_sample)
            inspection.pixels[name] = {
                index: picture.pixels
                for index, picture in found.items()
                if picture and not picture.flat
            }
        elif inspection.full:
            hashes = {index: content_hash(split.image(index)) for index in chosen[name]}
            inspection.pixels[name] = {i: content for i, content in hashes.items() if content}
    formats = {picture.facts.format for picture in looked.values()}
    if len(files) < len(dataset.splits):
        formats.add(RENDERED)
    inspection.facts = replace(inspection.facts, image_format="+".join(sorted(formats)))
    for notice in _notices(list(looked.values()), formats, config):
        inspection.tell(notice)
    if unproven := _turned(files, chosen, looked):
        count = _share(unproven, looked)
        inspection.tell(f"turned by EXIF: {count}; annotations are read as of the turned picture")


def sample(size: int) -> list[int]:
    """Indices of the pictures that stand for a split of ``size``, the same every time."""
    if size <= SAMPLE:
        return list(range(size))
    drawn = np.random.default_rng(size).choice(size, SAMPLE, replace=False)
    return sorted(drawn.tolist())


def data_identity(dataset: Dataset, inspection: Inspection) -> str:
    """What tells a data set from others: its fingerprint, and the pixels of a sample of its files.

    Other pixels under the same names are another data set. Pictures that are rendered have their
    generator in the fingerprint already.
    """
    pixels = inspection.facts.pixels
    if not pixels:
        return dataset.fingerprint
    parts = [dataset.fingerprint, *(f"{name} {pixels[name]}" for name in sorted(pixels))]
    return fingerprint(part.encode() for part in parts)


def _look(path: str, background: str | None) -> _Looked | VpeftBenchError:
    try:
        decoded = decode(path, background)
    except VpeftBenchError as error:
        return error
    image = decoded.image
    return _Looked(
        decoded.facts,
        decoded.transparent,
        decoded.further_frames,
        decoded.highest,
        is_flat(image),
        image.size,
        pixel_hash(image),
    )


def _other_sizes(
    files: Mapping[str, PictureFiles],
    chosen: Mapping[str, Sequence[int]],
    looked: Mapping[str, _Looked],
) -> dict[str, str]:
    """What is wrong, by path, with pictures of another size than their annotations say."""
    wrong: dict[str, str] = {}
    for name, split in files.items():
        for index in chosen[name]:
            picture = looked.get(split.file(index))
            try:
                if picture:
                    split.require_size(index, picture.size)
            except VpeftBenchError as error:
                wrong[split.file(index)] = str(error)
    return wrong


def _turned(
    files: Mapping[str, PictureFiles],
    chosen: Mapping[str, Sequence[int]],
    looked: Mapping[str, _Looked],
) -> set[str]:
    """Pictures that EXIF turns, and whose annotations may be of them before that or after."""
    found = set()
    for name, split in files.items():
        for index in chosen[name] if split.task != "classification" else ():
            picture = looked.get(path := split.file(index))
            if picture is None or picture.facts.orientation == 1:
                continue
            # An annotated size that fits (others were refused) tells, unless both are the same.
            square = picture.facts.stored_size == picture.size
            if square or (split.task == "detection" and split.annotated_size(index) is None):
                found.add(path)
    return found


def _notices(
    looked: Sequence[_Looked], formats: Collection[str], config: DataConfig
) -> Iterator[str]:
    if transparent := [picture for picture in looked if picture.transparent]:
        how = "read without their alpha, data.background=COLOUR composites them"
        if config.background is not None:
            how = f"composited onto {config.background}"
        yield f"transparent pixels: {_share(transparent, looked)}, {how}"
    if several := [picture for picture in looked if picture.further_frames]:
        yield f"several frames: {_share(several, looked)}, the first one is read"
    if further := [picture for picture in looked if picture.facts.channels]:
        most = max(picture.facts.channels or 0 for picture in further)
        yield f"up to {most} channels: {_share(further, looked)}, only the first are read"
    if flat := [picture for picture in looked if picture.flat]:
        yield f"one colour each: {_share(flat, looked)}"
    highest = [picture.highest for picture in looked if picture.highest is not None]
    if highest and max(highest) < _DARK:
        yield f"16-bit pictures use {max(highest):.1%} of their range: dark in 8 bits"
    if "jpeg" in formats and config.original_format in LOSSLESS:
        yield f"JPEG pictures, lossless in the original ({config.original_format})"


def _share(found: Sized, looked: Sized) -> str:
    return f"{len(found)} of {len(looked)} pictures looked at"
