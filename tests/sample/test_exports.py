"""Exports: what GenEval and T2I-CompBench would read from them, by these benchmarks' own rules."""

import json
import os
import re

import pytest
from PIL import Image

from unclip_sample.exports import read_geneval_prompts, write_compbench, write_geneval
from unclip_sample.request import RequestError

ROWS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1}], "prompt": 'a "red" cow / calf'},
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "zwei Uhren \u00fc"},
]
PROMPTS = ["a green bench and a blue bowl", "a red cow.", "two clocks"]


class Artist:
    """Draws pictures whose colour tells prompt and index, and remembers what it was asked."""

    def __init__(self, num_images=2, stop_at=None):
        self.num_images, self.stop_at, self.asked = num_images, stop_at, []

    def __call__(self, number, prompt):
        if number == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((number, prompt))
        return [Image.new("RGB", (8, 8), (number, i, 200)) for i in range(self.num_images)]


def colour(path):
    return Image.open(path).getpixel((0, 0))


def test_geneval_reads_every_prompt_and_picture(tmp_path):
    assert write_geneval(tmp_path / "out", ROWS, Artist()) == 3
    read = {}
    for name in os.listdir(tmp_path / "out"):  # as evaluate_images.py goes about it
        place = tmp_path / "out" / name
        if not (place.is_dir() and name.isdigit()):
            continue
        metadata = json.loads((place / "metadata.jsonl").read_text())
        images = [i for i in os.listdir(place / "samples") if re.match(r"\d+\.png", i)]
        read[int(name)] = (metadata, sorted(images))
    assert read == {i: (row, ["0000.png", "0001.png"]) for i, row in enumerate(ROWS)}
    assert colour(tmp_path / "out/00002/samples/0001.png") == (2, 1, 200)


def test_compbench_reads_every_prompt_and_picture(tmp_path):
    assert write_compbench(tmp_path / "out", PROMPTS, 2, Artist()) == 3
    names = os.listdir(tmp_path / "out/samples")
    names.sort(key=lambda x: int(x.split("_")[-1].split(".")[0]))  # as BLIP_vqa.py goes about it
    assert [name.split("_")[0] for name in names] == [p for p in PROMPTS for _ in range(2)]
    numbers = [int(name.split(".png")[0].split("_")[1]) for name in names]  # numeracy_eval.py
    assert numbers == list(range(6))
    assert colour(tmp_path / "out/samples" / names[3]) == (1, 1, 200)


def test_a_stopped_export_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_geneval(tmp_path / "g", ROWS, Artist(stop_at=1))
    assert os.listdir(tmp_path / "g") == ["00000"]
    again = Artist()
    assert write_geneval(tmp_path / "g", ROWS, again) == 2
    assert [number for number, _ in again.asked] == [1, 2]
    assert sorted(os.listdir(tmp_path / "g")) == ["00000", "00001", "00002"]
    with pytest.raises(KeyboardInterrupt):
        write_compbench(tmp_path / "c", PROMPTS, 2, Artist(stop_at=2))
    again = Artist()
    assert write_compbench(tmp_path / "c", PROMPTS, 2, again) == 1
    assert again.asked == [(2, "two clocks")] and len(os.listdir(tmp_path / "c/samples")) == 6


def test_other_prompts_do_not_mix_with_what_is_there(tmp_path):
    write_geneval(tmp_path / "g", ROWS, Artist())
    with pytest.raises(RequestError, match="00001 holds another prompt; name another folder"):
        write_geneval(tmp_path / "g", [ROWS[0], ROWS[2]], Artist())
    write_compbench(tmp_path / "c", PROMPTS, 2, Artist())
    before = sorted(os.listdir(tmp_path / "c/samples"))
    with pytest.raises(RequestError, match="of no prompt; name another folder"):
        write_compbench(tmp_path / "c", ["a cat"], 2, Artist())
    with pytest.raises(RequestError, match="of no prompt"):  # the numbers would run otherwise
        write_compbench(tmp_path / "c", PROMPTS, 1, Artist())
    assert sorted(os.listdir(tmp_path / "c/samples")) == before


@pytest.mark.parametrize("prompt", ["a_b", "a/b", "..", " ", "a\nb", "a" * 250])
def test_a_prompt_that_names_no_file_is_refused_before_any_work(tmp_path, prompt):
    artist = Artist()
    with pytest.raises(RequestError, match="^prompt "):
        write_compbench(tmp_path / "c", ["a cat", prompt], 1, artist)
    assert artist.asked == [] and not (tmp_path / "c").exists()


def test_prompts_of_geneval_are_read_or_refused(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    assert read_geneval_prompts(path) == ROWS
    for text, message in (
        ('{"prompt": 3}', "line 1: no JSON object with a prompt"),
        ('{"prompt": "a"}\nnothing', "line 2: no JSON object"),
        ("\n", "has no prompts"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=message):
            read_geneval_prompts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="no UTF-8 text"):
        read_geneval_prompts(path)
    with pytest.raises(RequestError, match="cannot read"):
        read_geneval_prompts(tmp_path / "nothing.jsonl")
