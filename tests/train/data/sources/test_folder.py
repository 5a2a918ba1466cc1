"""Folders of pictures: captions from texts, metadata.jsonl or a CSV; what lacks any is named."""

import json
from collections import Counter

import pytest

from unclip_train.data.sources.opening import Reading, kind_of, open_source


def read_all(source) -> dict[str, tuple[str, ...]]:
    return {source.name(index): source.captions(index) for index in range(len(source))}


def reasons(source) -> Counter:
    return Counter(fault.reason for fault in source.faults)


def test_texts_beside_pictures(pictures_folder, picture_of):
    source = open_source(str(pictures_folder))
    assert read_all(source) == {f"{n:05d}.png": (f"picture {n}",) for n in range(20)}
    assert source.picture(7) == picture_of(7) and not source.faults


def test_texts_beside_pictures_with_faults(tmp_path, picture_of):
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "b.JPG", "deep/c.webp", "lonely.png", "odd.png", ".hidden.png"):
        (tmp_path / name).write_bytes(picture_of(0))
    texts = {"a.txt": b"\xef\xbb\xbfan  apple\n", "b.txt": b"", "deep/c.txt": b"a cat"}
    texts |= {"odd.txt": b"\xff\xfe", "nothing.txt": b"where?", "notes.md": b"no caption"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    source = open_source(str(tmp_path))
    assert read_all(source) == {"a.png": ("an apple",), "deep/c.webp": ("a cat",)}
    assert reasons(source) == {
        "empty caption": 1,
        "caption not UTF-8": 1,
        "no caption": 1,
        "no picture": 1,
    }


def test_metadata_with_several_captions_and_faults(tmp_path, picture_of):
    rows = [
        {"file_name": "b.png", "text": "second"},
        {"file_name": "a.png", "text": ["one", "another", " "]},
        {"file_name": "a.png", "text": "again"},
        {"file_name": "gone.png", "text": "not there"},
        {"file_name": "../b.png", "text": "outside"},
        {"file_name": "c.png", "text": None},
        {"file_name": "c.png", "text": 7},
    ]
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(picture_of(0))
    lines = [json.dumps(row) for row in rows] + ["{not json", "[1, 2]", ""]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path))
    assert read_all(source) == {"a.png": ("one", "another"), "b.png": ("second",)}
    assert reasons(source) == {
        "duplicate name": 2,  # c.png is named twice as well
        "missing file": 1,
        "unsafe name": 1,
        "no caption": 1,
        "broken row": 2,
    }


def test_csv(tmp_path, picture_of):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(picture_of(0))
    (tmp_path / "list.csv").write_bytes(
        b'\xef\xbb\xbfimage_name,caption\na.png,"an apple, red"\nb.png,\nb.png\nc.png,caf\xe9\n'
    )
    source = open_source(str(tmp_path))
    assert read_all(source) == {"a.png": ("an apple, red",)}
    assert reasons(source) == {"empty caption": 1, "broken row": 1, "missing file": 1}
    other = open_source(str(tmp_path), Reading(caption_column="image_name"))
    assert other.captions(0) == ("a.png",)


def test_mistakes_name_the_key(tmp_path, picture_of):
    with pytest.raises(FileNotFoundError, match=r"data\.source: there is no folder"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"data\.source: .* holds no picture"):
        open_source(str(tmp_path))
    (tmp_path / "a.png").write_bytes(picture_of(0))
    with pytest.raises(ValueError, match="1 faults: no caption"):
        open_source(str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "words": "x"}')
    with pytest.raises(ValueError, match=r"data\.caption_column: .* there are file_name, words"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.image_column: .* no picture"):
        open_source(str(tmp_path), Reading(image_column="picture"))
    with pytest.raises(ValueError, match=r"data\.streaming"):
        open_source(str(tmp_path), Reading(streaming=True))
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="several CSV files"):
        open_source(str(tmp_path))


def test_the_fingerprint_tells_a_change(tmp_path, picture_of):
    (tmp_path / "a.png").write_bytes(picture_of(0))
    (tmp_path / "a.txt").write_text("one")
    first = open_source(str(tmp_path)).fingerprint
    assert open_source(str(tmp_path)).fingerprint == first
    (tmp_path / "a.txt").write_text("two")
    assert open_source(str(tmp_path)).fingerprint != first


def test_kinds_are_told_apart(tmp_path, drawings_folder, pictures_folder):
    assert kind_of(str(drawings_folder)) == "drawings"
    assert kind_of(str(pictures_folder)) == "folder"
    assert kind_of("hub:owner/name") == "hub"
    assert kind_of("s3://bucket/{000..127}.tar") == "shards"
    assert kind_of("part-{0..3}.parquet") == "parquet"
    (tmp_path / "00000.tar").touch()
    assert kind_of(str(tmp_path)) == "shards"
    with pytest.raises(FileNotFoundError, match="must end in"):
        kind_of("s3://bucket/pictures")
