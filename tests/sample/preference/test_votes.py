"""Votes: rates that a count by hand gives, intervals of table 1, and files that are refused."""

import argparse
import json

import pytest
from PIL import Image

from unclip.metrics.intervals import wilson_interval
from unclip_sample.outputs import OutputError
from unclip_sample.preference.page import Key, key_text
from unclip_sample.preference.votes import read_key, table, win_rates
from unclip_sample.preference.words import add_page, add_votes
from unclip_sample.request import RequestError

QUESTIONS = {"quality": "Which looks better?", "caption": "Which fits the caption better?"}


@pytest.fixture
def key():
    """The key of a page of 1000 pairs; the first stands on the left in every other one."""
    pairs = {f"{number}.png": number % 2 == 0 for number in range(1000)}
    return Key("abcd1234", "new", "old", QUESTIONS, pairs)


def choice(key, number, winner):
    """The side on which the winner ("first", "second" or "unsure") stands."""
    if winner == "unsure":
        return winner
    first_left = list(key.pairs.values())[number]
    return "left" if (winner == "first") == first_left else "right"


@pytest.fixture
def vote_file(key, tmp_path):
    """Write a file of votes from the winners of pairs 0, 1, ...; its path."""

    def write(winners, voter="", question="quality", **changes):
        votes = [
            {"pair": n, "question": question, "choice": choice(key, n, winner), "seconds": 1.5}
            for n, winner in enumerate(winners)
        ]
        content = {"format": "unclip-votes", "version": 1, "study": key.study, "voter": voter}
        path = tmp_path / f"votes-{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({**content, "votes": votes, **changes}))
        return path

    return write


def test_the_rate_is_that_of_table_1(key, vote_file):
    """471 of 1000 wins are printed there as 47.1 +- 3.1."""
    winners = ["first"] * 421 + ["unsure"] * 100 + ["second"] * 479
    (row,) = win_rates([vote_file(winners)], key)
    assert (row.first, row.unsure, row.second, row.num_votes) == (421, 100, 479, 1000)
    assert row.win_rate == pytest.approx(0.471)
    assert round(100 * row.half_width, 1) == 3.1
    assert (row.low, row.high) == pytest.approx(wilson_interval(471, 1000))
    assert "47.1% +- 3.1" in table([row], key) and "new was taken over old" in table([row], key)


def test_one_who_always_takes_the_left_says_nothing(key, tmp_path):
    votes = [{"pair": n, "question": "quality", "choice": "left"} for n in range(1000)]
    path = tmp_path / "left.json"
    content = {"format": "unclip-votes", "version": 1, "study": key.study, "votes": votes}
    path.write_text(json.dumps(content))
    (row,) = win_rates([path], key)
    assert row.win_rate == 0.5 and row.low < 0.5 < row.high


def test_many_votes_on_a_pair_are_no_more_pairs(key, vote_file):
    """Ten voters who agree on each of 20 pairs tell as much about other pairs as one does."""
    winners = ["first", "second"] * 10
    alone = win_rates([vote_file(winners)], key)[0]
    many = win_rates([vote_file(winners, voter=f"voter {i}") for i in range(10)], key)[0]
    assert (many.num_votes, many.num_voters) == (200, 10) and many.win_rate == 0.5
    assert many.high - many.low == pytest.approx(alone.high - alone.low, rel=0.2)
    apart = wilson_interval(100, 200)
    assert many.high - many.low > 2 * (apart.high - apart.low)


def test_questions_are_counted_apart(key, vote_file):
    files = [
        vote_file(["first"] * 8 + ["second"] * 2),
        vote_file(["second"] * 10, question="caption"),
    ]
    quality, caption = win_rates(files, key)
    assert (quality.question, quality.win_rate) == ("quality", 0.8)
    assert (caption.question, caption.win_rate, caption.low) == ("caption", 0.0, 0.0)


def test_what_is_no_vote_is_refused(key, vote_file, tmp_path):
    good = vote_file(["first"])
    vote = {"pair": 0, "question": "quality", "choice": "left"}
    for changes, message in (
        ({"study": "00000000"}, "is of page 00000000, but the key of abcd1234"),
        ({"format": "other"}, "holds no votes of a preference page"),
        ({"votes": [{**vote, "pair": 1000}]}, "holds a vote that the page does not give"),
        ({"votes": [{**vote, "pair": True}]}, "holds a vote that the page does not give"),
        ({"votes": [{**vote, "choice": "both"}]}, "holds a vote that the page does not give"),
        ({"votes": [{**vote, "question": "size"}]}, "holds a vote that the page does not give"),
        ({"votes": {"a": 1}}, "holds a vote that the page does not give"),
        ({"votes": [vote, vote]}, "twice"),
        ({"votes": []}, "no votes in these files"),
    ):
        with pytest.raises(RequestError, match=f"^VOTES: .*{message}"):
            win_rates([vote_file([], **changes)], key)
    with pytest.raises(RequestError, match="^VOTES: two files are the same"):
        win_rates([good, good], key)
    for text in ("nothing", "[]", "{}", key_text(key).replace('"abcd1234"', "3")):
        (tmp_path / "key.json").write_text(text)
        with pytest.raises(RequestError, match="key.json"):
            read_key(tmp_path / "key.json")
    (tmp_path / "key.json").write_text(key_text(key))
    assert read_key(tmp_path / "key.json") == key


def test_from_folders_to_win_rates_by_words(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            Image.new("RGB", (9, 9), (number, 9, 9)).save(tmp_path / folder / f"{number}.png")

    def run(add, *words):
        parser = argparse.ArgumentParser()
        add(parser)
        args = parser.parse_args([str(word) for word in words])
        assert args.run(args) == 0
        return capsys.readouterr().out

    page = tmp_path / "study" / "page.html"
    words = (tmp_path / "a", tmp_path / "b", "--output", page, "--questions", "quality")
    assert "4 pairs" in run(add_page, *words)
    with pytest.raises(OutputError, match="^--output: .*page.html exists"):
        run(add_page, *words)
    run(add_page, *words, "--overwrite", "--seed", "4")
    key = read_key(tmp_path / "study" / "page.key.json")
    votes = [{"pair": n, "question": "quality", "choice": choice(key, n, "first")} for n in (0, 1)]
    content = {"format": "unclip-votes", "version": 1, "study": key.study, "votes": votes}
    (tmp_path / "votes.json").write_text(json.dumps(content))
    files = (tmp_path / "study/page.key.json", tmp_path / "votes.json")
    assert "100.0%" in run(add_votes, *files)
    said = json.loads(run(add_votes, *files, "--format", "json"))
    assert said["questions"][0]["win_rate"] == 1.0 and said["first"] == "a"
    with pytest.raises(RequestError, match="^VOTES: .* does not exist"):
        run(add_votes, files[0], tmp_path / "nothing.json")
    with pytest.raises(OutputError, match="^--output: give FILE.html"):
        run(add_page, tmp_path / "a", tmp_path / "b", "--output", "page.png")
