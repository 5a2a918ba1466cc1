"""The blind page: fair sides, nothing that tells, and a browser that votes by its keys."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from unclip_sample.png import save_png
from unclip_sample.preference.page import key_text, make_page, pair_up, read_captions, shuffled
from unclip_sample.preference.votes import read_key, read_votes, win_rates
from unclip_sample.request import RequestError

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NUM_PAIRS = 9


@pytest.fixture
def folders(tmp_path):
    """Two folders of nine pictures: those of the first are red, those of the second blue."""
    for folder, colour in (("secret-model", (200, 30, 30)), ("other-model", (30, 30, 200))):
        (tmp_path / folder).mkdir()
        for number in range(NUM_PAIRS):
            picture = Image.new("RGB", (20 + number, 24), (*colour[:2], colour[2] + number))
            record = {"prompt": f"thing </script> {number}", "model": folder, "seed": number}
            save_png(picture, tmp_path / folder / f"{number:04d}.png", record)
    return tmp_path / "secret-model", tmp_path / "other-model"


def data_of(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def picture_of(uri):
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def is_first(uri):
    red, _, blue = picture_of(uri).getpixel((0, 0))
    return red > blue


def test_the_key_knows_what_stands_where(folders):
    html, key = make_page(*folders, seed=3)
    data = data_of(html)
    assert len(data["pairs"]) == NUM_PAIRS and data["study"] == key.study
    for pair, (name, first_left) in zip(data["pairs"], key.pairs.items(), strict=True):
        number = int(name.split(".")[0])
        assert is_first(pair["left"]) is first_left and is_first(pair["right"]) is not first_left
        assert pair["caption"] == f"thing </script> {number}"
        assert picture_of(pair["left"]).width == 20 + number
    trials = [(trial["pair"], trial["question"]) for trial in data["trials"]]
    assert trials == [(pair, q) for pair in range(NUM_PAIRS) for q in ("quality", "caption")]
    assert (key.first, key.second) == ("secret-model", "other-model")


def test_nothing_on_the_page_tells_whose_a_picture_is(folders):
    html, key = make_page(*folders)
    for word in ("secret-model", "other-model", "0000.png", "://"):
        assert word not in html, word
    for pair in data_of(html)["pairs"]:
        assert set(pair) == {"left", "right", "caption"}
        assert picture_of(pair["left"]).info == {} == picture_of(pair["right"]).info
    assert "default-src 'none'" in html and html.count("</script>") == 2
    assert "secret-model" in key_text(key)


def test_sides_and_order_are_fair_and_repeatable():
    names = [f"{number}.png" for number in range(101)]
    first = shuffled(names, seed=1)
    assert first == shuffled(list(reversed(names)), seed=1)
    assert list(first) == list(shuffled(list(reversed(names)), seed=1))
    others = [shuffled(names, seed) for seed in range(2, 12)]
    assert all(sum(sides.values()) in (50, 51) and set(sides) == set(names) for sides in others)
    assert len({tuple(sides) for sides in others}) == 10
    assert {sum(sides.values()) for sides in others} == {50, 51}
    lefts = np.mean([[sides[name] for name in names] for sides in others], axis=0)
    assert lefts.min() < 0.4 and lefts.max() > 0.6  # no name is always on one side
    half = shuffled(names, seed=1, limit=20)
    assert list(half) == list(first)[:20] and sum(half.values()) == 10


def test_captions_sizes_and_questions(folders):
    html, key = make_page(*folders, captions={"0003.png": "a dog"}, limit=4, seed=5, size=8)
    data = data_of(html)
    assert len(data["pairs"]) == 4 and max(picture_of(data["pairs"][0]["left"]).size) == 8
    captioned = [i for i, name in enumerate(key.pairs) if name == "0003.png"]
    asked = [trial["pair"] for trial in data["trials"] if trial["question"] == "caption"]
    assert asked == captioned
    html, _ = make_page(*folders, questions=["diversity"])
    assert {trial["question"] for trial in data_of(html)["trials"]} == {"diversity"}
    assert make_page(*folders, seed=0)[1].study != make_page(*folders, seed=1)[1].study


def test_what_does_not_fit_is_refused(folders, tmp_path):
    with pytest.raises(RequestError, match="^--questions: give some of quality"):
        make_page(*folders, questions=["beauty"])
    with pytest.raises(RequestError, match="^--questions: no pair has a caption"):
        make_page(*folders, questions=["caption"], captions={})
    with pytest.raises(RequestError, match="^FOLDER: .*nothing is no folder"):
        pair_up(folders[0], tmp_path / "nothing")
    (folders[1] / "0003.png").write_bytes(b"nothing")
    with pytest.raises(RequestError, match="^FOLDER: cannot read .*0003.png"):
        make_page(*folders)
    (folders[1] / "0003.png").unlink()
    with pytest.raises(RequestError, match="^FOLDER: 0003.png is missing in .*other-model; give"):
        make_page(*folders)
    path = tmp_path / "captions.json"
    path.write_text('{"a.png": 3}')
    with pytest.raises(RequestError, match="^--captions: .* is no JSON object of captions"):
        read_captions(path)


VOTE = """
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key: key}));
window.setTimeout = (act) => act();
$("voter").value = "Ann O.";
$("begin").click();
const said = [];
while (screen === "trial") {
  const number = state.votes.length;
  if (number === 4 && !said.includes("back")) { said.push("back"); press("Backspace"); continue; }
  press(["ArrowLeft", "ArrowRight", " "][number % 3]);
}
URL.createObjectURL = (blob) => { blob.text().then((text) => {
  document.body.innerHTML = "<pre id=votes></pre>";
  document.getElementById("votes").textContent = text;
}); return "#"; };
$("download").click();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_votes_by_its_keys(folders, tmp_path):
    html, key = make_page(*folders, seed=2)
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", f"<script>{VOTE}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    done = subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    votes = tmp_path / "votes.json"
    votes.write_text(re.search(r'<pre id="votes">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    voter, given = read_votes(votes, key)
    assert voter == "Ann O." and len(given) == 2 * NUM_PAIRS
    assert [vote["choice"] for vote in given] == ["left", "right", "unsure"] * 6
    assert [vote["pair"] for vote in given] == [n // 2 for n in range(18)]
    (tmp_path / "key.json").write_text(key_text(key))
    rows = win_rates([votes], read_key(tmp_path / "key.json"))
    assert [row.num_votes for row in rows] == [NUM_PAIRS, NUM_PAIRS]
