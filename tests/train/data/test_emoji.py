"""Emoji sets: fetched whole or not at all, parsed, named and rendered."""

import base64
import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import replace
from hashlib import sha512
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip_train.data import emoji, icons
from unclip_train.data.drawings import EMOJI_STYLES, MORE_STYLES, load_drawings
from unclip_train.data.emoji import (
    Names,
    Package,
    concepts_by_name,
    fetch_package,
    list_drawings,
    make_emoji,
    name_of_label,
    parse_icon_set,
    read_json,
    render,
    with_known_ids,
)

SQUARE = '<path fill="{}" d="M0 0h36v36H0z"/>'
ROWS = [
    {"label": "red apple", "hexcode": "1F34E", "tags": ["apple", "Fruit"]},
    {"label": "keycap: #", "hexcode": "23-FE0F-20E3", "tags": []},
    {
        "label": "artist",
        "hexcode": "1F9D1-200D-1F3A8",
        "tags": ["palette"],
        "skins": [{"label": "artist: dark skin tone", "hexcode": "1F9D1-1F3FF-200D-1F3A8"}],
    },
]


def icon_set(*names: str, **more):
    bodies = {name: {"body": SQUARE.format("#c00")} for name in names}
    metadata = {"categories": {"Food & Drink": ["red-apple"], "People & Body": ["artist"]}}
    chars = {"1f34e": "red-apple", "1f9d1-200d-1f3a8": "artist"}
    return parse_icon_set({"icons": bodies | more, "width": 36, "height": 36}, metadata, chars)


def four_sets(styles=()):
    more = {style: icon_set("abacus", "red-apple", "its-own-id") for style in styles}
    return more | {
        "noto": icon_set("abacus", "red-apple", "artist", "only-noto"),
        "twemoji": icon_set("abacus", "red-apple", "artist"),
        "fluent": icon_set("abacus", "artist"),
        "flat": icon_set("abacus", "red-apple", "artist"),
    }


@pytest.fixture
def offline_sets(monkeypatch):
    """The sets without npm; rendered in this process."""
    monkeypatch.setattr(emoji, "load_icon_sets", four_sets)
    monkeypatch.setattr(emoji, "read_json", lambda *_: [ROWS])
    rendered = []

    def render_here(jobs, total, workers):
        results = []
        for job in jobs:
            rendered.append(job[0])
            results.append(emoji._render_to(job))
        return {name: reason for name, reason in results if reason}

    monkeypatch.setattr(emoji, "render_missing", render_here)
    return rendered


def write_archive(path: Path, members: dict[str, bytes]) -> Package:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = base64.b64encode(sha512(path.read_bytes()).digest()).decode()
    return Package("@scope/icons", "1.0.0", digest)


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """An npm that "packs" archive.tgz of its own folder, and an empty cache."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f'#!/bin/sh\n[ "$1" = pack ] || exit 1\ncp {folder}/archive.tgz scope-icons.tgz\n'
    (folder / "npm").write_text(script)
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder / "archive.tgz"


def test_package_is_fetched_once_and_read(fake_npm):
    package = write_archive(fake_npm, {"icons.json": b'{"icons": {}}', "other.txt": b"?"})
    assert read_json(package, "icons.json", "chars.json") == [{"icons": {}}, {}]
    fake_npm.unlink()
    assert read_json(package, "icons.json") == [{"icons": {}}]
    assert fetch_package(package).name == "scope-icons-1.0.0.tgz"


def test_package_with_another_hash_is_thrown_away(fake_npm):
    write_archive(fake_npm, {"icons.json": b"{}"})
    with pytest.raises(RuntimeError, match="another sha512"):
        fetch_package(Package("@scope/icons", "1.0.0", "AAAA"))
    assert not list(emoji.cache_folder().iterdir())


def test_damaged_cache_is_fetched_again(fake_npm):
    package = write_archive(fake_npm, {"icons.json": b"{}"})
    kept = fetch_package(package)
    kept.write_bytes(b"half")
    assert read_json(package, "icons.json") == [{}]
    assert fetch_package(package).stat().st_size > 4


def test_npm_that_fails_is_quoted(fake_npm):
    with pytest.raises(RuntimeError, match="npm could not fetch @scope/icons@1.0.0: .*archive.tgz"):
        fetch_package(Package("@scope/icons", "1.0.0", "AAAA"))


def test_missing_npm_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="npm is needed.*install Node.js"):
        fetch_package(emoji.PACKAGES["noto"])


def test_packages_are_pinned():
    for package in (*emoji.PACKAGES.values(), icons.ICON_PACKAGE):
        assert package.version.count(".") == 2
        assert len(base64.b64decode(package.integrity)) == 64


def test_hidden_icons_and_aliases_are_left_out():
    icons = icon_set("red-apple", ghost={"body": "", "hidden": True})
    assert list(icons.bodies) == ["red-apple"]
    assert icons.categories["red-apple"] == "Food & Drink"
    assert icons.chars["red-apple"] == "1f34e"


def test_own_box_comes_before_that_of_the_set():
    tall = {"body": SQUARE.format("#00c"), "height": 72, "top": -2}
    icons = icon_set("red-apple", tall=tall)
    assert icons.boxes == {"red-apple": (0, 0, 36, 36), "tall": (0, -2, 36, 72)}
    assert 'viewBox="0 -2 36 72"' in icons.svg("tall")


def test_render_is_square_and_centred():
    icons = icon_set("red-apple", wide={"body": SQUARE.format("#0000cc"), "width": 72})
    for size in (16, 64):
        picture = Image.open(io.BytesIO(render(icons.svg("red-apple"), size)))
        assert picture.mode == "RGBA" and picture.size == (size, size)
        assert (np.asarray(picture) == (204, 0, 0, 255)).all()
    wide = np.asarray(Image.open(io.BytesIO(render(icons.svg("wide"), 64))))
    assert tuple(wide[32, 16]) == (0, 0, 204, 255)
    assert wide[:15, :, 3].max() == 0 and wide[-15:, :, 3].max() == 0


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("red apple", "red apple"),
        ("flag: Japan", "flag of japan"),
        ("flag: C\u00f4te d\u2019Ivoire", "flag of cote d'ivoire"),
        ("flag: Netherlands", "flag of the netherlands"),
        ("keycap: 5", "keycap 5"),
        ("artist: dark skin tone", "artist with dark skin tone"),
        ("man: medium skin tone, beard", "man with medium skin tone and beard"),
        ("woman: bald", "bald woman"),
        ("family: man, woman, boy", "family of man, woman and boy"),
        (
            "man walking: dark skin tone, facing right",
            "man walking with dark skin tone facing right",
        ),
        ("man walking: facing right", "man walking facing right"),
        ("regional indicator A", "letter a"),
        ("AB button (blood type)", "blood type ab button"),
    ],
)
def test_name_of_label(label, name):
    assert name_of_label(label) == name


def test_names_are_found_by_characters_then_by_id():
    names = Names(ROWS)
    assert names.find("apple-of-red", "1f34e") == ("red apple", ("apple", "fruit"))
    assert names.find("red-apple", None) == ("red apple", ("apple", "fruit"))
    assert names.find("artist-dark-skin-tone", None)[0] == "artist with dark skin tone"
    assert names.find("artist-dark", "1f9d1-1f3ff-200d-1f3a8")[1] == ("palette",)
    assert names.find("keycap", None) == ("keycap", ())  # it bears no "#"
    assert names.find("new-thing", "1ffff") == ("new thing", ())


def test_shared_means_three_families_and_no_people():
    drawings = {d.id: d for d in list_drawings(four_sets(), Names(ROWS), Path("x"))}
    assert len(drawings) == 12
    shared = {drawing.concept for drawing in drawings.values() if drawing.shared}
    assert shared == {"abacus", "red-apple"}  # flat alone stands for its family
    assert {name for name, drawing in drawings.items() if drawing.held_out} == {"noto/abacus"}
    assert drawings["flat/red-apple"].family == "fluent"
    assert drawings["fluent/artist"].category == "People & Body"
    assert not drawings["fluent/artist"].shared


def test_further_families_are_never_held_out_and_decide_nothing():
    sets = four_sets(["emojione"])
    drawings = {d.id: d for d in list_drawings(sets, Names(ROWS), Path("x"))}
    more = {name for name in drawings if name.startswith("emojione/")}
    assert more == {"emojione/abacus", "emojione/red-apple"}
    assert not any(drawings[name].held_out for name in more)
    assert all(drawings[name].shared for name in more)
    without = list_drawings(four_sets(), Names(ROWS), Path("x"))
    assert {d.id: d for d in without}.items() <= drawings.items()


def test_further_artists_of_a_family_are_held_out_with_it():
    sets = four_sets(["blob", "contrast"])
    sets["blob"] = replace(sets["blob"], people=frozenset(["abacus"]))  # it decides nothing
    drawings = {d.id: d for d in list_drawings(sets, Names(ROWS), Path("x"))}
    assert {name for name, drawing in drawings.items() if drawing.held_out} == {
        "noto/abacus",
        "blob/abacus",
    }
    assert drawings["contrast/abacus"].family == "fluent"
    without = list_drawings(four_sets(), Names(ROWS), Path("x"))
    assert {d.id: d for d in without}.items() <= drawings.items()


def test_drawings_that_would_be_named_untruly_are_left_out():
    sets = four_sets(["contrast", "fxemoji"])
    sets["noto"].bodies["water-pistol"] = sets["fxemoji"].bodies["water-pistol"] = "<path/>"
    listed = {drawing.id for drawing in list_drawings(sets, Names(ROWS), Path("x"))}
    assert {"fxemoji/red-apple", "contrast/abacus", "noto/water-pistol"} <= listed
    assert not {"contrast/red-apple", "fxemoji/water-pistol"} & listed


def test_other_ids_are_matched_by_the_names_of_their_characters():
    sets = four_sets()
    eggplant = icon_set("eggplant", "sun-with-face")
    chars = {"eggplant": "1f346", "sun-with-face": "1f31e"}
    sets["noto"] = replace(eggplant, chars=chars)
    tall = {"body": "<path/>", "height": 72}
    others = icon_set("aubergine", "sunwithface", "abacus", "foxgrin", eggplant=tall)
    found = with_known_ids(others, concepts_by_name(sets))
    assert set(found.bodies) == {"eggplant", "sun-with-face", "abacus", "foxgrin"}
    assert found.boxes["eggplant"] == (0, 0, 36, 72)  # its own id comes first
    assert found.svg("sun-with-face") == others.svg("sunwithface")


def test_further_artists_are_rendered_where_they_are_asked_for(offline_sets, tmp_path):
    make_emoji(tmp_path / "emoji", sizes=[16], styles=["noto", "emojione"])
    assert {d.style for d in load_drawings(tmp_path / "emoji")} == {"noto", "emojione"}
    make_emoji(tmp_path / "plain", sizes=[16])
    assert "emojione" not in {d.style for d in load_drawings(tmp_path / "plain")}


def test_folder_is_rendered_and_only_completed_later(offline_sets, tmp_path):
    folder = tmp_path / "emoji"
    report = make_emoji(folder, sizes=[16])
    assert report["rendered"] == {"16": 12} and not report["failed"]
    drawings = load_drawings(folder)
    assert len(drawings) == 12
    assert all(Image.open(folder / d.file_name).size == (16, 16) for d in drawings)
    (folder / "16" / "noto" / "abacus.png").unlink()
    offline_sets.clear()
    report = make_emoji(folder, sizes=[16, 32], shared_only=True, styles=["noto"])
    assert report["rendered"] == {"16": 1, "32": 2}
    assert sorted(offline_sets) == ["noto/abacus", "noto/abacus", "noto/red-apple"]
    assert len(load_drawings(folder)) == 12


def test_limit_takes_whole_concepts(offline_sets, tmp_path):
    make_emoji(tmp_path / "emoji", sizes=[16], shared_only=True, limit=4)
    concepts = {drawing.concept for drawing in load_drawings(tmp_path / "emoji")}
    assert len(concepts) == 1 or concepts == {"abacus", "red-apple"}
    make_emoji(tmp_path / "more", sizes=[16], limit=3)
    assert len(load_drawings(tmp_path / "more")) == 3


def test_row_without_any_file_falls_away(offline_sets, tmp_path, monkeypatch):
    sets = four_sets()
    sets["noto"].bodies["abacus"] = "<path fill="
    monkeypatch.setattr(emoji, "load_icon_sets", lambda styles: sets)
    report = make_emoji(tmp_path / "emoji", sizes=[16])
    assert list(report["failed"]) == ["16/noto/abacus"]
    assert "noto/abacus" not in {drawing.id for drawing in load_drawings(tmp_path / "emoji")}
    assert not list((tmp_path / "emoji").rglob("*.part"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": [4]}, "sizes: 4 is not between 8 and 4096"),
        ({"styles": ["manga"]}, "styles: 'manga' is unknown"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_fetched(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_emoji(tmp_path / "emoji", **settings)
    assert not (tmp_path / "emoji").exists()


def test_processes_render_what_one_would(tmp_path):
    svg = icon_set("red-apple").svg("red-apple")
    jobs = [(f"noto/{n}", svg, 16, tmp_path / f"{n}.png") for n in range(3)]
    jobs.append(("noto/bad", "<svg", 16, tmp_path / "bad.png"))
    failed = emoji.render_missing(iter(jobs), len(jobs), workers=2)
    assert list(failed) == ["noto/bad"]
    assert (tmp_path / "2.png").read_bytes() == render(svg, 16)


def test_icons_are_named_by_id_and_never_held_out(tmp_path, monkeypatch):
    raw = {
        "icons": {"abacus": {"body": SQUARE.format("currentColor")}},
        "width": 36,
        "height": 36,
        "aliases": {"counting-frame": {"parent": "abacus"}, "x": {"parent": "abacus", "rotate": 1}},
    }
    monkeypatch.setattr(icons, "read_json", lambda *_: [raw, {}, {}])
    report = icons.make_icons(tmp_path / "icons", sizes=[24], workers=1)
    assert report["rendered"] == {"24": 1}
    (drawing,) = load_drawings(tmp_path / "icons")
    assert (drawing.id, drawing.family, drawing.held_out) == ("icon/abacus", "mdi", False)
    assert drawing.keywords == ("counting frame",)
    pixels = np.asarray(Image.open(drawing.path(24)))
    assert (pixels == (0, 0, 0, 255)).all()
    with pytest.raises(ValueError, match="limit must be at least 1"):
        icons.make_icons(tmp_path / "icons", limit=0)


@pytest.mark.slow
def test_pinned_sets_hold_what_they_should(tmp_path):
    """Fetches the packages with npm."""
    sets = emoji.load_icon_sets(MORE_STYLES)
    names = Names(read_json(emoji.PACKAGES["names"], "en/data.json")[0])
    listed = list_drawings(sets, names, tmp_path)
    num_shared = Counter(drawing.style for drawing in listed if drawing.shared)
    assert [num_shared[style] for style in MORE_STYLES] == [942, 352, 980, 564, 943, 1200]
    drawings = [drawing for drawing in listed if drawing.style in EMOJI_STYLES]
    assert len(drawings) == 13_976
    assert len({drawing.concept for drawing in drawings if drawing.shared}) == 1242
    assert len({(d.concept, d.family) for d in drawings if d.held_out}) == 184
    concepts = Path(__file__).with_name("shared_concepts.txt").read_text().split()
    assert sorted({drawing.concept for drawing in drawings if drawing.shared}) == concepts
    assert json.dumps([drawing.to_row() for drawing in listed]).isascii()
    assert all(drawing.name for drawing in listed)
