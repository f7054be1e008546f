"""What photo tools, notebooks and strangers leave in a folder of images."""

import contextlib
import gzip
import io
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments.common.errors import UserError
from experiments.data import decoding, image_files, images, stores
from tests.test_images import contents, data_config, write_tar, write_tree

SPLITS = ("train", "validation")


def encoded(image, kind="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def decoded(data):
    return np.asarray(decoding.decode(data, "x.png"))


def png(width, height, bits, colour, rows=b"", key=b""):
    """A PNG of any kind, also of those that Pillow does not write."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts[1:1] = [(b"tRNS", key)] if key else []
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def read_all(path, **changes):
    """The pixels of a set's first training image."""
    config = data_config(str(path), image_size=8, **changes).data
    return images.load(config).train.view(0)


def as_set(folder, data, name="x.png"):
    """Writes one image as each class of each split."""
    files = {f"{s}/{c}/{name}": data for s in SPLITS for c in ("a", "b")}
    return write_tree(folder, files)


# More than 8 bits.

RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)


def test_sixteen_bits_of_grey_keep_the_upper_eight(tmp_path):
    path = as_set(tmp_path, encoded(Image.fromarray(RAMP)))
    for channel in np.moveaxis(read_all(path), -1, 0):
        np.testing.assert_array_equal(channel, RAMP >> 8)


@pytest.mark.parametrize(
    ("colour", "sample", "expected"),
    [
        (0, (0x1234,), (0x12,) * 3),
        (2, (0x1234, 0x5678, 0xFFFF), (0x12, 0x56, 0xFF)),
        (4, (0x7F80, 0xFFFF), (0x7F,) * 3),
        (6, (0x1234, 0x5678, 0x00FF, 0xFFFF), (0x12, 0x56, 0)),
    ],
    ids=["grey", "colours", "grey and alpha", "colours and alpha"],
)
def test_every_kind_of_sixteen_bits_keeps_the_upper_eight(colour, sample, expected):
    data = png(1, 1, 16, colour, b"\0" + struct.pack(f">{len(sample)}H", *sample))
    assert decoded(data).tolist() == [[list(expected)]]


# Fewer than 8 bits, palettes, transparency, print colours, several images.


@pytest.mark.parametrize(
    ("bits", "byte", "expected"),
    [(1, 0b01000000, [0, 255]), (2, 0b00010000, [0, 85]), (4, 0x0F, [0, 255])],
)
def test_few_bits_span_all_of_black_to_white(bits, byte, expected):
    found = decoded(png(2, 1, bits, 0, bytes([0, byte])))
    assert found[0, :, 0].tolist() == expected


RED, CLEAR_RED, HALF_BLACK = (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)


def test_what_is_transparent_lies_on_white():
    image = Image.new("RGBA", (3, 1))
    for place, colour in enumerate((RED, CLEAR_RED, HALF_BLACK)):
        image.putpixel((place, 0), colour)
    expected = [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    assert decoded(encoded(image)).tolist() == expected
    assert decoded(encoded(image.convert("P"))).tolist() == expected
    hidden = Image.new("LA", (1, 1), (10, 0))
    assert decoded(encoded(hidden)).tolist() == [[[255] * 3]]
    keyed = encoded(Image.new("L", (1, 1), 7), transparency=7)
    assert decoded(keyed).tolist() == [[[255] * 3]]


KEYED = {
    "1 bit, white": (1, 0b01000000, 1, [0, 255]),
    "1 bit, black": (1, 0b01000000, 0, [255, 255]),
    "2 bits": (2, 0b01100000, 1, [255, 170]),
    "4 bits": (4, 0x12, 1, [255, 34]),
    "8 bits": (8, 0x0109, 1, [255, 9]),
    "16 bits": (16, 0x12348000, 0x1234, [255, 0x80]),
    "16 bits, another of the same upper eight": (16, 0x12348000, 0x1235, [0x12, 0x80]),
}


@pytest.mark.parametrize(("bits", "row", "key", "expected"), KEYED.values(), ids=KEYED)
def test_the_colour_that_a_file_calls_transparent_lies_on_white(
    bits, row, key, expected
):
    """In samples of the file, which are not those of 8 bits."""
    packed = row.to_bytes(max(1, 2 * bits // 8), "big")
    found = decoded(png(2, 1, bits, 0, b"\0" + packed, key=struct.pack(">H", key)))
    assert found[0, :, 0].tolist() == expected


def test_of_48_bits_the_upper_halves_of_a_colour_decide():
    row = struct.pack(">6H", 0x100, 0x200, 0x300, 0x101, 0x201, 0x400)
    key = struct.pack(">3H", 0x100, 0x200, 0x300)
    found = decoded(png(2, 1, 16, 2, b"\0" + row, key=key))
    assert found[0].tolist() == [[255, 255, 255], [1, 2, 4]]


def test_a_palette_is_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 1)
    assert decoded(encoded(image)).tolist() == [[[0, 0, 0], [10, 20, 30]]]


def test_print_colours_are_not_inverted():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decoded(encoded(red, "JPEG"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "MPO"])
def test_the_first_of_several_images_is_taken(kind):
    first, second = Image.new("RGB", (16, 16), (200,) * 3), Image.new("RGB", (16, 16))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert decoded(data)[0, 0].tolist() == [200] * 3


# Orientation.

# The letter F, which each of the eight orientations shows another way.
LETTER = np.kron(
    np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], np.uint8) * 200,
    np.ones((8, 8), np.uint8),
)
SHOWN = {
    1: LETTER,
    2: LETTER[:, ::-1],
    3: LETTER[::-1, ::-1],
    4: LETTER[::-1],
    5: LETTER.T,
    6: np.rot90(LETTER, -1),
    7: np.rot90(LETTER, 2).T,
    8: np.rot90(LETTER),
    0: LETTER,  # no orientation at all
    9: LETTER,
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_photos_are_turned_as_they_say(orientation, kind):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    found = decoded(encoded(Image.fromarray(LETTER), kind, exif=exif))
    # JPEG's squares of 8 x 8 have one colour each.
    np.testing.assert_allclose(found[..., 0], SHOWN[orientation], atol=2)


def test_photos_are_turned_before_they_are_cut(tmp_path):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    path = as_set(tmp_path, encoded(Image.fromarray(pixels), exif=exif))
    np.testing.assert_array_equal(read_all(path), np.rot90(pixels, -1))


def test_orientation_may_be_written_as_xmp():
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><a tiff:Orientation='6'/></x:xmpmeta>"
    image = Image.fromarray(LETTER)
    data = encoded(image, "JPEG", xmp=xmp.replace(b"'", b'"'))
    np.testing.assert_allclose(decoded(data)[..., 0], SHOWN[6], atol=2)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as `decoding` does
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02ab\0\0\0\0\0\0",
    ],
    ids=["no tags", "cut off", "a word"],
)
def test_damaged_exif_says_nothing(exif):
    found = decoded(encoded(Image.fromarray(LETTER), "JPEG", exif=exif))
    np.testing.assert_allclose(found[..., 0], LETTER, atol=2)


# Folders that are no classes.

BESIDE = (
    ".ipynb_checkpoints/1-checkpoint.png",
    ".git/1.png",
    "__MACOSX/1.png",
    "@eaDir/1.jpg",
    "$RECYCLE.BIN/1.jpg",
    "@Recently-Snapshot/1.jpg",
    "#snapshot/1.jpg",
    "RECYCLER/1.jpg",
    "__pycache__/1.png",
    "cat/.thumbnail.png",
    "cat/._1.png",
)


@pytest.mark.parametrize("pack", [write_tree, write_tar])
@pytest.mark.parametrize("splits", [("train",), ("val",), ("train", "val")])
def test_what_tools_leave_behind_is_no_class(tmp_path, pack, splits):
    left = {f"{split}/{name}": b"?" for split in splits for name in BESIDE}
    left |= {"__MACOSX/train/1.png": b"?", ".train/cat/1.png": b"?"}
    found = image_files.find(pack(tmp_path / "data", {**contents(), **left}))
    assert found.classes == ["cat", "dog", "eel"]
    assert sorted(found.store.sizes) == sorted(contents())


def test_unreadable_folders_of_a_system_are_not_entered(tmp_path, monkeypatch):
    path = write_tree(tmp_path, contents())
    (tmp_path / "train" / "lost+found").mkdir()
    label = next(iter(contents())).split("/")[1]
    scandir = os.scandir

    def closed(folder):
        if str(folder).endswith(("lost+found", closed.also)):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    closed.also = "nothing"
    monkeypatch.setattr(os, "scandir", closed)
    image_files.find(path)
    closed.also = label
    with pytest.raises(UserError, match=rf"/{label}: Permission denied$"):
        image_files.find(path)


# Files that are no images, and images that are too much.

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def strange(kind):
    if kind == "EPS":
        return EPS
    return encoded(Image.new("RGB", (8, 8)), kind)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO"])
def test_no_other_decoder_is_asked(tmp_path, monkeypatch, kind):
    path = as_set(tmp_path, strange(kind), "z.jpg")
    Image.init()
    assert {"JPEG", "PNG", kind} <= Image.OPEN.keys()
    asked = []

    def watched(name, factory, accept):
        def accepts(prefix):
            asked.append(name)
            return accept is None or accept(prefix)

        return factory, accepts

    for name, (factory, accept) in list(Image.OPEN.items()):
        monkeypatch.setitem(Image.OPEN, name, watched(name, factory, accept))
    with pytest.raises(UserError, match=r"^train/a/z\.jpg: not a JPEG or PNG image$"):
        read_all(path)
    assert set(asked) == {"JPEG", "PNG"}


@pytest.mark.parametrize(
    ("width", "height"),
    [(8193, 8192), (13_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)],
)
def test_images_of_too_many_pixels_are_refused_unread(tmp_path, width, height):
    path = as_set(tmp_path, png(width, height, 8, 2), "bomb.png")
    with pytest.raises(UserError, match=r"^train/a/bomb\.png: .* at most 67,108,864 p"):
        read_all(path)


def test_an_image_of_just_few_enough_pixels_is_read(monkeypatch):
    monkeypatch.setattr(decoding, "LARGEST_IMAGE", 64)
    assert decoded(encoded(Image.new("RGB", (8, 8)))).shape == (8, 8, 3)
    with pytest.raises(UserError, match="at most 64 pixels"):
        decoded(encoded(Image.new("RGB", (13, 5))))


def test_files_larger_than_any_image_are_not_read(tmp_path):
    path = write_tree(tmp_path, contents())
    with (tmp_path / "train/cat/huge.png").open("wb") as file:
        file.truncate(image_files.LARGEST_FILE + 1)
    with pytest.raises(UserError, match=r"cat/huge\.png has 536,870,913 bytes; an im"):
        image_files.find(path)


# Archives.


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_flipped_bits_of_a_compressed_tar_are_noticed(tmp_path, compression):
    path = tmp_path / "t.tar"
    files = {f"{s}/{c}/1.png": b"x" * 700 for s in SPLITS for c in ("a", "b")}
    write_tar(path, files, f"w:{compression}")
    whole = path.read_bytes()
    content = image_files.find(str(path)).sha256(True)
    unnoticed = []
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with contextlib.suppress(UserError):
            unnoticed.append(image_files.find(str(path)).sha256(True))
    # Such as the name and the time in gzip's header, which nothing is read from.
    assert set(unnoticed) <= {content}
    assert len(unnoticed) < 16 < len(whole) / 10


@pytest.mark.parametrize("member", [0, 1, 3])
def test_a_damaged_header_in_a_plain_tar_is_not_its_end(tmp_path, member):
    path = tmp_path / "t.tar"
    files = {f"{s}/{c}/1.png": b"x" * 700 for s in SPLITS for c in ("a", "b")}
    files["train/a/2.png"] = b"x"
    write_tar(path, files)
    data = bytearray(path.read_bytes())
    data[member * 1536 + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"(damaged or cut off|invalid header|checksum)"
    ):
        image_files.find(str(path))


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
@pytest.mark.parametrize(
    "name", ["train/../a.png", "../train/a/1.png", "train/../train/a/1.png", "/train/a"]
)
def test_members_that_lead_out_are_refused(tmp_path, name, compression):
    path = write_tar(tmp_path / "t", {**contents(), name: b""}, f"w:{compression}")
    with pytest.raises(UserError, match=f"the member {name} leads out of the archive"):
        image_files.find(path)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_of_what_a_tar_unpacks_to_no_more_than_the_limit_is_read(
    tmp_path, monkeypatch, compression
):
    monkeypatch.setattr(stores, "LARGEST_UNPACKED", 3_000_000)
    files = {**contents(), "notes.bin": bytes(20_000_000)}
    path = write_tar(tmp_path / "t", files, f"w:{compression}")
    taken = []
    take = stores._Bounded.take
    monkeypatch.setattr(
        stores._Bounded, "take", lambda *a: taken.append(take(*a)) or taken[-1]
    )
    with pytest.raises(UserError, match="has more than 3,000,000 bytes; decompress"):
        image_files.find(path)
    assert sum(map(len, taken)) <= 3_000_000


def test_a_header_that_claims_megabytes_is_refused(tmp_path):
    path = tmp_path / "t.tar"
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**26
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(2**26 + 10_240)
    with pytest.raises(UserError, match="a header of 67,108,864 bytes"):
        image_files.find(str(path))


def _extended(records, name="././@PaxHeader"):
    header = tarfile.TarInfo(name)
    header.type, header.size = tarfile.XHDTYPE, len(records)
    return header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")


@pytest.mark.parametrize("compression", ["", "gz"])
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (_extended(b"9" * 30 + b" path=a\n"), "a number without end"),
        (_extended(b"7 a=b\n") * 3000, "headers without a file, one after another"),
        (
            _extended(b"41 size=" + b"9" * 32 + b"\n"),
            "too large to|sized|more than 4,294,967,296 bytes",
        ),
        (_extended(b"9 size=x\n"), "damaged or cut off"),
        (_extended(b"0 a=b\n"), "invalid header"),
    ],
    ids=["a length", "nested", "a size", "a word for a size", "no length"],
)
def test_headers_that_mislead_are_one_line(tmp_path, headers, message, compression):
    path = tmp_path / "t.tar"
    write_tar(path, {"train/a/1.png": b"x"})
    content = headers + path.read_bytes()
    path.write_bytes(gzip.compress(content) if compression else content)
    with pytest.raises(UserError, match=message):
        image_files.find(str(path))


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(
            UserError, match=f"{path}: not a regular file; a folder, or"
        ):
            image_files.find(path)


def test_pipes_among_images_are_left_alone(tmp_path):
    path = write_tree(tmp_path, contents())
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    assert sorted(image_files.find(path).store.sizes) == sorted(contents())


def test_names_with_line_breaks_make_one_line(tmp_path):
    files = {**contents(), "train/cat/a\n\x1b[31mb.png": b"?"}
    with pytest.raises(UserError) as caught:
        images.load(data_config(write_tree(tmp_path, files)).data)
    assert str(caught.value) == (r"train/cat/a\n\x1b[31mb.png: not a JPEG or PNG image")


def test_too_long_and_remote_paths_are_refused():
    with pytest.raises(UserError, match="File name too long; a folder, or a whole tar"):
        image_files.find("x" * 5000)
    with pytest.raises(UserError, match=r"path=gs://bucket/t\.tar: must be a path of "):
        image_files.find("gs://bucket/t.tar")
