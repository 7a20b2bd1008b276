"""Pictures as people have them, read the one way; and files that are none."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vpeft_bench.data.pictures import (
    decode,
    look,
    parse_colour,
    read_label_map,
    read_picture,
    require_size,
)
from vpeft_bench.errors import VpeftBenchError

pytestmark = pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning:PIL.TiffImagePlugin"
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 40), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
PNG = b"\x89PNG\r\n\x1a\n"


def read(path: Path, background: str | None = None) -> NDArray[np.uint8]:
    return np.asarray(read_picture(str(path), background))


def grey(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.dstack([values] * 3)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def tiff(values: NDArray[Any], bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF of 16 bits, or of 12 where two values take three bytes."""
    height, width = values.shape
    data = values.astype("<u2" if sample_format == 1 else "<i2").tobytes()
    if bits == 12:
        high, low = values.reshape(-1, 2).astype(np.uint16).T
        packed = [high >> 4, (high & 15) << 4 | low >> 8, low & 255]
        data = np.stack(packed, axis=1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 279: len(data), 339: sample_format}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data


def tiff_of(values: NDArray[Any], sample_format: int = 1) -> bytes:
    """An uncompressed TIFF of several channels, (H, W, C)."""
    height, width, channels = values.shape
    data = np.ascontiguousarray(values).tobytes()
    bits, kinds = [8 * values.itemsize] * channels, [sample_format] * channels
    further = {338: [0] * (channels - 3)} if channels > 3 else {}
    numbers = {256: [width], 257: [height], 258: bits, 259: [1], 262: [2], 277: [channels]}
    numbers |= {278: [height], 279: [len(data)], 284: [1], 339: kinds, **further, 273: [0]}
    start = 8 + 2 + 12 * len(numbers) + 4
    apart, entries = b"", []
    for tag, these in sorted(numbers.items()):
        packed = struct.pack(f"<{len(these)}I", *these)
        if len(these) > 1:
            packed, apart = struct.pack("<I", start + len(apart)), apart + packed
        entries.append((tag, len(these), packed))
    place = struct.pack("<I", start + len(apart))
    rows = [
        struct.pack("<HHI", tag, 4, count) + (place if tag == 273 else packed)
        for tag, count, packed in entries
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(rows))
    return head + b"".join(rows) + bytes(4) + apart + data


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2", ".pgm"])
def test_16_bits_become_the_8_of_their_twin(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"wide{suffix}"
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    assert np.array_equal(read(path), grey(GREY))
    assert decode(str(path)).highest == pytest.approx(GREY.max() / 255)


def test_16_bits_are_rounded(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 7, dtype=np.uint16)[None]
    Image.fromarray(values).save(tmp_path / "wide.png")
    expected = np.round(values * 255.0 / 65535).astype(np.uint8)
    assert np.array_equal(read(tmp_path / "wide.png"), grey(expected))


def test_16_bits_in_the_other_order(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (40, 30), (GREY.astype(">u2") * 257).tobytes())
    image.save(tmp_path / "big.tif")
    assert np.array_equal(read(tmp_path / "big.tif"), grey(GREY))


def test_16_bit_colours(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOUR.astype(np.uint16) * 257)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path = tmp_path / "wide.png"
    path.write_bytes(PNG + b"".join(png_chunk(*chunk) for chunk in chunks))
    assert np.array_equal(read(path), COLOUR)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colours_that_use_little_of_their_range_are_known(
    tmp_path: Path, suffix: str
) -> None:
    """12 bits in 16, as cameras and microscopes store them."""
    path = tmp_path / f"dim{suffix}"
    values = COLOUR.astype(np.uint16) * 16
    if suffix == ".png":
        header = struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        path.write_bytes(PNG + b"".join(png_chunk(*chunk) for chunk in chunks))
    else:
        path.write_bytes(tiff_of(values))
    assert decode(str(path)).highest == pytest.approx(15 / 255)


def test_channels_beyond_the_colours_are_known(tmp_path: Path) -> None:
    """Satellite pictures: the first three of their bands are read."""
    bands = np.concatenate([COLOUR, COLOUR[..., :2]], axis=-1)
    (tmp_path / "bands.tif").write_bytes(tiff_of(bands))
    (tmp_path / "rgb.tif").write_bytes(tiff_of(COLOUR))
    found = decode(str(tmp_path / "bands.tif"))
    assert found.facts.channels == 5
    assert np.array_equal(np.asarray(found.image), COLOUR)
    assert decode(str(tmp_path / "rgb.tif")).facts.channels is None


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (tiff_of(np.zeros((4, 4, 3), np.float32), sample_format=3), "a TIFF that is damaged, or"),
        (tiff_of(np.zeros((4, 4, 6), np.uint16)), "a TIFF that is damaged, or"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a page of HTML"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "0.tif").write_bytes(content)
    with pytest.raises(VpeftBenchError, match=what):
        read(tmp_path / "0.tif")


def test_12_bits_use_their_own_range(tmp_path: Path) -> None:
    values = GREY.astype(np.uint16) * 4095 // 255
    (tmp_path / "12.tif").write_bytes(tiff(values, 12))
    expected = np.round(values * 255.0 / 4095).astype(np.uint8)
    assert np.array_equal(read(tmp_path / "12.tif"), grey(expected))


def test_16_bits_of_which_0_is_white(tmp_path: Path) -> None:
    (tmp_path / "x-ray.tif").write_bytes(tiff(GREY.astype(np.uint16) * 257, 16, photometric=0))
    assert np.array_equal(read(tmp_path / "x-ray.tif"), grey(255 - GREY))


def test_16_bits_with_a_transparent_value(tmp_path: Path) -> None:
    values = np.array([[0, 300, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "holes.png", transparency=300)
    assert decode(str(tmp_path / "holes.png")).transparent
    assert read(tmp_path / "holes.png", "white")[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("values", "name", "what"),
    [
        (GREY.astype(np.float32) / 255, "f.tif", "floating point"),
        (GREY.astype(np.int32) * 1000, "i.tif", "signed or 32-bit integers"),
    ],
)
def test_values_without_an_agreed_range_are_refused(
    tmp_path: Path, values: NDArray[Any], name: str, what: str
) -> None:
    Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(VpeftBenchError, match=rf"{name} cannot be read as a picture: .*{what}"):
        read(tmp_path / name)


def test_signed_values_are_refused(tmp_path: Path) -> None:
    (tmp_path / "signed.tif").write_bytes(tiff(GREY.astype(np.int16) - 99, 16, sample_format=2))
    with pytest.raises(VpeftBenchError, match="signed"):
        read(tmp_path / "signed.tif")


def test_signed_bytes_are_refused(tmp_path: Path) -> None:
    content = bytearray(tiff_of(COLOUR[..., :1].astype(np.int8), sample_format=2))
    content[content.index(struct.pack("<HHII", 262, 4, 1, 2)) + 8] = 1  # grey
    (tmp_path / "signed.tif").write_bytes(content)
    with pytest.raises(VpeftBenchError, match="signed"):
        read(tmp_path / "signed.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(COLOUR).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read(path), expected)
    facts = look(str(path))
    assert (facts.orientation, facts.stored_size) == (orientation, (40, 30))
    assert facts.size == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientations_that_do_not_exist_turn_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), COLOUR)


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOUR).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff damaged")
    assert read(path).shape == COLOUR.shape


def rgba() -> Image.Image:
    image = Image.fromarray(COLOUR)
    image.putalpha(Image.fromarray(np.where(GREY < 128, 0, 255).astype(np.uint8)))
    return image


def test_alpha_is_dropped_or_composited(tmp_path: Path) -> None:
    rgba().save(tmp_path / "a.png")
    assert decode(str(tmp_path / "a.png")).transparent
    assert np.array_equal(read(tmp_path / "a.png"), COLOUR)
    red = np.where((GREY < 128)[..., None], np.array([255, 0, 0], np.uint8), COLOUR)
    assert np.array_equal(read(tmp_path / "a.png", "red"), red)
    assert np.array_equal(read(tmp_path / "a.png", "#ff0000"), red)


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (200, 0, 0, 128)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", "white")[0, 0].tolist() == [227, 127, 127]


def test_an_opaque_alpha_channel_is_not_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR)
    image.putalpha(255)
    image.save(tmp_path / "a.png")
    decoded = decode(str(tmp_path / "a.png"), "white")
    assert not decoded.transparent
    assert np.array_equal(np.asarray(decoded.image), COLOUR)


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB", "1"])
def test_every_kind_of_transparency_is_seen(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    image = rgba().convert("LA") if mode == "LA" else Image.new(mode, (4, 4))
    transparent = {"P": bytes([0, 255]), "L": 0, "RGB": (0, 0, 0), "1": 0}
    image.save(path, **({"transparency": transparent[mode]} if mode in transparent else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(str(path))
    assert decoded.facts.mode == mode
    assert decoded.transparent
    if mode != "LA":
        assert (read(path) == 0).all()
        assert (read(path, "white") == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    assert np.array_equal(read(path), np.asarray(image.convert("RGB")))
    assert not decode(str(path)).transparent


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    decoded = decode(str(path))
    assert decoded.further_frames
    assert np.asarray(decoded.image)[0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)


def test_further_pictures_of_telephones_are_no_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    decoded = decode(str(tmp_path / "a.jpg"))
    assert decoded.facts.format == "jpeg"
    assert not decoded.further_frames


def bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    path.write_bytes(PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")))


def large(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 10000, 10000, 8, 0, 0, 0, 0)
    path.write_bytes(PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")))


def short_header(path: Path) -> None:
    path.write_bytes(PNG + png_chunk(b"IHDR", bytes(5)))


def bad_checksum(path: Path) -> None:
    Image.fromarray(COLOUR).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def cut(format_: str, **options: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        Image.fromarray(COLOUR).resize((400, 300)).save(path, format_, **options)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])

    return damage


def zeros_at_the_end(path: Path) -> None:
    Image.fromarray(COLOUR).resize((400, 300)).save(path, "JPEG")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bomb": (bomb, "400,000,000 pixels|400000000 pixels"),
    "large": (large, "100,000,000 pixels are more than the 89,478,485 that are decoded"),
    "short header": (short_header, "Truncated IHDR chunk"),
    "checksum": (bad_checksum, "checksum|unrecognized"),
    "cut jpeg": (cut("JPEG"), "truncated"),
    "cut progressive jpeg": (cut("JPEG", progressive=True), "truncated"),
    "jpeg of zeros": (zeros_at_the_end, "truncated"),
    "cut png": (cut("PNG"), "truncated"),
    "cut webp": (cut("WEBP"), "."),
    "cut gif": (cut("GIF"), "truncated"),
    "cut bmp": (cut("BMP"), "truncated"),
    "cut tiff": (cut("TIFF", compression="tiff_lzw"), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "absent": (lambda path: None, "No such file"),
    "page": (lambda path: path.write_text("<!DOCTYPE html>..."), "a page of HTML or XML"),
    "pointer": (lambda path: path.write_text("version https://git-lfs"), "a pointer of Git LFS"),
    "header only": (lambda path: path.write_bytes(PNG), "."),
    "bad bmp": (lambda path: path.write_bytes(b"BM" + b"\xff" * 60), "."),
    "bad tiff": (lambda path: path.write_bytes(b"II*\0" + b"\xff" * 60), "."),
    "bad jpeg": (lambda path: path.write_bytes(b"\xff\xd8\xff" + b"\x00" * 60), "."),
    "bad gif": (lambda path: path.write_bytes(b"GIF89a" + b"\x00" * 60), "."),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_whatever_a_decoder_raises_is_one_line(tmp_path: Path, name: str) -> None:
    damage, reason = DAMAGE[name]
    path = tmp_path / "a b.png"
    damage(path)
    with pytest.raises(VpeftBenchError, match=reason) as caught:
        read_picture(str(path))
    assert str(caught.value).startswith(f"{path} cannot be read as a picture: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bomb", "empty", "folder", "short header"])
def test_a_glance_fails_in_one_line_too(tmp_path: Path, name: str) -> None:
    damage, reason = DAMAGE[name]
    damage(tmp_path / "a.png")
    with pytest.raises(VpeftBenchError, match=rf"a\.png cannot be read as a picture: .*({reason})"):
        look(str(tmp_path / "a.png"))


def test_a_label_map_keeps_its_values(tmp_path: Path) -> None:
    values = RNG.integers(0, 5, (6, 8), dtype=np.uint8)
    for mode in ("L", "P"):
        image = Image.frombytes(mode, (8, 6), values.tobytes())
        if mode == "P":
            image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
        image.save(tmp_path / "map.png")
        assert np.array_equal(read_label_map(str(tmp_path / "map.png")), values)


def test_a_label_map_is_turned_by_its_own_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "map.png", exif=exif)
    assert np.array_equal(read_label_map(str(tmp_path / "map.png")), np.rot90(GREY, -1))


def test_a_damaged_label_map_is_one_line(tmp_path: Path) -> None:
    cut("PNG")(tmp_path / "map.png")
    with pytest.raises(VpeftBenchError, match=r"map\.png cannot be read as a label map: .*trunc"):
        read_label_map(str(tmp_path / "map.png"))
    short_header(tmp_path / "map.png")
    with pytest.raises(VpeftBenchError, match=r"map\.png cannot be read as a label map: Trunc"):
        read_label_map(str(tmp_path / "map.png"))


def test_other_sizes_are_errors_that_name_exif_where_it_is_the_reason(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    path = str(tmp_path / "a.jpg")
    Image.fromarray(COLOUR).save(path, exif=exif)
    require_size(path, (30, 40), (30, 40), "its annotation says")
    with pytest.raises(VpeftBenchError, match=r"stored as 40x30 and shown as 30x40.*EXIF orient"):
        require_size(path, (30, 40), (40, 30), "its annotation says")
    with pytest.raises(VpeftBenchError, match=r"is 30x40, but its annotation says 41x30") as caught:
        require_size(path, (30, 40), (41, 30), "its annotation says")
    assert "EXIF" not in str(caught.value)


def test_colours() -> None:
    assert parse_colour("white") == parse_colour("#ffffff") == (255, 255, 255)
    for wrong in ("wite", "#ffffff80", "#12345", ""):
        with pytest.raises(ValueError, match=r"not opaque|unknown color specifier"):
            parse_colour(wrong)
