"""Rows of metadata.jsonl, and the files beside them."""

import json

import pytest

from unclip_train.data.drawings import (
    base_concept,
    evaluation_drawings,
    files_present,
    is_measured,
    load_drawings,
    prepare_folder,
    save_drawings,
    write_whole,
)

from .conftest import PEOPLE_CONCEPTS, list_set, make_drawing


def edit_row(folder, drawing_id, **changes):
    path = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | changes if row["id"] == drawing_id else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_survive_saving(tmp_path):
    save_drawings(tmp_path, list_set())
    loaded = load_drawings(tmp_path)
    assert loaded == sorted(list_set(), key=lambda drawing: drawing.id)
    assert loaded[0].path(64) == tmp_path / "64" / loaded[0].style / f"{loaded[0].concept}.png"


def test_missing_metadata_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="unclip-data emoji --output"):
        load_drawings(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "field 'name' is missing or is not a str"),
        ({"shared": "yes"}, "field 'shared' is missing"),
        ({"family": "twemoji"}, "not of the family"),
        ({"concept": "../../etc"}, "leaves the folder"),
        ({"concept": "a/b"}, "not a plain name"),
        ({"file_name": "/etc/passwd"}, "leaves the folder"),
    ],
)
def test_wrong_row_is_named(own_folder, changes, message):
    edit_row(own_folder, "noto/rocket", **changes)
    with pytest.raises(ValueError, match=message) as found:
        load_drawings(own_folder)
    assert "metadata.jsonl, line " in str(found.value)


def test_line_that_is_no_json_is_named(own_folder):
    with open(own_folder / "metadata.jsonl", "a") as file:
        file.write("{half a row\n")
    with pytest.raises(ValueError, match="metadata.jsonl, line 33"):
        load_drawings(own_folder)


def test_same_id_twice_is_refused(own_folder):
    with open(own_folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps(make_drawing("noto", "rocket").to_row()) + "\n")
    with pytest.raises(ValueError, match="'noto/rocket' stands twice"):
        load_drawings(own_folder)


def test_row_cannot_deny_that_it_is_held_out(own_folder):
    edit_row(own_folder, "noto/abacus", held_out=False)
    held_out = {drawing.id: drawing.held_out for drawing in load_drawings(own_folder)}
    assert held_out["noto/abacus"]


def test_evaluation_wants_the_two_other_families_trained():
    drawings = list_set()
    assert {drawing.id for drawing in evaluation_drawings(drawings)} == {
        "noto/abacus",
        "twemoji/airplane",
        "fluent/astonished-face",
        "flat/astonished-face",
    }
    without = [drawing for drawing in drawings if drawing.id != "twemoji/abacus"]
    assert "noto/abacus" not in {drawing.id for drawing in evaluation_drawings(without)}


def test_further_artists_are_not_evaluated():
    drawings = list_set()
    more = [make_drawing("blob", "abacus"), make_drawing("contrast", "astonished-face")]
    assert all(drawing.held_out and not is_measured(drawing) for drawing in more)
    assert evaluation_drawings(drawings + more) == evaluation_drawings(drawings)
    without = [drawing for drawing in drawings if drawing.id != "noto/airplane"]
    without.append(make_drawing("blob", "airplane"))  # it does not stand for the first artist
    assert "twemoji/airplane" not in {drawing.id for drawing in evaluation_drawings(without)}


def test_tones_of_a_person_are_one_concept():
    people = [make_drawing("noto", concept, "People & Body") for concept in PEOPLE_CONCEPTS]
    people.append(make_drawing("flat", "artist-medium-light", "People & Body"))
    assert {base_concept(drawing) for drawing in people} == {"artist"}
    light = make_drawing("noto", "vertical-traffic-light", "Travel & Places")
    assert base_concept(light) == "vertical-traffic-light"


def test_half_written_files_do_not_count(tmp_path):
    write_whole(tmp_path / "a.png", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    style = tmp_path / "64" / "noto"
    style.mkdir(parents=True)
    (style / "owl.png").write_bytes(b"")
    (style / ".fox.png.12.part").write_bytes(b"")
    assert files_present(tmp_path, 64) == {"noto/owl"}
    assert files_present(tmp_path, 256) == set()


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        prepare_folder(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        prepare_folder(tmp_path / "thesis.txt")
    assert prepare_folder(tmp_path / "new") == []
