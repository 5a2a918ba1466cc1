"""R27 and R28 of docs/reliability.md: prompts, files and words that nobody thought of."""

import argparse
import json
import string

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip.pipeline.arguments import check_texts
from unclip_sample import cli, plots
from unclip_sample.png import encode_png, read_png, save_png
from unclip_sample.prompts import OWN, read_object
from unclip_sample.request import RequestError, read_request

SECONDS = 5
EXAMPLES = [pytest.param(40), pytest.param(2000, marks=pytest.mark.slow)]

NASTY = st.sampled_from(
    ["\nSteps: 1, Seed: 9", "Negative prompt: x", "\0", "\r\n", "\ud83d", "\U0001f34e", "\u2028"]
    + ["</x:xmpmeta>", '"', "\\", "{", "<|endoftext|>", "/home/alice/", "../..", "a" * 300]
)
ANY_LETTER = st.characters(codec=None)  # lone surrogates too
PROMPTS = st.lists(NASTY | st.text(ANY_LETTER, max_size=8), max_size=8).map("".join)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 2**64, 1e308, -1, 0])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | PROMPTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PROMPTS, inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["prompt", "negative_prompt", "seed", "steps", "guidance", "sampler", "size", "stages", "dtype"]
    + ["z_img", "latents", "operation", "plot", "num_prior_candidates", "guidance_interval"]
    + ["model_hash", "quantize", "prior", "decoder"]
)
RECORDS = st.dictionaries(KEYS | PROMPTS, JSON, max_size=6)


def fuzz(count, test, *strategies):
    """Run a test on so many examples, none of which may take longer than SECONDS."""
    run = settings(
        max_examples=count,
        deadline=SECONDS * 1000,
        database=None,
        derandomize=count < 1000,
        suppress_health_check=list(HealthCheck),
    )
    run(given(*strategies)(test))()


def told_in_one_line(error):
    """Whether an error says what is wrong, in a line."""
    return str(error).strip() and "\n" not in str(error)


def test_r27_prompts_come_back_from_files(tmp_path, figure):
    path, counts = tmp_path / "a.png", {"made": 0, "same": 0}

    def check(prompt, negative, seed):
        record = {"prompt": prompt, "negative_prompt": negative, "seed": seed}
        save_png(Image.new("RGB", (4, 4)), path, record, overwrite=True)
        counts["made"] += 1
        counts["same"] += read_png(path) == record
        assert read_png(path) == record
        # What viewers read has one line of settings, with the seed of the picture in it.
        *_, last = Image.open(path).text["parameters"].split("\n")
        assert last.count("Seed: ") == 1 and f"Seed: {seed}," in last

    long = example("x" * 2**20, "\0" * 2**20, 3)
    seeds = st.integers(0, 2**63 - 1)
    fuzz(199, long(check), PROMPTS, PROMPTS, seeds)
    figure("R27", f"prompts read back: {counts['same']}/{counts['made']}")
    assert counts["same"] == counts["made"] >= 200


@pytest.mark.parametrize("count", EXAMPLES)
def test_r28_spoilt_png_files(tmp_path, count):
    path = tmp_path / "a.png"
    whole = encode_png(Image.new("RGB", (4, 4)), {"prompt": "a cat", "seed": 3})

    def check(edits, cut, extra):
        content = bytearray(whole[: len(whole) - cut])
        for position, value in edits:
            content[position % len(content)] = value
        at = len(content) // 2
        path.write_bytes(content[:at] + extra + content[at:])
        try:
            assert isinstance(read_png(path), dict)
        except ValueError as error:
            assert told_in_one_line(error)

    edits = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6)
    fuzz(count, check, edits, st.integers(0, len(whole) - 1), st.binary(max_size=40))


@pytest.mark.parametrize("count", EXAMPLES)
def test_r28_records_of_any_kind(tmp_path, count):
    """A file whose record is any JSON is read, or refused by a line that names --from."""
    path, parser = tmp_path / "a.png", cli.parser()
    args = parser.parse_args(["--from", str(path), "--seed", "1"])

    def check(record):
        info = PngInfo()
        info.add_itxt("unclip", json.dumps(record))
        Image.new("RGB", (4, 4)).save(path, pnginfo=info)
        try:
            request = read_request(args)
        except RequestError as error:
            assert told_in_one_line(error)
        else:
            assert len(request.prompts) == len(request.seeds) == 1

    fuzz(count, check, RECORDS)


@pytest.mark.parametrize("count", EXAMPLES)
def test_r28_lines_and_axes(count):
    """Lines of a prompts file and axes of a plot: options, or an error of the documented kind."""
    parser = cli.parser()
    args = argparse.Namespace(prompt=["a cat"])
    names = st.sampled_from(OWN) | PROMPTS
    values = st.text(string.digits + ",.-+e|x") | PROMPTS

    def check_line(line):
        try:
            assert read_object(line, parser)["prompt"].strip()
        except ValueError as error:
            assert told_in_one_line(error)

    def check_axis(name, value):
        try:
            assert all(
                len(place) == 1 for place in plots.read_axis("--x", f"{name}={value}", args, parser)
            )
        except RequestError as error:
            assert str(error).startswith("--x: ")

    lines = st.dictionaries(names, JSON | values, max_size=4)
    whole = lines.map(lambda own: json.dumps({"prompt": "a cat", **own}))
    fuzz(count, check_line, whole | PROMPTS.map(lambda text: "{" + text))
    fuzz(count, check_axis, names, values)


@pytest.mark.parametrize("count", EXAMPLES)
def test_r28_words_of_the_command_line(count, capsys):
    parser = cli.parser()
    options = [word for action in parser._actions for word in action.option_strings]
    options = [word for word in options if word not in ("-h", "--help")]

    def check(words):
        try:
            parser.parse_args(words)
        except SystemExit as leaving:
            assert leaving.code == 2
            said = capsys.readouterr().err
            assert said.startswith("unclip-sample: ") and said.count("\n") == 1

    texts = PROMPTS.map(lambda text: text.encode(errors="replace").decode())  # as a shell gives
    word = st.sampled_from(options) | texts | st.text(string.digits + ",.-e", max_size=6)
    fuzz(count, check, st.lists(word, max_size=6))


@pytest.mark.parametrize("count", EXAMPLES)
def test_r28_prompts_of_any_kind(pipe, count):
    """A prompt is refused by name, or encoded to what is finite."""

    def check(prompt):
        try:
            (text,) = check_texts("prompt", prompt)
        except ValueError as error:
            assert str(error).startswith("prompt: ")
            return
        encoding = pipe.encode([text])
        assert torch.isfinite(encoding.z_txt).all() and torch.isfinite(encoding.text_states).all()

    fuzz(count, check, PROMPTS | JSON.filter(lambda value: not isinstance(value, list)))
