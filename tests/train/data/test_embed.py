"""Embeddings: made once by many processes, resumable, and never beside another picture."""

import json

import pytest
import torch

from unclip import CLIP
from unclip_train.data.embed import embed_source
from unclip_train.data.embeddings import Embeddings
from unclip_train.data.framing import read_square
from unclip_train.data.pictures import PictureDataset
from unclip_train.data.sources.opening import open_source
from unclip_train.data.sources.records import BadSample


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of random weights, with a tokenizer of its own."""
    from unclip_train.clip import make_stage
    from unclip_train.config import load_config

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    clip = make_stage(load_config("clip", "tiny/clip"), ["a picture of something"]).network.clip
    clip.save_pretrained(folder)
    return folder


@pytest.fixture
def own_folder(tmp_path, samples):
    """Twenty pictures to be damaged."""
    (tmp_path / "pictures").mkdir()
    for name, content in samples(range(20)):
        (tmp_path / "pictures" / name).write_bytes(content)
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def whole(pictures_folder, clip_folder, tmp_path_factory):
    """All embeddings of the sound pictures, in shards of six."""
    folder = tmp_path_factory.mktemp("embeddings") / "z"
    report = embed_source(open_source(str(pictures_folder)), clip_folder, folder, 6, 4)
    assert report["written"] == 4 and report["samples"] == 20 and report["finished"]
    return folder


def test_rows_are_the_embeddings_of_their_pictures(whole, pictures_folder, clip_folder):
    source = open_source(str(pictures_folder))
    embeddings = Embeddings(whole, source, clip_folder)
    clip = CLIP.from_pretrained(clip_folder)
    squares = [torch.from_numpy(read_square(source.picture(i), 16).copy()) for i in range(20)]
    x = torch.stack(squares).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        wanted = clip.encode_image(x)
    rows = torch.stack([embeddings.read(i, source.picture(i), source.name(i)) for i in range(20)])
    assert (rows - wanted).abs().max() < 1e-3  # kept in half precision
    assert torch.allclose(embeddings.mean, wanted.mean(0), atol=1e-6)
    assert torch.allclose(embeddings.std, wanted.std(0).clamp(min=1e-4), atol=1e-6)


def test_processes_share_the_work(whole, pictures_folder, clip_folder, tmp_path):
    """Three processes write what one writes, and the last to end finishes the folder."""
    source = open_source(str(pictures_folder))
    reports = [
        embed_source(source, clip_folder, tmp_path / "z", 6, 4, rank=rank, world=3)
        for rank in (2, 0, 1)
    ]
    assert [report["written"] for report in reports] == [1, 2, 1]
    assert [report["finished"] for report in reports] == [False, False, True]
    one, many = Embeddings(whole, source), Embeddings(tmp_path / "z", source)
    assert torch.equal(one.mean, many.mean)
    for index in range(20):
        difference = one.read(index, None, "") - many.read(index, None, "")
        assert difference.abs().max() < 1e-3


def test_it_goes_on_where_it_stopped(whole, pictures_folder, clip_folder, tmp_path):
    source = open_source(str(pictures_folder))
    embed_source(source, clip_folder, tmp_path / "z", 6, rank=0, world=2)
    broken = tmp_path / "z" / "z_img-00002.safetensors"
    broken.write_bytes(broken.read_bytes()[:-10])
    with pytest.raises(FileNotFoundError, match=r"data\.embeddings: no finished embeddings"):
        Embeddings(tmp_path / "z", source)
    report = embed_source(source, clip_folder, tmp_path / "z", 6)
    assert report["kept"] == 1 and report["written"] == 3 and report["finished"]
    assert embed_source(source, clip_folder, tmp_path / "z", 6)["written"] == 0
    with pytest.raises(ValueError, match="another shard_size"):
        embed_source(source, clip_folder, tmp_path / "z", 7)


def test_other_pictures_are_refused(whole, own_folder, clip_folder, picture_of):
    source = open_source(str(own_folder))
    dataset = PictureDataset(source, 16, embeddings=Embeddings(whole, source, clip_folder))
    place = next(p for p in range(20) if dataset.order[p] == 4)
    assert dataset[place]["z_img"].shape == (32,)
    (own_folder / "00004.png").write_bytes(picture_of(400))
    with pytest.raises(ValueError, match=r"00004\.png is another picture"):
        dataset[place]
    (own_folder / "00004.png").rename(own_folder / "renamed.png")
    (own_folder / "00004.txt").rename(own_folder / "renamed.txt")
    with pytest.raises(ValueError, match=r"data\.embeddings: .* of other pictures"):
        Embeddings(whole, open_source(str(own_folder)))


def test_another_clip_is_refused(whole, pictures_folder, clip_folder, tmp_path):
    clip = CLIP.from_pretrained(clip_folder)
    with torch.no_grad():
        clip.model.visual_projection.weight += 0.01
    clip.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"data\.embeddings: .* by another CLIP"):
        Embeddings(whole, open_source(str(pictures_folder)), tmp_path / "other")


def test_a_broken_picture_has_no_embedding(own_folder, clip_folder, tmp_path, picture_of):
    (own_folder / "00005.png").write_bytes(picture_of(5)[:100])
    source = open_source(str(own_folder))
    report = embed_source(source, clip_folder, tmp_path / "z", 50)
    assert report["samples"] == 19 and report["faults"] == {"broken picture": 1}
    embeddings = Embeddings(tmp_path / "z", source)
    with pytest.raises(BadSample, match="no embedding"):
        embeddings.read(5, None, "00005.png")
    dataset = PictureDataset(source, 16, embeddings=embeddings, with_pictures=False)
    names = [dataset[position]["id"] for position in range(20)]
    assert "00005.png" not in names and set(names) | {"00005.png"} == set(source.names)
    assert "image" not in dataset[0]


def test_mirrored_pictures_do_not_fit_their_embeddings(whole, pictures_folder):
    source = open_source(str(pictures_folder))
    embeddings = Embeddings(whole, source)
    for look, key in (({"flip": 0.5}, "flip"), ({"framing": "random"}, "framing")):
        with pytest.raises(ValueError, match=rf"data\.{key}: "):
            PictureDataset(source, 16, embeddings=embeddings, **look)


def test_a_damaged_manifest_is_named(whole, pictures_folder, tmp_path):
    (tmp_path / "embeddings.json").write_text(json.dumps({"version": 1, "dim": -3}))
    with pytest.raises(ValueError, match=r"data\.embeddings: .*embeddings\.json"):
        Embeddings(tmp_path, open_source(str(pictures_folder)))


def test_arguments_are_checked(pictures_folder, clip_folder, tmp_path):
    source = open_source(str(pictures_folder))
    with pytest.raises(ValueError, match="--rank"):
        embed_source(source, clip_folder, tmp_path / "z", rank=2, world=2)
    with pytest.raises(ValueError, match="--shard-size"):
        embed_source(source, clip_folder, tmp_path / "z", 0)
    (tmp_path / "z").write_text("")
    with pytest.raises(ValueError, match="--output"):
        embed_source(source, clip_folder, tmp_path / "z")
