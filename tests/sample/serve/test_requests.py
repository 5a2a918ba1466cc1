"""What a server answers: pictures and streams, keys, the page; and the words of the command."""

import base64
import io
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import openai
import pytest
from PIL import Image

from unclip_sample import cli as sample_cli
from unclip_sample.png import read_png
from unclip_sample.serve import cli, pictures
from unclip_sample.serve.links import Links
from unclip_sample.serve.telemetry import JsonLines

from .conftest import until

WITHOUT_PRIOR = {"size": "64x64", "steps": 1, "seed": 7}
QUICK = {**WITHOUT_PRIOR, "prior_steps": 1}


def events(text: str) -> list[dict]:
    """The events of a stream."""
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def content_of(item: dict) -> bytes:
    return base64.b64decode(item["b64_json"])


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_forms_of_pictures(running, form):
    answer = running.post("generations", prompt="a cat", **QUICK, output_format=form).json()
    with Image.open(io.BytesIO(content_of(answer["data"][0]))) as picture:
        assert picture.format == form.upper() and picture.size == (64, 64)
    assert answer["output_format"] == form and answer["size"] == "64x64"
    assert answer["data"][0]["seed"] == 7 and answer["data"][0]["revised_prompt"] == "a cat"


def test_links_are_served_in_their_form(running):
    words = {**QUICK, "response_format": "url", "output_format": "webp", "n": 2}
    answer = running.post("generations", prompt="a cat", **words).json()
    assert len({item["url"] for item in answer["data"]}) == 2
    with running.http() as client:
        answer = client.get(answer["data"][1]["url"])
    assert answer.headers["content-type"] == "image/webp" and answer.content[:4] == b"RIFF"


def test_a_picture_of_the_server_is_drawn_again_by_the_command(
    serve, make_pipe, tmp_path, monkeypatch
):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "tiny")
    with serve(pipe) as running:
        asked = {**QUICK, "guidance": 2.5, "negative_prompt": "a dog"}
        made = {"caption": running.post("generations", prompt="a cat", **asked)}
        picture = content_of(made["caption"].json()["data"][0])
        made["variation"] = running.post("variations", image=picture, **WITHOUT_PRIOR)
    monkeypatch.chdir(tmp_path)
    for name, answer in made.items():
        content = content_of(answer.json()["data"][0])
        (tmp_path / f"{name}.png").write_bytes(content)
        assert read_png(tmp_path / f"{name}.png")["model"] == "tiny"
        words = ["--model", "tiny", "--from", f"{name}.png", "--output", f"{name}-2.png", "--quiet"]
        assert sample_cli.main(words) == 0
        with Image.open(f"{name}.png") as a, Image.open(f"{name}-2.png") as b:
            assert a.tobytes() == b.tobytes(), name


def test_an_edit_of_the_server_says_what_it_was_made_of(
    serve, make_pipe, picture_file, tmp_path, capsys
):
    with serve(make_pipe()) as running:
        answer = running.post("edits", image=picture_file, mask=picture_file, prompt="a", **QUICK)
    (tmp_path / "edit.png").write_bytes(content_of(answer.json()["data"][0]))
    assert sample_cli.main(["--from", str(tmp_path / "edit.png")]) == 2
    said = capsys.readouterr().err
    assert "--inpaint" in said and "--mask" in said and "uploaded" in said and "None" not in said


def test_json_without_its_header_and_heads_of_pages(running):
    with running.http() as client:
        told = client.post("/v1/images/generations", content=b'{"prompt": "a"}').json()["error"]
        assert "Content-Type: application/json" in told["message"]
        for path in ("/", "/health", "/v1/models"):
            head = client.head(path)
            assert head.status_code == 200 and head.content == b""
        assert client.head("/v1/images/generations").status_code == 405


def test_no_metadata(serve, pipe):
    with serve(pipe, metadata=False) as running:
        answer = running.post("generations", prompt="a cat", **QUICK).json()
    with Image.open(io.BytesIO(content_of(answer["data"][0]))) as picture:
        assert not picture.text


def test_streams_tell_of_steps_and_stages(running):
    words = {"size": "256x256", "prior_steps": 2, "steps": 3, "upsampler_256_steps": 1, "n": 2}
    told = running.post(
        "generations", prompt="a cat", **words, stream=True, partial_images=3, progress=True
    )
    assert told.headers["content-type"].startswith("text/event-stream")
    of_second = [event for event in events(told.text) if event["image_index"] == 1]
    kinds = [event["type"].removeprefix("image_generation.") for event in of_second]
    assert kinds == ["progress"] * 5 + ["partial_image", "progress", "completed"]
    assert [event.get("step") for event in of_second[:5]] == [1, 2, 1, 2, 3]
    assert of_second[5]["size"] == "64x64" and of_second[-1]["size"] == "256x256"


@pytest.mark.parametrize(
    ("way", "own", "event"),
    [
        ("interpolations", {"image_to": None}, "image_interpolation"),
        ("text_diffs", {"target": "a dog", "base": "a cat"}, "image_text_diff"),
    ],
)
def test_ways_have_frames(running, picture_file, way, own, event):
    own = {name: picture_file if value is None else value for name, value in own.items()}
    words = {**WITHOUT_PRIOR, "frames": 3, "image": picture_file, **own}
    assert len(running.post(way, **words).json()["data"]) == 3
    refused = running.post(way, **words, n=2)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"
    told = events(running.post(way, **words, stream="true").text)
    assert [(e["type"], e["image_index"]) for e in told] == [
        (f"{event}.completed", index) for index in range(3)
    ]


def test_pictures_of_a_request_have_seeds_in_a_row(running):
    answer = running.post("generations", prompt="a cat", **{**QUICK, "n": 3}).json()
    assert [item["seed"] for item in answer["data"]] == [7, 8, 9]
    alone = running.post("generations", prompt="a cat", **{**QUICK, "seed": 9}).json()
    a, b = (Image.open(io.BytesIO(content_of(x["data"][-1]))) for x in (answer, alone))
    assert max(abs(p - q) for p, q in zip(a.tobytes(), b.tobytes(), strict=True)) <= 1


def test_a_key_is_wanted(serve, pipe):
    with serve(pipe, api_key="open sesame") as running:
        client = running.openai("open sesame")
        assert client.images.generate(prompt="a cat", size="256x256").data
        for key in ("wrong", "open sesam", "open sesame2"):
            with pytest.raises(openai.AuthenticationError) as caught:
                running.openai(key).images.generate(prompt="a cat")
            assert caught.value.code == "invalid_api_key"
        with running.http() as bare:
            assert bare.get("/v1/models").status_code == 401
            assert bare.get("/").status_code == bare.get("/health").status_code == 200
            assert bare.get("/settings").json()["key_required"] is True


def test_pages_of_other_sites_may_not_draw(running):
    with running.http(headers={"sec-fetch-site": "cross-site"}) as client:
        words = {"prompt": "a cat", **QUICK}
        assert client.post("/v1/images/generations", json=words).status_code == 403
    with running.http(headers={"sec-fetch-site": "same-origin"}) as client:
        assert client.post("/v1/images/generations", json=words).status_code == 200


@pytest.mark.parametrize("name", ["dall-e-2", "gpt-image-1", "tiny", None])
def test_models_that_programs_name_by_habit(running, name):
    answer = running.post("generations", prompt="a cat", model=name, **QUICK)
    assert answer.status_code == 200


def test_faults_of_pictures_are_named(running, picture_file, holed_file):
    def fault(way, **words):
        answer = running.post(way, **{**WITHOUT_PRIOR, **words})
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]["param"]

    assert fault("edits", image=picture_file, prompt="a hat") == "mask"
    small = io.BytesIO()
    Image.new("RGBA", (32, 32)).save(small, "PNG")
    assert fault("edits", image=picture_file, mask=small.getvalue(), prompt="a hat") == "mask"
    assert fault("edits", image=picture_file, mask=b"nothing", prompt="a hat") == "mask"
    assert fault("variations", prompt="words", image=b"GIF89a") == "image"
    assert fault("interpolations", image=picture_file) == "image_to"
    assert fault("variations", image=picture_file, prior_steps=2) == "prior_steps"  # it asks none
    two = {"image": picture_file, "image_to": picture_file}
    assert fault("interpolations", **two, prior_guidance=2) == "prior_guidance"


def test_uploads_are_reduced_before_they_wait():
    large = io.BytesIO()
    Image.new("RGB", (3000, 2048), "red").save(large, "JPEG")
    opened = pictures.opened(large.getvalue(), "image")
    assert opened.size == (1500, 1024) and opened.mode == "RGB"


def test_metrics_and_logs_hold_no_words(running, caplog):
    caplog.set_level(logging.INFO)

    def lines():
        records = [record for record in caplog.records if record.name == "unclip.serve"]
        return [JsonLines().format(record) for record in records]

    # An answer is noted once it is sent: its client may be on its way before.
    running.post("generations", prompt="a secret apple", **QUICK)
    until(lambda: len(lines()) == 1)
    with running.http() as client:
        text = client.get("/metrics").text
        client.get("/a-secret-path")
    until(lambda: len(lines()) == 2)
    for line in (
        'unclip_batch_rows_count{stage="decoder"}',
        'unclip_tasks_total{how="done"}',
        'unclip_requests_total{path="/v1/images/generations",status="200"}',
        "unclip_waiting_pictures 0.0",
    ):
        assert line in text
    first, last = map(json.loads, lines())
    assert first["path"] == "/v1/images/generations" and first["pictures"] == 1
    assert last["path"] == "other" and last["status"] == 404
    assert "secret" not in text and not any("secret" in line for line in lines())


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_the_example_of_the_docs_runs(running, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = Image.new("L", (64, 64), "black")
    mask.paste("white", (0, 0, 64, 20))
    mask.save("mask.png")
    page = (Path(__file__).parents[3] / "docs/serving.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    example = example.replace("http://127.0.0.1:8000", running.url).replace("1024x1024", "64x64")
    example = example.replace("stream=True", 'size="256x256", stream=True')
    names: dict = {}
    exec(compile(example, "serving.md", "exec"), names)
    assert len(names["answer"].data) == 4 and names["event"].size == "256x256"
    with Image.open("apple.png") as apple:
        assert apple.size == (64, 64)


def test_the_page_needs_nobody_else(running):
    with running.http() as client:
        page = client.get("/")
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert client.get("/page/nothing.js").status_code == 404
    folder = files("unclip_sample.serve").joinpath("page")
    for file in folder.iterdir():
        text = file.read_text("utf-8")
        assert not re.search(r"(src|href|from|import|url\()\s*=?\s*[\"'(]?(https?:)?//", text), (
            file.name
        )
    named = set(re.findall(r'"page/([\w.]+)"', page.text))
    named |= set(re.findall(r'"\./([\w.]+)"', folder.joinpath("page.js").read_text()))
    with running.http() as client:
        for name in named:
            answer = client.get(f"/page/{name}")
            assert (
                answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
            )
    assert {file.name for file in folder.iterdir()} == named | {"index.html"}


def test_links_keep_the_newest_within_their_bounds():
    links = Links(lifetime_s=60, max_bytes=250)
    names = [links.add(bytes(100), "png", "image/png") for _ in range(3)]
    assert links.get(names[0]) is None and links.get(names[2]) == (bytes(100), "image/png")
    folder = links._folder.name
    links.close()
    assert links.get(names[2]) is None and not __import__("os").path.exists(folder)


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "65536"],
        ["--rows", "1,2"],
        ["--timeout", "0"],
        ["--dtype", "int8"],
        ["--quue", "3"],
        ["--model", "no-such-folder"],
    ],
)
def test_mistakes_in_words_are_named_in_a_line(words, capsys):
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and len(lines) == 1
    assert words[0] in lines[0] or "--queue" in lines[0]


def test_a_taken_port_is_named(running, monkeypatch, capsys):
    monkeypatch.setattr(cli, "make_server", lambda args: running.server)
    port = running.url.rsplit(":", 1)[1]
    monkeypatch.setattr("unclip_sample.serve.telemetry.log_as_json", lambda: None)
    assert cli.main(["--port", port]) == 2
    assert "--port" in capsys.readouterr().err


def test_many_readers_of_one_stream_of_work(running):
    def ask(seed):
        words = {**QUICK, "seed": seed, "stream": True}
        return events(running.post("generations", prompt="a cat", **words).text)[-1]["seed"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == list(range(16))
