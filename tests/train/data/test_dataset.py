"""Samples depend on (seed, position) alone, and never show what is held out."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from unclip_train.config import load_config
from unclip_train.data import dataset as dataset_module
from unclip_train.data.build import make_held_out
from unclip_train.data.compose import over, read_picture
from unclip_train.data.dataset import ConceptOrder, DrawingDataset, UpsamplerDataset, degrade
from unclip_train.data.degradation import gaussian_blur
from unclip_train.data.drawings import EMOJI_STYLES, base_concept
from unclip_train.data.vocabulary import BACKGROUNDS, TINTS

from .conftest import add_more_artists

DEGRADATIONS = ("blur", "blur_light", "blur_noise", "bsr", "bsr_light")


def same(first: dict, second: dict) -> bool:
    return all(
        torch.equal(first[key], second[key])
        if isinstance(first[key], torch.Tensor)
        else first[key] == second[key]
        for key in first
    )


def has_colour(image: torch.Tensor, colour: tuple[int, int, int]) -> bool:
    return bool((image == torch.tensor(colour).view(3, 1, 1)).all(dim=0).any())


def make(kind: str, folder, **settings):
    if kind == "drawings":
        return DrawingDataset(folder, 64, **settings)
    return UpsamplerDataset(folder, 64, 32, kind, **settings)


@pytest.mark.parametrize("kind", ["drawings", *DEGRADATIONS])
def test_sample_depends_on_seed_and_position_alone(set_folder, kind):
    positions = [0, 3, 5, 40, 10**9]
    samples = {position: make(kind, set_folder)[position] for position in positions}
    again = make(kind, set_folder, cache=False)
    for position in reversed(positions):
        assert same(samples[position], again[position])
        assert samples[position]["position"] == position
    other = make(kind, set_folder, seed=1)
    assert not all(torch.equal(samples[p]["image"], other[p]["image"]) for p in positions)


def test_workers_change_nothing(set_folder):
    dataset = DrawingDataset(set_folder, 32)
    loader = DataLoader(dataset, sampler=range(16), batch_size=None, num_workers=2)
    assert all(same(sample, dataset[i]) for i, sample in enumerate(loader))


def test_an_epoch_shows_each_concept_once(set_folder):
    dataset = DrawingDataset(set_folder, 64, plain_share=1.0)
    by_id = {drawing.id: drawing for drawing in dataset.drawings}
    orders = []
    for epoch in range(3):
        positions = range(epoch * len(dataset), (epoch + 1) * len(dataset))
        shown = [by_id[dataset[position]["id"]] for position in positions]
        orders.append([(drawing.style == "icon", base_concept(drawing)) for drawing in shown])
        assert len(set(orders[-1])) == len(dataset) == 6 + 1 + 2
    assert orders[0] != orders[1] != orders[2]


def test_files_of_a_concept_take_turns(set_folder):
    dataset = DrawingDataset(set_folder, 64, plain_share=1.0, styles=["noto", "twemoji"])
    epochs = 12  # a multiple of 1, 2 and 6 files
    shown = Counter(dataset[position]["id"] for position in range(epochs * len(dataset)))
    assert shown["noto/rocket"] == shown["twemoji/rocket"] == epochs / 2
    assert shown["twemoji/abacus"] == epochs
    tones = [count for name, count in shown.items() if "artist" in name]
    assert tones == [epochs / 6] * 6


def test_styles_alternate_over_epochs(set_folder):
    drawings = DrawingDataset(set_folder, 64).drawings
    order = ConceptOrder(drawings, seed=0)
    people = next(files for files in order.files if drawings[files[0]].concept.startswith("artist"))
    styles = [drawings[index].style for index in people]
    assert styles == ["noto", "twemoji"] * 3


def test_balance_by_pair_shows_two_artists_in_a_row(set_folder):
    dataset = DrawingDataset(set_folder, 64, plain_share=1.0, balance="pair")
    by_id = {drawing.id: drawing for drawing in dataset.drawings}
    shown = [by_id[dataset[position]["id"]] for position in range(len(dataset) * 2)]
    pairs = list(zip(shown[::2], shown[1::2], strict=True))
    assert len(dataset) == 2 * (6 + 1 + 2)
    assert all(base_concept(a) == base_concept(b) for a, b in pairs)
    rockets = [(a.style, b.style) for a, b in pairs if a.concept == "rocket" and a.style != "icon"]
    assert len(rockets) == 2 and all(a != b for a, b in rockets)
    assert len({style for pair in rockets for style in pair}) == 4


def test_balance_by_drawing_shows_each_drawing_once(set_folder):
    dataset = DrawingDataset(set_folder, 64, plain_share=1.0, balance="drawing")
    shown = [dataset[position]["id"] for position in range(len(dataset))]
    assert sorted(shown) == sorted(drawing.id for drawing in dataset.drawings)
    with pytest.raises(ValueError, match="balance must be"):
        DrawingDataset(set_folder, 64, balance="file")


@pytest.mark.parametrize("kind", ["drawings", "blur"])
def test_held_out_drawings_are_never_shown(set_folder, colours, kind):
    settings = {"plain_share": 0.3} if kind == "drawings" else {"shrink_share": 0.0}
    dataset = make(kind, set_folder, styles=["noto", "twemoji", "fluent", "flat"], **settings)
    held_out = ("noto/abacus", "twemoji/airplane", "fluent/astonished-face", "flat/astonished-face")
    seen = set()
    for position in range(200):
        image = dataset[position]["image"]
        assert not any(has_colour(image, colours[name]) for name in held_out)
        seen |= {
            name for name in ("noto/rocket", "flat/abacus") if has_colour(image, colours[name])
        }
    assert len(seen) == 2  # so the search by colour does find what is there


def test_further_artists_are_kept_out_and_not_measured_by(own_folder):
    def shown(**settings):
        return {drawing.id for drawing in DrawingDataset(own_folder, 64, **settings).drawings}

    own = {name: shown(held_out=name) for name in (False, True)}
    more = add_more_artists(own_folder)
    assert shown(held_out=True) == own[True]
    assert shown(styles=EMOJI_STYLES) == {n for n in own[False] if not n.startswith("icon/")}
    trained = {drawing.id for drawing in more if not drawing.held_out}
    assert shown() == own[False] | trained
    assert {"blob/abacus", "contrast/astonished-face"}.isdisjoint(trained)
    words = [f"data.source={own_folder}", "data.size=64", "data.styles=[blob]", "output=x"]
    assert make_held_out("clip", load_config("clip", "tiny/clip", words)) is None


def test_held_out_files_are_not_even_read(set_folder, monkeypatch):
    read = []

    def spy(path, size):
        read.append(path.relative_to(set_folder).as_posix())
        return read_picture(path, size)

    monkeypatch.setattr(dataset_module, "read_picture", spy)
    DrawingDataset(set_folder, 64)
    assert len(read) == 28
    assert not {"64/noto/abacus.png", "64/twemoji/airplane.png"} & set(read)


def test_pairs_share_a_style(set_folder, colours):
    dataset = DrawingDataset(set_folder, 64, plain_share=0.0, styles=["noto", "flat"])
    pairs = 0
    for position in range(300):
        sample = dataset[position]
        shown = {name for name in colours if has_colour(sample["image"], colours[name])}
        assert len({name.split("/")[0] for name in shown}) == 1
        pairs += len(shown) == 2
        for style in {"noto", "flat"} - {sample["id"].split("/")[0]}:
            assert style not in sample["caption"]
    assert pairs > 40


def test_icons_are_painted_in_the_told_colour(set_folder):
    dataset = DrawingDataset(set_folder, 64, styles=["icon"], plain_share=1.0)
    tints = set()
    for position in range(100):
        sample = dataset[position]
        tint = next(tint for tint in TINTS if f" {tint} " in sample["caption"])
        assert tuple(sample["image"][:, 32, 32].tolist()) == TINTS[tint]
        tints.add(tint)
    assert tints == set(TINTS)


def test_shared_only_and_styles_select(set_folder):
    dataset = DrawingDataset(set_folder, 64, shared_only=True, styles=["noto"])
    assert {drawing.id for drawing in dataset.drawings} == {
        f"noto/{concept}"
        for concept in ("airplane", "astonished-face", "dog-face", "red-apple", "rocket")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"styles": ["manga"]}, "styles: 'manga' is unknown"),
        ({"plain_share": 1.5}, "plain_share must be between 0 and 1"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"size": 128}, "no drawing to train on at 128 pixels"),
    ],
)
def test_wrong_arguments_are_named(set_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        DrawingDataset(set_folder, **({"size": 64} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degradation": "jpeg"}, "degradation 'jpeg' is unknown"),
        ({"crop": 30}, "crop must be a multiple of 4"),
        ({"crop": 128}, "between 4 and 64"),
        ({"size": 40}, "size must be a multiple of 16"),
        ({"blank_share": -0.1}, "blank_share must be between"),
    ],
)
def test_wrong_upsampler_arguments_are_named(set_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        UpsamplerDataset(set_folder, **({"size": 64} | settings))


def test_negative_position_is_refused(set_folder):
    for kind in ("drawings", "blur"):
        with pytest.raises(ValueError, match="position must be 0 or more"):
            make(kind, set_folder)[-1]


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_broken_picture_is_named(own_folder, content):
    (own_folder / "64" / "noto" / "rocket.png").write_bytes(content)
    with pytest.raises(ValueError, match="noto/rocket.png is broken"):
        DrawingDataset(own_folder, 64)


def test_picture_of_a_wrong_size_is_named(own_folder):
    small = own_folder / "32" / "noto" / "rocket.png"
    (own_folder / "64" / "noto" / "rocket.png").write_bytes(small.read_bytes())
    with pytest.raises(ValueError, match="is 32x32, not 64x64"):
        DrawingDataset(own_folder, 64)


def test_folder_without_metadata_is_refused(own_folder):
    (own_folder / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="holds no metadata.jsonl"):
        DrawingDataset(own_folder, 64)


def test_drawings_without_a_file_of_the_size_are_passed_over(own_folder):
    (own_folder / "64" / "noto" / "rocket.png").unlink()
    names = {drawing.id for drawing in DrawingDataset(own_folder, 64).drawings}
    assert "noto/rocket" not in names and "flat/rocket" in names


def test_only_held_out_drawings_are_nothing_to_train_on(own_folder):
    path = own_folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["held_out"]))
    with pytest.raises(ValueError, match="no drawing to train on"):
        DrawingDataset(own_folder, 64)


def test_cache_is_bounded(set_folder, monkeypatch):
    monkeypatch.setattr(dataset_module, "EAGER_BYTES", 0)
    dataset = DrawingDataset(set_folder, 64, cache_bytes=3 * 4 * 64 * 64)
    full = DrawingDataset(set_folder, 64)
    for position in range(30):
        assert same(dataset[position], full[position])
    assert len(dataset.pictures.kept) == 3


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_upsampler_shapes_and_ranges(set_folder, degradation):
    sample = UpsamplerDataset(set_folder, 64, degradation=degradation)[0]
    assert sample["image"].shape == (3, 16, 16) and sample["image"].dtype == torch.uint8
    assert sample["x_low"].shape == (3, 4, 4) and sample["x_low"].dtype == torch.float32
    assert sample["x_low"].abs().max() <= 1


def test_low_picture_is_the_blurred_whole_one(set_folder):
    """Whole: x_low of a crop is the same cut of the whole picture's, borders included."""
    settings = {"styles": ["noto"], "background_share": 0.0, "shrink_share": 0.0}
    dataset = UpsamplerDataset(set_folder, 64, 32, "blur", **settings)
    for position in range(40):
        sample = dataset[position]
        drawing = dataset.drawings[dataset.order[position]]
        whole = over(read_picture(drawing.path(64), 64), BACKGROUNDS["white"])
        x = torch.from_numpy(whole.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)
        low = gaussian_blur(F.interpolate(x[None], scale_factor=1 / 4, mode="area"))[0]
        image = sample["image"].float() / 127.5 - 1
        places = [
            (top, left)
            for top in range(0, 33, 4)
            for left in range(0, 33, 4)
            if torch.allclose(x[:, top : top + 32, left : left + 32], image, atol=1e-6)
            and torch.allclose(
                low[:, top // 4 : top // 4 + 8, left // 4 : left // 4 + 8],
                sample["x_low"],
                atol=1e-5,
            )
        ]
        assert places


def test_light_blur_is_anything_from_none_to_all_of_it():
    window = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    x = torch.from_numpy(window.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)
    sharp = F.avg_pool2d(x, 4)
    most = (gaussian_blur(sharp) - sharp).norm()
    shares = [
        float((degrade(window, "blur_light", np.random.default_rng(seed)) - sharp).norm() / most)
        for seed in range(40)
    ]
    assert 0 <= min(shares) < 0.1 and 0.9 < max(shares) <= 1.0001
    assert torch.allclose(degrade(window, "blur", None), gaussian_blur(sharp), atol=1e-6)


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_low_picture_lies_where_the_crop_does(set_folder, degradation):
    """Aligned: the crop's own area means agree with x_low better than when shifted by a pixel."""
    dataset = UpsamplerDataset(set_folder, 64, 32, degradation, background_share=0.0)
    errors = {shift: 0.0 for shift in (-1, 0, 1)}
    for position in range(40):
        sample = dataset[position]
        mean = F.avg_pool2d(sample["image"].float() / 127.5 - 1, 4)
        for shift in errors:
            gap = mean.roll((shift, shift), (1, 2)) - sample["x_low"]
            errors[shift] += gap[:, 1:-1, 1:-1].pow(2).mean().item()
    assert errors[0] < (0.75 if degradation == "bsr" else 0.5) * min(errors[-1], errors[1])


def test_blank_crops_are_few(set_folder):
    settings = {"crop": 16, "shrink_share": 0.0}
    shares = {}
    for blank_share in (0.0, 1.0):
        dataset = UpsamplerDataset(set_folder, 64, blank_share=blank_share, **settings)
        images = [dataset[position]["image"] for position in range(120)]
        blank = [bool((image == image[:, :1, :1]).all()) for image in images]
        shares[blank_share] = sum(blank) / len(blank)
    assert shares[0.0] < 0.03 < 0.15 < shares[1.0]


def test_shrunk_pictures_are_the_area_mean(set_folder):
    settings = {"styles": ["noto"], "background_share": 0.0, "shrink_share": 1.0}
    dataset = UpsamplerDataset(set_folder, 64, 32, "blur", **settings)
    sample = dataset[0]
    drawing = dataset.drawings[dataset.order[0]]
    whole = over(read_picture(drawing.path(64), 64), BACKGROUNDS["white"]).astype(np.float64)
    halved = whole.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(sample["image"].numpy() - halved).max() <= 0.51


def test_background_share_colours_crops(set_folder):
    dataset = UpsamplerDataset(set_folder, 64, 64, background_share=0.5)
    corners = [tuple(dataset[position]["image"][:, 0, 0].tolist()) for position in range(200)]
    assert 0.35 < sum(corner == (255, 255, 255) for corner in corners) / 200 < 0.65
    assert len(set(corners)) > 30
