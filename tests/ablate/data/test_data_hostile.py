"""What is wrong with files in the wild, each case made as a real file."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packings import as_coco, as_csv, as_flickr30k, as_folder, as_karpathy, items, write_images
from PIL import Image
from samples import draw, png, shapes_rows, write_shard

from ablate.core.files import cache_directory
from ablate.data import open_pairs
from ablate.data.images import Undecodable, decode
from ablate.data.rows import MAX_BYTES, MAX_WORDS, inside
from blocks import UsageError

Shard = Callable[..., str]
RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, transparency=1) if transparent else encoded(image)


def deep_grey() -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16)))


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def deep_colour() -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    line = b"\0" + struct.pack(">3H", 0xFFFF, 0, 0) * 8
    header = struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(line * 8)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("image", "colour"), [
    pytest.param(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg"), RED, id="CMYK"),
    pytest.param(deep_grey(), (128, 128, 128), id="16-bit grey"),
    pytest.param(deep_colour(), RED, id="16-bit colour"),
    pytest.param(palette(False), RED, id="palette"),
    pytest.param(palette(True), (255, 255, 255), id="palette with transparency"),
    pytest.param(encoded(Image.new("RGBA", (8, 8), (*RED, 0))), (255, 255, 255), id="transparent"),
    pytest.param(encoded(Image.new("LA", (8, 8), (0, 128))), (127, 127, 127), id="half grey"),
    pytest.param(encoded(Image.new("1", (8, 8), 1)), (255, 255, 255), id="one bit"),
    pytest.param(animated("gif"), RED, id="animated GIF"),
    pytest.param(animated("webp"), RED, id="animated WebP"),
    pytest.param(animated("png"), RED, id="animated PNG"),
])  # fmt: skip
@pytest.mark.parametrize("size", [8, 3])
def test_every_mode_becomes_rgb_on_white(
    image: bytes, colour: tuple[int, int, int], size: int
) -> None:
    pixels = decode(image, size)
    assert pixels.shape == (size, size, 3)
    assert np.abs(pixels.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:16, :16] = 255
    exif = Image.Exif()
    exif[274] = orientation
    decoded = decode(encoded(Image.fromarray(pixels), exif=exif), 32)
    corner = np.argmax([decoded[y, x, 0] for y, x in ((4, 4), (4, 28), (28, 28), (28, 4))])
    assert corner == {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}[orientation]


def test_large_jpegs_are_decoded_at_a_fraction_and_look_the_same() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    large = smooth.resize((1200, 900), Image.Resampling.BICUBIC)
    near = decode(encoded(large, "jpeg", quality=95), 32).astype(int)
    exact = decode(encoded(large), 32)
    assert np.abs(near - exact).mean() < 3


def with_header(width: int, height: int) -> bytes:
    content = bytearray(png(np.zeros((1, 1, 3), dtype=np.uint8)))
    content[16:24] = struct.pack(">2I", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(("image", "reason"), [
    (b"", "image cannot be decoded"),
    (b"noise" * 100, "image cannot be decoded"),
    (draw("red", "dot", 1)[:-30], "image cannot be decoded"),
    (encoded(Image.new("RGB", (64, 64), RED), "jpeg")[:300], "image cannot be decoded"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image cannot be decoded"),
    (encoded(Image.new("RGB", (8, 8)), "tiff"), "image cannot be decoded"),
    (with_header(9_000, 9_000), "image has too many pixels"),
    (with_header(12_000, 12_000), "image has too many pixels"),
    (with_header(100_000, 100_000), "image has too many pixels"),
])  # fmt: skip
def test_pictures_that_cannot_be_decoded_say_why(image: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        decode(image, 16)


def test_no_cut_or_flipped_byte_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    sources = [animated("gif"), animated("webp"), palette(True), deep_grey(), draw("red", "dot", 1)]
    exif = Image.Exif()
    exif[274] = 6
    sources.append(encoded(Image.new("RGB", (64, 48), RED), "jpeg", exif=exif))
    for source in sources:
        for _ in range(60):
            broken = bytearray(source[: rng.integers(1, len(source) + 1)])
            for place in rng.integers(0, len(broken), 3):
                broken[place] = rng.integers(256)
            with suppress(Undecodable):
                assert decode(bytes(broken), 8).shape == (8, 8, 3)


LONG = "word " * 10_000


@pytest.mark.parametrize(("members", "reason"), [
    ({"txt": "caf\xe9".encode("latin-1")}, "text is not UTF-8"),
    ({"json": b"{"}, "JSON cannot be read"),
    ({"json": b"[" * 100_000}, "JSON cannot be read"),
    ({"json": b"[1]"}, "JSON is no object"),
    ({"json": b'{"caption": 5}'}, "caption is not text"),
    ({"json": b'{"captions": ["fine", {}]}'}, "caption is not text"),
    ({"json": b'{"caption": "half \\ud83d"}'}, "text is not UTF-8"),
    ({"txt": b"  "}, "no caption"),
    ({"txt": b""}, "no caption"),
    ({"txt": LONG.encode()}, f"caption above {MAX_WORDS} words"),
    ({"txt": b"word" * 10_000}, f"caption above {MAX_WORDS} words"),
    ({"json": b'{"caption": "x", "split": "trian"}'}, "split is none of train, val, test"),
    ({"json": b'{"caption": "x", "split": ["train"]}'}, "split is none of train, val, test"),
    ({"txt": b"fine", "jpg": b"second"}, "two images of one name"),
])  # fmt: skip
def test_unusable_pairs_are_counted_by_reason(
    members: dict[str, bytes], reason: str, shard: Shard
) -> None:
    bad = [("x.png", draw("red", "dot", 1)), *((f"x.{k}", v) for k, v in members.items())]
    ((found, count),) = open_pairs(shard([*shapes_rows(150), *bad]), 16).skipped.items()
    assert found.startswith(reason)
    assert count == 1


def test_a_caption_at_the_limit_is_kept(shard: Shard) -> None:
    text = "word " * MAX_WORDS
    pair = [("x.png", draw("red", "dot", 1)), ("x.txt", text.encode())]
    assert open_pairs(shard(pair), 16).captions == [[text.strip()]]


def hostile_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(("member", "reason"), [
    (hostile_member("x.png", tarfile.SYMTYPE, "/etc/passwd"), "member is a link or a device"),
    (hostile_member("x.png", tarfile.LNKTYPE, "000000.png"), "member is a link or a device"),
    (hostile_member("x.png", tarfile.CHRTYPE), "member is a link or a device"),
    (hostile_member("x.png", tarfile.FIFOTYPE), "member is a link or a device"),
    (hostile_member("/x.png", tarfile.REGTYPE), "member's name leads out of the archive"),
    (hostile_member("a/../../x.png", tarfile.REGTYPE), "member's name leads out of the archive"),
    (hostile_member("C:\\x.png", tarfile.REGTYPE), "member's name leads out of the archive"),
])  # fmt: skip
def test_hostile_members_are_skipped_and_counted(
    member: tarfile.TarInfo, reason: str, tmp_path: Path
) -> None:
    path = write_shard(tmp_path / "x.tar", shapes_rows(150))
    content = draw("red", "dot", 7)
    with tarfile.open(path, "a") as archive:
        member.size = len(content) if member.isreg() else 0
        archive.addfile(member, io.BytesIO(content))
        text = tarfile.TarInfo(f"{member.name[:-4]}.txt")
        archive.addfile(text)
    pairs = open_pairs(f"webdataset:{path}", 16)
    assert pairs.skipped == {reason: 1}
    assert len(pairs.captions) == 150
    assert list(tmp_path.parent.glob("**/x.png")) == []


def test_members_too_large_are_not_read(tmp_path: Path) -> None:
    members = [*shapes_rows(150), ("x.png", bytes(MAX_BYTES + 1))]
    path = write_shard(tmp_path / "x.tar.gz", members, "w:gz")
    assert open_pairs(f"webdataset:{path}", 16).skipped == {"file above 64 MiB": 1}


def test_keys_that_stand_twice_are_skipped(shard: Shard) -> None:
    rows = shapes_rows(150)
    pairs = open_pairs(shard([*rows, *rows[:2]]), 16)
    assert pairs.skipped == {"key stands twice": 1}
    assert pairs.first_skipped == {"key stands twice": "000000"}
    doubled = [rows[0], rows[1], rows[0], rows[1], *rows[2:]]
    assert open_pairs(shard(doubled, "doubled.tar"), 16).skipped == {"key stands twice": 1}


def test_corrupt_shards_are_refused(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "whole.tar.gz", shapes_rows(), "w:gz").read_bytes()
    plain = write_shard(tmp_path / "whole.tar", shapes_rows()).read_bytes()
    for name, content in (
        ("cut.tar.gz", whole[: len(whole) // 2]),
        ("half.tar", plain[: len(plain) // 2 // 512 * 512]),
        ("odd.tar", plain[: len(plain) // 2 + 100]),
        ("noise.tar", b"this is no archive" * 100),
        ("empty.tar", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=rf"shard '.*{name}' is corrupt"):
            open_pairs(f"webdataset:{tmp_path / name}", 16)
    assert not list((cache_directory() / "decoded").glob("*.building"))


def test_empty_and_poor_sets_are_refused(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"holds no usable pair \(1 x no image beside"):
        open_pairs(shard([("a.txt", b"no picture")], "none.tar"), 16)
    rows = shapes_rows(100)
    rows[0] = (rows[0][0], b"broken")
    pairs = open_pairs(shard(rows, "one.tar"), 16)
    assert pairs.skipped == {"image cannot be decoded": 1}
    rows[2] = (rows[2][0], b"broken")
    uri = shard(rows, "two.tar")
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(UsageError, match=r"2 of 100 pairs .*first: '000000'\)\); at most 1%"):
            open_pairs(uri, 16)
    monkeypatch.setenv("COCA_BLOCKS_MAX_SKIPPED", "0.02")
    assert len(open_pairs(uri, 16).captions) == 98
    monkeypatch.setenv("COCA_BLOCKS_MAX_SKIPPED", "2%")
    with pytest.raises(UsageError, match="must be a share from 0 to 1, got '2%'"):
        open_pairs(uri, 16)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.png", "a/../../x.png", "..\\x", "C:\\x", ""])
def test_names_in_listings_do_not_leave_the_images_directory(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name) is None
    assert inside(tmp_path, "a/b.png") == tmp_path / "a/b.png"


ESCAPE = "image path leads out of the images directory"


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png"])
def test_listings_that_name_files_outside_are_skipped(name: str, tmp_path: Path) -> None:
    given = items(120)
    (tmp_path / "outside.png").write_bytes(draw("red", "dot", 1))
    coco, karpathy = as_coco(tmp_path / "coco", given), as_karpathy(tmp_path / "karpathy", given)
    flickr30k, table = as_flickr30k(tmp_path / "f", given), as_csv(tmp_path / "csv", given)
    for listing in ("coco/captions_val2017.json", "karpathy/dataset_coco.json"):
        path = tmp_path / listing
        path.write_text(path.read_text().replace("000003.png", name))
    for listing in ("f/results.csv", "csv/data.csv"):
        path = tmp_path / listing
        text = path.read_text().replace("images/000003.png", name).replace("000003.png", name)
        path.write_text(text)
    for uri in (coco, flickr30k, table):
        assert open_pairs(uri, 16).skipped == {ESCAPE: 1}
    # Karpathy's name is a file in the folder that filepath names: val2014//outside.png stays inside
    reason = "image file is missing" if name.startswith("/") else ESCAPE
    assert open_pairs(karpathy, 16).skipped == {reason: 1}


def test_missing_empty_and_odd_image_files_are_skipped(tmp_path: Path) -> None:
    uri = as_csv(tmp_path / "x", items(120))
    (tmp_path / "x/images/000003.png").unlink()
    assert open_pairs(uri, 16).skipped == {"image file is missing": 1}
    os.mkfifo(tmp_path / "x/images/000003.png")  # reading it would wait for ever
    assert open_pairs(uri, 16).skipped == {"image file is missing": 1}
    (tmp_path / "x/images/000003.png").unlink()
    with (tmp_path / "x/images/000003.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert open_pairs(uri, 16).skipped == {"file above 64 MiB": 1}


def test_tables_count_lines_that_cannot_be_used(tmp_path: Path) -> None:
    uri = as_csv(tmp_path / "x", items(400))
    with (tmp_path / "x/data.csv").open("ab") as file:
        file.write(b"7,images/000007.png,too,many\n\nx,images/000008.png,caf\xe9\n")
        file.write(b"y,images/gone.png,not there\n9," + b"x" * 200_000 + b",too wide\n")
    assert open_pairs(uri, 16).skipped == {
        "image file is missing": 1,
        "line cannot be read, or has more or fewer cells than the first": 2,
        "text is not UTF-8": 1,
    }


def test_flickr30k_counts_lines_that_cannot_be_used(tmp_path: Path) -> None:
    uri = as_flickr30k(tmp_path / "x", items(200))
    with (tmp_path / "x/results.csv").open("a") as file:
        file.write("neither bar nor number\n\nx.png| one| no number\n")
    assert open_pairs(uri, 16).skipped == {"line cannot be read": 2}


def test_coco_counts_entries_that_cannot_be_used(tmp_path: Path) -> None:
    uri = as_coco(tmp_path / "x", items(600))
    path = tmp_path / "x/captions_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] += [5, {"image_id": 7}, {"image_id": 1, "id": 1, "caption": "whose?"}]
    content["images"] += ["x", {"id": 99, "file_name": "000001.png"}]
    path.write_text(json.dumps(content))
    assert open_pairs(uri, 16).skipped == {
        "annotation cannot be read": 2,
        "annotation of an image that is not listed (or listed twice)": 1,
        "image entry cannot be read": 1,
        "no caption": 1,
    }


def test_karpathy_counts_entries_that_cannot_be_used(tmp_path: Path) -> None:
    uri = as_karpathy(tmp_path / "x", items(600))
    path = tmp_path / "x/dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"] += ["x", {"filename": "x.png"}, content["images"][0]]
    content["images"].append({**content["images"][1], "split": "trial", "filename": "other.png"})
    path.write_text(json.dumps(content))
    assert open_pairs(uri, 16).skipped == {
        "image entry cannot be read": 2,
        "key stands twice": 1,
        "split is none of train, val, test, restval, validation, valid, dev": 1,
    }


def test_parquet_rows_without_bytes_are_skipped(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": item.image, "path": None} for item in items(300)]
    images[3], images[4] = {"bytes": None, "path": "/etc/passwd"}, None
    captions = [item.captions[0] for item in items(300)]
    captions[5] = None
    table = pa.table({"image": pa.array(images, kind), "caption": captions})
    pq.write_table(table, tmp_path / "x.parquet")
    uri = f"parquet:{tmp_path}/x.parquet"
    assert open_pairs(uri, 16).skipped == {"no caption": 1, "the image column holds no bytes": 2}
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"Parquet file '.*' cannot be read"):
        open_pairs(uri, 16)


def test_folders_count_what_has_no_partner(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "x", items(300))
    write_images(tmp_path / "x/more", items(1))
    (tmp_path / "x/orphan.txt").write_text("no image beside")
    skipped = open_pairs(uri, 16).skipped
    assert sorted(reason[:17] for reason in skipped) == ["no caption", "no image beside t"]
