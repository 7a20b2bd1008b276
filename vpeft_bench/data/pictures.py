"""The one way to read a picture or a label map from a file.

Whatever a file holds becomes 8-bit RGB, as it is shown:

- 16 bits per channel are scaled to 8, so that 257 times a value is that value again. Floating point
  and 32-bit or signed integers are refused: no range is agreed for them.
- The EXIF orientation is applied. Label maps are turned by their own, if they have any.
- Transparent pixels keep the colours that are stored under them, or are composited onto a
  background.
- Of several frames or pages the first is read.

Whatever a decoder raises becomes one line that names the file.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, UnidentifiedImageError

from vpeft_bench.errors import VpeftBenchError

Size = tuple[int, int]
"""Width and height, pixels."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

COLOURS = tuple(ImageColor.colormap)
"""Names of colours."""

_ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_PHOTOMETRIC = 256, 257, 258, 262
_TIFF_CHANNELS, _TIFF_SAMPLE_FORMAT = 277, 339
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = 5  # and above
_FORMATS = {"mpo": "jpeg"}  # telephones' JPEG with further pictures in it
_STILL = ("MPO", "PSD")  # their further pictures are no frames
_STRETCHED = {"L;2": 85, "L;4": 17}  # Pillow spreads grey of few bits over 0 to 255
_SIXTEEN_BITS = (";16B", ";16L", ";16N")  # Pillow's names of how colours of 16 bits are stored
_SIGNED = 2  # TIFF's sample format
_HEAD = 16  # bytes of an unknown file that are shown

_KINDS = {
    **dict.fromkeys(
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "a TIFF that is damaged, or whose channels are not read (floating point colours, more than "
        "4 channels of 16 bits ...); store grey or RGB with 8 or 16 bits per channel",
    ),
    b"version https://": "a pointer of Git LFS, not the picture; type git lfs pull",
    b"<": "a page of HTML or XML, not a picture",
    b"\x93NUMPY": "a NumPy array, not a picture",
    b"\x89HDF": "an HDF5 file, not a picture",
}
"""What files are that begin so and cannot be read as a picture."""

# Pillow warns of pictures that are refused here, and of metadata that nobody reads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True)
class PictureFacts:
    """What a file says about its picture.

    Attributes:
        format: ``jpeg``, ``png``, ``tiff``, ...
        mode: Pillow's name of how pixels are stored, e.g. ``RGB``, ``P`` or ``I;16``.
        stored_size: before it is turned.
        size: as it is shown.
        orientation: EXIF's, 1 to 8; 1 is upright.
        channels: that the file holds, where there are more than the mode has; else None.
    """

    format: str
    mode: str
    stored_size: Size
    size: Size
    orientation: int
    channels: int | None = None


@dataclass(frozen=True)
class Decoded:
    """A picture and what is known only after it was decoded.

    Attributes:
        image: 8-bit RGB.
        facts: what the file says.
        transparent: whether any pixel is not opaque.
        further_frames: whether the file holds more frames or pages than the one that was read.
        highest: largest value of a 16-bit picture as a share of the largest possible; None for
            others.
    """

    image: Image.Image
    facts: PictureFacts
    transparent: bool
    further_frames: bool
    highest: float | None


def read_picture(path: str, background: str | None = None) -> Image.Image:
    """The file as 8-bit RGB, as it is shown.

    Args:
        path: of the file.
        background: the colour that transparent pixels are composited onto; None keeps the colours
            stored under them.

    Raises:
        VpeftBenchError: it cannot be decoded, or no range is agreed for its values.
    """
    return decode(path, background).image


def decode(path: str, background: str | None = None) -> Decoded:
    """As :func:`read_picture`, with what else became known of the picture."""
    with _opened(path, "picture") as image:
        wide = _raw_mode(image).endswith(_SIXTEEN_BITS)
        facts = _facts(image)
        _load(path, image)
        grey_16, highest = _reduced(image)
        rgb, transparent = _rgb(grey_16 or image, background)
        if wide and highest is None:  # colours, of which Pillow kept the higher 8 bits
            highest = float(np.asarray(rgb).max()) / 255
        return Decoded(_upright(rgb, image), facts, transparent, _goes_on(image), highest)


def pixel_hash(image: Image.Image) -> str:
    """The sha256 of a picture's size and pixels."""
    digest = hashlib.sha256("{}x{}:".format(*image.size).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def is_flat(image: Image.Image) -> bool:
    """Whether all pixels have one colour: such a picture shows nothing it could be known by."""
    return image.getcolors(maxcolors=1) is not None


def content_hash(image: Image.Image) -> str | None:
    """What tells whether two pictures are the same; None for one of a single colour."""
    return None if is_flat(image) else pixel_hash(image)


def look(path: str) -> PictureFacts:
    """What a file says about its picture, which is not decoded.

    Raises:
        VpeftBenchError: it says nothing that can be understood.
    """
    with _opened(path, "picture") as image:
        return _facts(image)


def read_label_map(path: str) -> NDArray[np.uint8]:
    """(H, W) the values as they are in the file: of a palette the indices, not the colours.

    Raises:
        VpeftBenchError: it cannot be decoded, or is neither grey of 8 bits or fewer nor with a
            palette.
    """
    with _opened(path, "label map") as image:
        stretched = _STRETCHED.get(_raw_mode(image), 1)
        _load(path, image)
        if image.mode not in ("1", "L", "P"):
            raise VpeftBenchError(
                f"{path} is not a label map: 8-bit class indices were expected, "
                f"grey or with a palette, but its mode is {image.mode}{_advice(image)}"
            )
        values = np.array(_upright(image, image)).astype(np.uint8)
        return values if stretched == 1 else values // np.uint8(stretched)


def palette_of(path: str) -> list[Colour] | None:
    """The colour of each value of a label map, as far as they go; None where it has no palette.

    Raises:
        VpeftBenchError: the file says nothing that can be understood.
    """
    with _opened(path, "label map") as image:
        if image.mode != "P" or not (flat := image.getpalette("RGB")):
            return None
        return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def _advice(image: Image.Image) -> str:
    """What to do with a picture that is no label map."""
    if image.mode.startswith("I"):
        return ", 16-bit: store it with 8 bits"
    if image.mode != "RGB":
        return ""
    red, green, blue = (np.asarray(channel) for channel in image.split())
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return ", and its three channels are alike: store one of them"
    return ": it holds colours; store the number of the class that each colour stands for"


def require_size(path: str, size: Size, annotated: Size, annotation: str) -> None:
    """Refuse a picture of another size than its annotation says.

    Args:
        path: of the picture.
        size: of the picture as it is shown.
        annotated: what the annotation says.
        annotation: what that is and a verb, for the message.

    Raises:
        VpeftBenchError: they differ; it names EXIF where the annotation is of the picture as it is
            stored.
    """
    if size == annotated:
        return
    shown, said = "{}x{}".format(*size), "{}x{}".format(*annotated)
    facts = look(path)
    if facts.orientation != 1 and facts.stored_size == annotated:
        raise VpeftBenchError(
            f"{path} is stored as {said} and shown as {shown}, turned by its EXIF orientation "
            f"{facts.orientation}, but {annotation} {said}: annotate pictures as they are "
            f"shown, or remove the orientation (exiftool -Orientation= FILE)"
        )
    raise VpeftBenchError(f"{path} is {shown}, but {annotation} {said}")


def parse_colour(text: str) -> Colour:
    """Red, green and blue, 0 to 255, of a name or ``#rrggbb``.

    Raises:
        ValueError: it is no opaque colour.
    """
    colour = ImageColor.getrgb(text)
    if len(colour) != 3:
        raise ValueError(f"{text} is not opaque")
    return colour


@contextmanager
def _opened(path: str, what: str) -> Iterator[Image.Image]:
    """The file, opened; whatever is raised meanwhile becomes one line."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(_too_large(width * height))
            yield image
    except VpeftBenchError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        reason = _reason(path, error)
        raise VpeftBenchError(f"{path} cannot be read as a {what}: {reason}") from error


def _too_large(pixels: int) -> str:
    return f"{pixels:,} pixels are more than the {Image.MAX_IMAGE_PIXELS:,} that are decoded"


def _reason(path: str, error: Exception) -> str:
    """What is wrong with a file that raised ``error``, in one line."""
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        if not head:
            return "the file is empty"
        if kind := next((kind for begin, kind in _KINDS.items() if head.startswith(begin)), ""):
            return f"it is {kind}"
        return f"it is damaged or of a format that is not known; it begins with {head!r}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    telling = isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError)
    return text if telling and text else f"{type(error).__name__}: {text}"


def _load(path: str, image: Image.Image) -> None:
    """Decode an opened file. Of a PNG Pillow checks the checksums of pixels only when asked."""
    image.load()
    if image.format == "PNG":
        with Image.open(path) as again:
            again.verify()


def _facts(image: Image.Image) -> PictureFacts:
    orientation = _orientation(image)
    stored = image.size
    tags: Any = getattr(image, "tag_v2", None)  # Pillow swaps the sides of a TIFF by itself
    if tags is not None:
        stored = int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])
    size = stored[::-1] if orientation >= _SWAPS_SIDES else stored
    name = (image.format or "unknown").lower()
    channels = int(tags.get(_TIFF_CHANNELS, 1)) if tags is not None else 0
    further = channels if channels > len(image.getbands()) else None
    return PictureFacts(_FORMATS.get(name, name), image.mode, stored, size, orientation, further)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of how the file stores its pixels; empty once they are decoded."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 where there is none, or none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata do not make a picture worthless
        return 1
    return found if found in _TURNS else 1


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """``picture`` turned as ``source``, which was decoded, still has to be; TIFFs were by then."""
    turn = _TURNS.get(_orientation(source))
    return picture if turn is None else picture.transpose(turn)


def _reduced(image: Image.Image) -> tuple[Image.Image | None, float | None]:
    """A 16-bit grey picture with 8 bits, and its largest value as a share; None for others.

    Raises:
        ValueError: no range is agreed for its values.
    """
    if image.mode == "F":
        raise ValueError(
            "its values are floating point numbers, whose range nobody agreed on; store it with "
            "8 or 16 bits per channel"
        )
    tags: Any = getattr(image, "tag_v2", {})
    signed = _SIGNED in tags.get(_TIFF_SAMPLE_FORMAT, ())
    # PNG and PGM have no more than 16 bits.
    if signed or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            "its values are signed or 32-bit integers, whose range nobody agreed on; store it with "
            "8 or 16 bits per channel"
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None, None
    values = np.asarray(image).astype(np.uint32)
    largest = 2 ** max(tags.get(_TIFF_BITS, (16,))) - 1
    highest = float(values.max()) / largest
    reduced = Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # white is 0; Pillow sees to it in 8 bits alone
        reduced = Image.eval(reduced, lambda value: 255 - value)
    if (transparent := image.info.get("transparency")) is not None:
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        reduced.putalpha(alpha)
    return reduced, highest


def _rgb(image: Image.Image, background: str | None) -> tuple[Image.Image, bool]:
    """An 8-bit picture as RGB, and whether any pixel is not opaque."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight.convert("RGBA")
    transparent = bool((np.asarray(rgba.getchannel("A")) < 255).any())
    if not transparent or background is None:
        return rgba.convert("RGB"), transparent
    canvas = Image.new("RGBA", rgba.size, parse_colour(background))
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB"), True


def _goes_on(image: Image.Image) -> bool:
    """Whether there are further frames or pages."""
    if image.format in _STILL:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # only the first frame is read: damage to others does not matter
        return False
