"""Tar shards: sound samples once each, faults counted by reason, and nothing is ever run."""

import io
import json
import pickle
import resource
import struct
import tarfile
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from unclip.pictures import PictureError
from unclip_train.data.framing import read_square
from unclip_train.data.sources.addresses import expand_braces
from unclip_train.data.sources.opening import Reading, open_source
from unclip_train.data.sources.records import BadSample
from unclip_train.data.sources.shards import ShardSource


@pytest.fixture
def cache(tmp_path):
    """A folder for indices."""
    return tmp_path / "cache"


def file_of(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, form, **options)
        return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels of one bit, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    rows = zlib.compress(bytes(1 + -(-side // 8)) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class Canary:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def odd_members() -> bytes:
    """A symbolic link, a hard link and a device that bear a picture's name."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)):
                info = tarfile.TarInfo(f"9100{number}.png")
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
        return file.getvalue()[: 3 * 512]


def good_of_every_kind() -> list[tuple[str, bytes]]:
    """Pictures in forms that need care; the caption names the colour of the middle."""
    rgba = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([200, 0, 0])
    deep = Image.fromarray(np.full((16, 16), 32768, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (32, 16), (0, 0, 200))
    moving = [Image.new("RGB", (16, 16), colour) for colour in ((0, 200, 0), (200, 0, 0))]
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    files = {
        "rgba.png": (file_of(rgba), (255, 255, 255)),
        "palette.png": (file_of(palette), (200, 0, 0)),
        "deep.png": (file_of(deep), (128, 128, 128)),
        "turned.jpg": (file_of(turned, "JPEG", exif=exif, quality=95), (0, 0, 200)),
        "moving.gif": (
            file_of(moving[0], "GIF", save_all=True, append_images=moving[1:]),
            (0, 200, 0),
        ),
        "cmyk.jpg": (file_of(cmyk, "JPEG", quality=95), (254, 0, 0)),
    }
    return [
        member
        for name, (content, colour) in files.items()
        for member in ((name, content), (name.split(".")[0] + ".txt", json.dumps(colour).encode()))
    ]


def bad_members(canary: str) -> tuple[list[tuple[str, bytes]], Counter]:
    """Members with what is wrong within a shard, and the truth about them."""
    sound = file_of(Image.new("RGB", (16, 16), "red"))
    noise = file_of(Image.effect_noise((64, 64), 80))
    cases = [
        ("broken picture", ".png", noise[: len(noise) // 2], b"cut short"),
        ("not a picture", ".jpg", b"<!DOCTYPE html><html>429</html>", b"a page"),
        ("not a picture", ".png", b"", b"nothing"),
        ("too many pixels", ".png", bomb(30_000), b"900 million"),
        ("too many pixels", ".png", bomb(13_000), b"169 million"),
        ("caption not UTF-8", ".png", sound, b"caf\xe9"),
        ("empty caption", ".png", sound, b""),
        ("empty caption", ".png", sound, b" \n\t "),
        ("caption too long", ".png", sound, b"long " * 2_000_000),
    ]
    members, truth = [], Counter(reason for reason, *_ in cases)
    for number, (_, suffix, content, caption) in enumerate(cases):
        members += [(f"9000{number}{suffix}", content), (f"9000{number}.txt", caption)]
    alone = [
        ("no caption", [("92000.png", sound)]),
        ("no caption", [("92001.png", sound), ("92001.json", b'{"url": 1}')]),
        ("no picture", [("92002.txt", b"where is it?")]),
        ("duplicate name", [("00003.png", sound)]),
        ("member of another kind", [("00003.pyd", pickle.dumps(Canary(canary)))]),
        ("member of another kind", [("00004.pkl", pickle.dumps(Canary(canary)))]),
        ("unsafe name", [("../../escape.png", sound)]),
        ("unsafe name", [("/etc/cron.d/escape.png", sound)]),
    ]
    for reason, more in alone:
        members += more
        truth[reason] += 1
    return members, truth


def without_end(tar: bytes) -> bytes:
    """The members of an archive, without the zeros that end it."""
    content = tar.rstrip(b"\0")
    return content + bytes(-len(content) % 512)


def write_dirty_shards(folder, tar_of, samples, canary) -> tuple[list[str], Counter, int]:
    """Shards with faults of every kind; addresses, the truth, and the number of good samples."""
    bad, truth = bad_members(canary)
    whole = tar_of([*samples(range(10)), *bad, *good_of_every_kind()])
    shards = {
        "00000.tar": without_end(whole) + odd_members() + bytes(1024),
        "00001.tar": without_end(tar_of(samples(range(10, 14))))[:-509],  # within a caption
        "00002.tar": without_end(tar_of(samples(range(20, 23)))),  # whole members, no end
        "00006.tar": tar_of(samples(range(30, 33))).replace(b"00032.png", b"0003\xff.png"),
        "00003.tar": b"",
        "00004.tar": b"<html><body>404 not found</body></html>" * 40,
    }
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    truth += {"not a plain file": 3, "truncated shard": 2, "no caption": 1}  # 00013 lost its text
    truth += {"not a tar": 2, "missing file": 2, "broken header": 1}
    addresses = [str(folder / name) for name in (*shards, "00005.tar")]
    return [*addresses, f"pipe:touch {canary}"], truth, 10 + 6 + 3 + 3 + 2


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_dirty_shards(tmp_path, tar_of, samples, cache):
    """R23: every good sample exactly once, counters equal to the truth, nothing run."""
    canary = tmp_path / "canary"
    addresses, truth, num_good = write_dirty_shards(tmp_path, tar_of, samples, str(canary))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = ShardSource(addresses, cache)
    found, good = Counter(fault.reason for fault in source.faults), {}
    for index in range(len(source)):
        try:
            square = read_square(source.picture(index), 16)
        except PictureError as error:
            found[error.reason] += 1
            continue
        name = source.name(index).split("/")[-1]
        assert name not in good
        good[name] = (square[8, 8].tolist(), source.captions(index)[0])
    assert found == truth
    assert len(good) == num_good
    for name in ("rgba", "palette", "deep", "turned", "moving", "cmyk"):
        colour, caption = good[name]
        assert np.abs(np.array(colour) - json.loads(caption)).max() <= 4, name
    assert np.abs(np.array(good["deep"][0]) - 128).max() <= 1
    assert not canary.exists()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 300 * 1024, f"{grown / 1024:.0f} MB"
    assert len(truth) == 16


def test_index_is_made_once_and_again_when_the_shard_changes(
    tmp_path, tar_of, samples, cache, monkeypatch
):
    from unclip_train.data.sources import shards

    made = []
    original = shards.make_index
    monkeypatch.setattr(
        shards, "make_index", lambda *words: made.append(words[0]) or original(*words)
    )
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(samples(range(3))))
    first, second = ShardSource([str(path)], cache), ShardSource([str(path)], cache)
    assert len(made) == 1 and first.fingerprint == second.fingerprint
    assert [second.captions(i) for i in range(3)] == [(f"picture {i}",) for i in range(3)]
    path.write_bytes(tar_of(samples(range(4))))
    third = ShardSource([str(path)], cache)
    assert len(made) == 2 and len(third) == 4 and third.fingerprint != first.fingerprint
    for kept in cache.iterdir():
        kept.write_text("{}")
    assert len(ShardSource([str(path)], cache)) == 4


def test_captions_from_json_and_order_of_members(tmp_path, tar_of, picture_of, cache):
    """As img2dataset writes them; the parts of a sample need not stand together."""
    members = [
        ("a/1.jpg", picture_of(1)),
        ("a/2.json", b'{"caption": "two", "width": 3}'),
        ("a/1.json", b'{"caption": "not this"}'),
        ("a/1.txt", "eins\u00e4\n".encode()),
        ("a/2.webp", picture_of(2)),
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    source = ShardSource([str(tmp_path / "a.tar")], cache)
    assert not source.faults
    assert [source.captions(i) for i in range(2)] == [("eins\u00e4",), ("two",)]
    assert source.picture(1) == picture_of(2)


def test_remote_shards_by_braces(tar_of, samples, picture_of, cache):
    """Any address of fsspec; here its file system in memory."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for shard in range(3):
        memory.pipe(f"/set/{shard:03d}.tar", tar_of(samples(range(4 * shard, 4 * shard + 4))))
    source = open_source("memory://set/{000..002}.tar", Reading(index=str(cache)))
    assert len(source) == 12 and not source.faults
    assert source.picture(9) == picture_of(9) and source.captions(9) == ("picture 9",)
    memory.pipe("/set/001.tar", b"")
    with pytest.raises(BadSample, match="truncated shard"):
        source.picture(5)


def test_a_shard_that_shrinks_while_it_is_read(tmp_path, tar_of, samples, cache):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(samples(range(3))))
    source = ShardSource([str(path)], cache)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadSample, match="truncated shard"):
        source.picture(2)
    path.unlink()
    elsewhere = pickle.loads(pickle.dumps(source))  # as a process that opens the shard itself
    with pytest.raises(BadSample, match="missing file"):
        elsewhere.picture(0)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{000..002}.tar", ["000.tar", "001.tar", "002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{5..2}.tar", "{0..99999999}.tar", "{0..9999}{0..9999}"])
def test_braces_that_cannot_be_meant(pattern):
    with pytest.raises(ValueError, match=r"data\.source"):
        expand_braces(pattern)
