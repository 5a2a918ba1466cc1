"""What is asked: keyed choices, distractors, compositions that are true."""

import numpy as np
import pytest

from unclip.metrics.attributes import background_colour
from unclip_sample.evaluation import protocol
from unclip_sample.evaluation.protocol import choose, distractors_of, keyed_seed
from unclip_sample.evaluation.sources import open_data, open_drawings
from unclip_train.data.drawings import evaluation_drawings, load_drawings
from unclip_train.data.vocabulary import BACKGROUNDS


def test_groups_follow_the_rule_of_held_out_pairs(source, drawings):
    listed = load_drawings(drawings)
    held_out = {example.id for example in source.groups["heldout"]}
    assert held_out == {d.id for d in evaluation_drawings(listed)} and len(held_out) == 4
    seen = {example.id for example in source.groups["seen"]}
    assert seen == {d.id for d in listed if d.shared and not d.held_out}
    assert {e.id for e in source.training} == seen
    assert source.styles == ("noto", "twemoji", "fluent", "flat")
    captions = {e.id: e.caption for e in source.everything}
    assert captions["noto/abacus"] == "an abacus, noto style"
    assert captions["flat/red-apple"] == "a red apple, flat style"


def test_examples_show_their_drawing_on_white(source, drawings):
    example = source.groups["seen"][0]
    pixels = example.pixels()
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert (pixels[0, 0] == 255).all() and (pixels[32, 32] != 255).any()


def test_styles_can_be_chosen(drawings):
    source = open_drawings(drawings, 64, ["noto"])
    assert {e.style for e in source.everything} == {"noto"} and source.styles == ("noto",)
    with pytest.raises(ValueError, match="^--styles: 'oil' is unknown; use noto"):
        open_drawings(drawings, 64, ["oil"])


def test_further_artists_in_the_folder_change_nothing(source, drawings_by_more):
    listed = {drawing.style for drawing in load_drawings(drawings_by_more)}
    assert listed >= {"emojione", "blob", "contrast"}
    found = open_drawings(drawings_by_more, 64)
    assert found == source  # groups, real training pictures, styles, fingerprint
    with pytest.raises(ValueError, match="^--styles: 'blob' is unknown"):
        open_drawings(drawings_by_more, 64, ["blob"])


def test_data_that_cannot_be_used_is_refused(drawings, tmp_path):
    with pytest.raises(FileNotFoundError, match="^--data: there is no folder"):
        open_data(str(tmp_path / "nothing"), 64)
    with pytest.raises(ValueError, match="^--data: .* holds no drawing of 128 pixels; render"):
        open_data(str(drawings), 128)


def test_a_choice_is_a_part_of_every_larger_one(source):
    seen = source.groups["seen"]
    small, large = choose(seen, 3, 0, "x"), choose(seen, 9, 0, "x")
    assert large[:3] == small and choose(list(reversed(seen)), 3, 0, "x") == small
    assert choose(seen, 99, 0, "x") != choose(seen, 99, 1, "x")
    assert 0 <= keyed_seed(0, "a") < 2**31 and keyed_seed(0, "a") != keyed_seed(0, "b")


def test_distractors_are_near_and_far_and_never_the_caption_itself():
    near = [(f"near {i}", "food") for i in range(50)]
    far = [(f"far {i}", "tools") for i in range(200)]
    rivals = [("own", "food"), *near, *far, ("own", "tools")]  # a namesake elsewhere
    chosen = distractors_of("own", "food", rivals, 0)
    assert len(chosen) == len(set(chosen)) == 99 and "own" not in chosen
    assert sum(caption.startswith("near") for caption in chosen) == 20
    assert (
        chosen
        == distractors_of("own", "food", rivals, 0)
        != distractors_of("own", "food", rivals, 1)
    )
    without = distractors_of("own", "", rivals, 0)
    assert len(without) == 99 and sum(c.startswith("near") for c in without) != 20
    assert len(distractors_of("own", "food", rivals[:10], 0)) == 9
    with pytest.raises(ValueError, match="^--data: all captions are alike"):
        distractors_of("own", "food", [("own", "food")], 0)


def test_compositions_show_what_their_captions_say(source):
    import torch

    (one, *_) = asked = protocol.on_backgrounds(source, 4, 0)
    assert len(asked) == 4 and f"on a{'n' * (one.background[0] in 'aeiou')} " in one.caption
    for one in asked:
        assert one.background != "white" and f"{one.background} background" in one.caption
        found = background_colour(torch.from_numpy(one.picture.copy()), BACKGROUNDS)
        assert found == one.background
    for one in protocol.side_by_side(source, 4, 0):
        left, right = one.things
        assert left.style == right.style and left.concept != right.concept
        middle = one.picture[32, [16, 48]]  # the discs' own colours, which no two share
        assert not (middle == 255).all(1).any() and (middle[0] != middle[1]).any()
        words = f"{left.name} on the left and"
        assert words in one.caption and f"{right.name} on the right, " in one.caption
    for one in protocol.counted(source, 4, 0):
        assert {2: "two ", 3: "three "}[one.count] in one.caption
        counts = protocol.count_captions(one.things[0])
        assert counts[one.count - 1] == one.caption and len(set(counts)) == 3
