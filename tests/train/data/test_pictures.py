"""Users' pictures: the same samples whatever the processes, each once, broken ones replaced."""

import itertools
import multiprocessing
import pickle
from collections import Counter

import pytest
import torch

from unclip.diffusion.guidance import drop_mask
from unclip.diffusion.noise import child_generators
from unclip_train.config import load_config
from unclip_train.data.build import make_dataset, make_held_out
from unclip_train.data.loader import BadDataError, PositionSampler, make_loader
from unclip_train.data.pictures import NoGoodSample, PictureCropDataset, PictureDataset
from unclip_train.data.sources import opening
from unclip_train.data.sources.opening import Reading, open_source
from unclip_train.draws import drop_captions

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def source(pictures_folder):
    return open_source(str(pictures_folder))


@pytest.fixture(scope="module")
def shards_folder(tmp_path_factory, tar_of, samples):
    """Seven shards of 3, 4, 5, ... samples."""
    folder = tmp_path_factory.mktemp("shards")
    first = 0
    for shard in range(7):
        (folder / f"{shard}.tar").write_bytes(tar_of(samples(range(first, first + 3 + shard))))
        first += 3 + shard
    return folder


def read(dataset, batch_size, steps, workers=0, rank=0, world=1) -> list[dict]:
    sampler = PositionSampler(batch_size, 0, steps, 1, rank, world)
    return list(make_loader(dataset, sampler, workers))


def test_a_sample_is_a_function_of_its_position(source):
    dataset = PictureDataset(source, 16, framing="random", flip=0.5)
    first = [dataset[position] for position in range(40)]
    again = PictureDataset(source, 16, framing="random", flip=0.5)
    for position in reversed(range(40)):
        assert torch.equal(again[position]["image"], first[position]["image"])
        assert again[position]["caption"] == first[position]["caption"]
    assert Counter(sample["id"] for sample in first) == dict.fromkeys(source.names, 2)
    assert all(sample["caption"] == f"picture {int(sample['id'][:5])}" for sample in first)
    with pytest.raises(ValueError, match="position"):
        dataset[-1]


def test_half_are_mirrored(source):
    plain, mirrored = (PictureDataset(source, 16, flip=flip) for flip in (0.0, 1.0))
    mixed = PictureDataset(source, 16, flip=0.5)
    turned = 0
    for position in range(200):
        image = mixed[position]["image"]
        if torch.equal(image, mirrored[position]["image"]):
            turned += 1
        else:
            assert torch.equal(image, plain[position]["image"])
    assert 75 < turned < 125


def test_several_captions_take_turns(source):
    source.texts = [("one", "two", "three")] * len(source)
    dataset = PictureDataset(source, 16)
    counts = Counter(dataset[position]["caption"] for position in range(300))
    assert counts.keys() == {"one", "two", "three"} and min(counts.values()) > 70


def test_processes_never_repeat_a_draw(source):
    """R22: 4 processes, 2 epochs: no (sample, augmentation, dropped condition) stands twice."""
    dataset = PictureDataset(source, 16, framing="random", flip=0.5)
    tuples = []
    for batch in read(dataset, 4, 10, workers=4):
        generators = child_generators(batch["position"], "train/decoder/0")
        masks = torch.stack([torch.rand(8, generator=g) for g in generators])
        for name, image, mask in zip(batch["id"], batch["image"], masks, strict=True):
            tuples.append((name, image.numpy().tobytes(), mask.numpy().tobytes()))
    assert len(tuples) == 40 and len(set(tuples)) == 40
    assert len({mask for *_, mask in tuples}) == 40
    views = Counter(name for name, *_ in {(name, image) for name, image, _ in tuples})
    assert sum(count == 2 for count in views.values()) >= 15  # epochs show other crops


def test_captions_are_dropped_as_often_as_configured():
    """R22: a tenth of 20,000 captions, and half of the embeddings, independently."""
    generators = child_generators(list(range(20_000)), "train/decoder/0")
    captions = drop_captions(["a"] * 20_000, 0.1, generators)
    texts = torch.tensor([not caption for caption in captions])
    embeddings = drop_mask(0.5, generators)
    assert abs(texts.float().mean() - 0.1) < 0.01
    assert abs(embeddings.float().mean() - 0.5) < 0.01
    assert abs((texts & embeddings).float().mean() - 0.05) < 0.005


def check_sharding(folder, cache, num_shards, workers, world) -> None:
    """Each sample once an epoch, the same batches for every number of processes."""
    address = f"{folder}/{{0..{num_shards - 1}}}.tar"
    dataset = PictureDataset(open_source(address, Reading(index=str(cache))), 8)
    steps = -(-len(dataset) // 6)
    shares = [read(dataset, 6, steps, workers, rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {steps}
    found = {
        position: name
        for batch in itertools.chain(*shares)
        for position, name in zip(batch["position"], batch["id"], strict=True)
    }
    assert sorted(found) == list(range(6 * steps))
    epoch = [found[position] for position in range(len(dataset))]
    assert len(set(epoch)) == len(dataset)
    assert epoch == [dataset.source.name(dataset.order[p]) for p in range(len(dataset))]


@pytest.mark.parametrize(("num_shards", "workers", "world"), [(1, 3, 1), (2, 0, 3), (7, 2, 2)])
def test_sharding(shards_folder, tmp_path, num_shards, workers, world):
    """R24: more processes than shards, fewer, and several ranks."""
    check_sharding(shards_folder, tmp_path, num_shards, workers, world)


@pytest.mark.slow
def test_sharding_of_every_kind(shards_folder, tmp_path):
    """R24: all of 1 to 7 shards, 0 to 3 processes, 1 to 3 ranks."""
    for num_shards, workers, world in itertools.product(range(1, 8), range(4), range(1, 4)):
        check_sharding(shards_folder, tmp_path, num_shards, workers, world)


def test_a_stream_is_not_dealt_out_among_processes(tmp_path, picture_of):
    """Every process sees the whole stream, so that positions keep their meaning."""
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    for part in range(2):
        numbers = range(10 * part, 10 * part + 10)
        rows = {
            "image": [picture_of(number) for number in numbers],
            "text": [str(number) for number in numbers],
        }
        parquet.write_table(pyarrow.table(rows), tmp_path / f"{part}.parquet")
    reading = Reading(streaming=True, shuffle_window=5)
    dataset = PictureDataset(open_source(str(tmp_path), reading), 8, window=5)
    alone = [caption for batch in read(dataset, 4, 10) for caption in batch["caption"]]
    assert sorted(map(int, alone[:20])) == list(range(20)) and alone[:20] != alone[20:]
    shared = [caption for batch in read(dataset, 4, 10, workers=2) for caption in batch["caption"]]
    assert shared == alone


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_stream_is_begun_once_an_epoch_by_whoever_reads(share, tmp_path, picture_of, monkeypatch):
    """With the settings that there are by default, and with some of its samples set aside."""
    pytest.importorskip("datasets")
    import pyarrow
    from datasets import IterableDataset
    from pyarrow import parquet

    rows = {"image": [picture_of(n) for n in range(60)], "text": [str(n) for n in range(60)]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    monkeypatch.setattr(opening, "STREAM_WINDOW", 8)
    words = [f"data.source={tmp_path / 'a.parquet'}", f"data.validation_share={share}"]
    config = load_config("clip", "tiny/clip", [*words, "data.streaming=true", f"output={tmp_path}"])
    found, begun, skip = [], [], IterableDataset.skip
    monkeypatch.setattr(IterableDataset, "skip", lambda self, n: begun.append(n) or skip(self, n))
    for make in (make_dataset, make_held_out):
        dataset = make("clip", config)
        if dataset is None:
            continue
        found += [int(dataset[position]["caption"]) for position in range(len(dataset))]
        assert begun == [0]
        begun.clear()
    assert sorted(found) == list(range(60))
    assert found != sorted(found)


def damage(folder, picture_of, numbers) -> None:
    for number in numbers:
        (folder / f"{number:05d}.png").write_bytes(picture_of(number)[:100])


@pytest.fixture
def damaged(tmp_path, samples, picture_of):
    """Twenty pictures of which two are cut short."""
    for name, content in samples(range(20)):
        (tmp_path / name).write_bytes(content)
    damage(tmp_path, picture_of, (3, 11))
    return tmp_path


def test_another_sample_stands_in_for_a_broken_one(damaged, capsys):
    dataset = PictureDataset(open_source(str(damaged)), 16, max_bad_share=0.2)
    batches = make_loader(dataset, PositionSampler(4, 0, 10), 2)
    names = [name for batch in batches for name in batch["id"]]
    assert len(names) == 40 and not {"00003.png", "00011.png"} & set(names)
    assert set(names) == set(dataset.source.names) - {"00003.png", "00011.png"}
    assert names == [dataset[position]["id"] for position in range(40)]
    assert batches.faults["broken picture"] >= 4
    assert "00011.png: broken picture" in capsys.readouterr().err


def test_training_stops_when_too_much_is_broken(damaged):
    """R23: the share that may be broken is configured; all is told when it is exceeded."""
    dataset = PictureDataset(open_source(str(damaged)), 16, max_bad_share=0.05)
    with pytest.raises(BadDataError, match=r"broken picture.*data\.max_bad_share 0\.05"):
        read(dataset, 10, 100)
    assert len(read(PictureDataset(open_source(str(damaged)), 16, max_bad_share=0.2), 10, 60)) == 60


@pytest.fixture
def mixed_sizes(tmp_path, picture_of):
    """Forty pictures of which every eighth is 24 pixels a side, and the others 8."""
    for number in range(40):
        side = 8 if number % 8 else 24
        (tmp_path / f"{number}.png").write_bytes(picture_of(number, size=(side, side)))
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    return tmp_path


def test_small_pictures_are_left_out_as_asked_and_not_counted_as_broken(mixed_sizes, tmp_path):
    for stage, name in (("clip", "clip"), ("upsampler", "upsampler_256")):
        words = [f"data.source={mixed_sizes}", f"output={tmp_path}", "data.min_side=20"]
        words += ["data.size=16", "data.crop=8", "data.max_bad_share=0"]
        dataset = make_dataset(stage, load_config(stage, f"tiny/{name}", words))
        batches = make_loader(dataset, PositionSampler(10, 0, 40), 0)
        shown = {name for batch in batches for name in batch["id"]}
        assert shown == {f"{number}.png" for number in range(0, 40, 8)}
        assert batches.faults.keys() == {"picture below data.min_side"}


def test_nothing_but_broken_samples_is_an_error(damaged, picture_of):
    damage(damaged, picture_of, range(20))
    dataset = PictureDataset(open_source(str(damaged)), 16)
    with pytest.raises(NoGoodSample, match="unclip-data check"):
        dataset[0]
    with pytest.raises(BadDataError, match=r"^data\.source: 16 broken samples"):
        read(dataset, 4, 2, workers=1)
    assert not multiprocessing.active_children()  # no worker is left to wait for


def test_crops_are_functions_of_their_position_too(source):
    dataset = PictureCropDataset(source, 16, 8, flip=0.5)
    other = pickle.loads(pickle.dumps(dataset))
    for position in (5, 3, 8):
        one, two = dataset[position], other[position]
        assert one["image"].shape == (3, 8, 8) and one["x_low"].shape == (3, 2, 2)
        assert one["x_low"].dtype == torch.float32 and one["x_low"].abs().max() <= 1
        assert torch.equal(one["image"], two["image"]) and torch.equal(one["x_low"], two["x_low"])


def test_a_crop_lies_over_its_small_picture(tmp_path):
    """Each cell of x_low is about the mean of its 4 x 4 pixels, whichever crop, mirrored or not."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:120, :200]
    pixels = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("slopes")
    dataset = PictureCropDataset(open_source(str(tmp_path)), 96, 32, flip=0.5)
    for position in range(20):
        sample = dataset[position]
        means = torch.nn.functional.avg_pool2d(sample["image"].float(), 4) / 127.5 - 1
        assert (means - sample["x_low"]).abs().max() < 0.04  # a cell further is 0.08


def test_small_pictures_are_not_enlarged_for_upsamplers(source):
    with pytest.raises(NoGoodSample, match="too small"):
        PictureCropDataset(source, 64, 32)[0]
    assert PictureCropDataset(source, 64, 16, shrink_share=0.0)[0]["image"].shape == (3, 16, 16)


def test_arguments_are_checked(source):
    with pytest.raises(ValueError, match="framing"):
        PictureDataset(source, 16, framing="center")
    with pytest.raises(ValueError, match=r"data\.crop"):
        PictureCropDataset(source, 16, 10)
