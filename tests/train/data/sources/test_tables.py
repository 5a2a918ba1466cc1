"""Parquet and Hugging Face datasets: rows in any order, or forward in a stream, undecoded."""

import pytest

from unclip_train.data.sources.opening import Reading, open_source
from unclip_train.data.sources.records import BadSample
from unclip_train.data.sources.tables import picture_bytes

pytest.importorskip("datasets", reason="the extra hf-data is not installed")


@pytest.fixture(scope="module")
def rows(picture_of):
    return {
        "image": [picture_of(number) for number in range(25)],
        "caption": [[f"picture {number}", f"number {number}"] for number in range(25)],
    }


@pytest.fixture(scope="module")
def parquet_folder(rows, tmp_path_factory):
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("parquet")
    table = pyarrow.table(rows)
    parquet.write_table(table.slice(0, 10), folder / "0.parquet")
    parquet.write_table(table.slice(10), folder / "1.parquet")
    return folder


def assert_holds(source, rows) -> None:
    assert len(source) == 25
    for index in (0, 24, 11, 12):
        assert source.picture(index) == rows["image"][index]
        assert source.captions(index) == tuple(rows["caption"][index])


def test_parquet_in_any_order(parquet_folder, rows):
    assert_holds(open_source(str(parquet_folder)), rows)
    assert_holds(open_source(f"{parquet_folder}/{{0..1}}.parquet"), rows)


def test_parquet_as_a_stream(parquet_folder, rows):
    reading = Reading(streaming=True, shuffle_window=4)
    source = open_source(str(parquet_folder), reading)
    assert source.sequential
    assert_holds(source, rows)


def test_a_stream_is_read_once_when_read_forward(parquet_folder, monkeypatch):
    source = open_source(str(parquet_folder), Reading(streaming=True, shuffle_window=4))
    begun, skip = [], type(source.dataset).skip
    monkeypatch.setattr(
        type(source.dataset), "skip", lambda self, n: begun.append(n) or skip(self, n)
    )
    for index in (2, 0, 3, 1, 5, 4, 9, 24):
        assert source.captions(index) == (f"picture {index}", f"number {index}")
    assert begun == [0]
    source.captions(9)
    assert begun == [0, 8]


def test_a_saved_dataset_with_decodable_pictures_stays_undecoded(tmp_path, rows):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    )
    cells = [{"bytes": content, "path": None} for content in rows["image"]]
    dataset = datasets.Dataset.from_dict({**rows, "image": cells}, features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert_holds(open_source(str(tmp_path / "saved")), rows)


def test_missing_files_and_columns_are_named(tmp_path, parquet_folder):
    with pytest.raises(FileNotFoundError, match=r"data\.source: there is no file .*2\.parquet"):
        open_source(f"{parquet_folder}/{{0..9}}.parquet")
    with pytest.raises(ValueError, match=r"data\.caption_column: .* there are image, caption"):
        open_source(str(parquet_folder), Reading(caption_column="words"))


def test_cells_of_every_form(tmp_path, picture_of):
    (tmp_path / "a.png").write_bytes(picture_of(3))
    forms = [picture_of(3), {"bytes": picture_of(3), "path": "x"}, {"bytes": None, "path": "a.png"}]
    for value in [*forms, "a.png", str(tmp_path / "a.png")]:
        assert picture_bytes(value, tmp_path, "row") == picture_of(3)
    for value in (None, b"", {"bytes": None, "path": None}, 7, {}):
        with pytest.raises(BadSample, match="no picture"):
            picture_bytes(value, tmp_path, "row")
    for path in ("gone.png", "../a.png", "/etc/passwd", "https://example.com/a.png", "\0"):
        with pytest.raises(BadSample, match="missing file"):
            picture_bytes(path, tmp_path, "row")


def test_a_hub_dataset_is_asked_for_by_its_name(monkeypatch, rows):
    """Everything that the keys say reaches the library; nothing else decides what is fetched."""
    import datasets

    asked = []

    def load(*args, **words):
        asked.append((args, words))
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    reading = Reading(subset="small", split="test", revision="abc123")
    assert_holds(open_source("hub:owner/name", reading), rows)
    words = {"split": "test", "revision": "abc123", "streaming": False}
    assert asked == [(("owner/name", "small"), words)]


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"^data\.source: cannot read .*a\.parquet"):
        open_source(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match=r"^data\.source: cannot read hub:owner/name"):
        open_source("hub:owner/name")  # no network in tests


def test_only_the_datasets_own_files_are_read_from_the_hub(tmp_path, picture_of, monkeypatch):
    import io

    from unclip_train.data.sources import tables

    monkeypatch.setattr(tables, "open_file", lambda address: io.BytesIO(picture_of(1)))
    for path in ("hf://datasets/owner/name@main/a.jpg", "zip://a.jpg::hf://datasets/owner/name/b"):
        assert picture_bytes({"bytes": None, "path": path}, tmp_path, "row", "owner/name")
    for path in ("hf://datasets/owner/name-2/a.jpg", "hf://datasets/other/name/a", "file:///a.jpg"):
        with pytest.raises(BadSample, match="missing file"):
            picture_bytes(path, tmp_path, "row", "owner/name")
