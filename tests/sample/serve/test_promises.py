"""R26 of docs/reliability.md: what a server may be trusted with, with its figures."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
import openai
import psutil
import pytest
from PIL import Image

from unclip_sample.serve import cli, fields, pictures
from unclip_sample.serve.drawing import Easel

from .conftest import until

QUICK = {"size": "64x64", "prior_steps": 1, "steps": 1}
INSIDES = re.compile(r'Traceback|File "|site-packages|\.py\b|/(home|root|usr|tmp|work|opt)/|secret')


def decoded(item) -> np.ndarray:
    """The pixels of a picture of an answer."""
    content = item["b64_json"] if isinstance(item, dict) else item.b64_json
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


@contextlib.contextmanager
def slow_steps(running, seconds: float = 0.05):
    """Make every run of the decoder take a while, and list when each began."""
    plain, began = running.engine._plain["decoder"], []

    def slowly(*call):
        began.append(time.monotonic())
        time.sleep(seconds)
        return plain(*call)

    running.engine._plain["decoder"] = slowly
    try:
        yield began
    finally:
        running.engine._plain["decoder"] = plain


def begin(running, **words) -> socket.socket:
    """Ask for pictures by a bare socket, and return while they are drawn."""
    body = json.dumps({"prompt": "a cat", **QUICK, **words}).encode()
    host, port = running.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    )
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return connection


def kill(connection: socket.socket) -> None:
    """End a connection as the system does for a program that was killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels, a bit each, in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    packer, row = zlib.compressobj(9), b"\0" * (side // 8 + 1)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_the_openai_client_does_all_six(running, picture_file, holed_file, figure):
    client, passed = running.openai(), []
    asked = {"size": "64x64", "extra_body": {"seed": 7, "steps": 2, "guidance": 2.5}}
    answer = client.images.generate(prompt="a red apple", n=2, **asked)
    assert [decoded(item).shape for item in answer.data] == [(64, 64, 3)] * 2
    passed.append("generate")
    answer = client.images.edit(image=("a.png", holed_file), prompt="a hat", **asked)
    known = np.asarray(Image.open(io.BytesIO(holed_file)).convert("RGB")).astype(int)
    assert (decoded(answer.data[0]) == known)[32:].all()
    assert (decoded(answer.data[0]) != known)[:32, :32].any()
    passed.append("edit")
    answer = client.images.create_variation(image=("a.png", picture_file), n=1, **asked)
    assert decoded(answer.data[0]).shape == (64, 64, 3)
    passed.append("variation")
    stream = client.images.generate(prompt="a rocket", stream=True, partial_images=2)
    events = [(event.type.split(".")[1], event.size) for event in stream]
    previews = [("partial_image", "64x64"), ("partial_image", "256x256")]
    assert events == [*previews, ("completed", "1024x1024")]
    passed.append("stream")
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "unclip"
    passed.append("models")
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a cat", n=11)
    assert (caught.value.param, caught.value.code) == ("n", "invalid_value")
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a cat", model="another")
    assert caught.value.code == "model_not_found" and caught.value.request_id
    passed.append("errors")
    figure("R26", f"the openai client: {len(passed)}/6")


def test_a_full_queue_answers_at_once(serve, pipe, figure):
    with serve(pipe, max_running=1, max_waiting=2) as running, slow_steps(running):
        connections = []
        for number in range(3):
            connections.append(begin(running, steps=200))
            until(lambda n=number: running.engine.running and running.engine.num_waiting == n)
        seconds = []
        with running.http() as client:
            for _ in range(20):
                start = time.perf_counter()
                answer = client.post("/v1/images/generations", json={"prompt": "a cat", **QUICK})
                seconds.append(time.perf_counter() - start)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            running.openai().images.generate(prompt="a cat")
        for connection in connections:
            kill(connection)
        running.settle()
    usual, longest = 1000 * float(np.median(seconds)), 1000 * max(seconds)
    figure("R26", f"queue full: 429 in {usual:.1f} ms, {longest:.1f} ms at most of 20")
    assert usual < 50


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("n", {"n": 11}),
        ("n", {"n": 0}),
        ("size", {"size": "2048x2048"}),
        ("size", {"size": "1792x1024"}),
        ("steps", {"steps": 251}),
        ("steps", {"steps": 0}),
        ("prior_steps", {"prior_steps": 10**9}),
        ("guidance", {"guidance": 50.5}),
        ("guidance", {"guidance": -1}),
        ("guidance", {"guidance": "nan"}),
        ("partial_images", {"partial_images": 4}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**64}),
        ("prompt", {"prompt": "a" * 4001}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": "  "}),
        ("output_compression", {"output_compression": 101}),
        ("bogus", {"bogus": 1}),
    ],
)
def test_every_number_has_a_limit(running, param, words):
    answer = running.post("generations", **{"prompt": "a cat", **words})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_large_bodies_are_refused(serve, pipe, picture_file):
    with serve(pipe, max_body_bytes=1 << 20) as running:
        large = picture_file + b"\0" * (2 << 20)
        with contextlib.suppress(httpx.WriteError):  # it hangs up on what it will not read
            assert running.post("variations", image=large).status_code == 413

        def without_length():
            for _ in range(30):
                yield b" " * (1 << 16)

        headers = {"content-type": "application/json"}
        url = f"{running.url}/v1/images/generations"
        with contextlib.suppress(httpx.WriteError):
            answer = httpx.post(url, content=without_length(), headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_killed_client_frees_the_engine_within_a_step(running, figure):
    with slow_steps(running) as began:
        connection = begin(running, steps=200)
        until(lambda: len(began) >= 3)
        kill(connection)
        killed = time.monotonic()
        running.settle()
        freed = time.monotonic() - killed
        after = sum(start > killed for start in began)
    figure("R26", f"client killed: {after} step after it at most, free in {1000 * freed:.0f} ms")
    assert after <= 1


def test_a_client_that_leaves_a_stream_frees_the_engine(running):
    with slow_steps(running) as began, running.http() as client:
        words = {"prompt": "a cat", **QUICK, "steps": 200, "stream": True, "progress": True}
        with client.stream("POST", "/v1/images/generations", json=words) as answer:
            next(answer.iter_lines())
        running.settle()
        assert len(began) < 20


def test_one_that_leaves_a_shared_batch_leaves_the_others_alone(running, pipe):
    words = {**QUICK, "steps": 12}
    (order,) = Easel(pipe, {}).orders(fields.Generation(prompt="a dog", seed=5, **words), {}, 5)
    (alone,) = order.draw(lambda step: None)
    with slow_steps(running, 0.02) as began:
        connection = begin(running, seed=4, **{**words, "steps": 100})
        with ThreadPoolExecutor() as pool:
            other = pool.submit(running.post, "generations", prompt="a dog", seed=5, **words)
            until(lambda: len(began) >= 6)
            kill(connection)
            picture = decoded(other.result().json()["data"][0])
    assert np.abs(picture - np.asarray(alone.picture).astype(int)).max() <= 1


def test_a_job_has_its_time(serve, pipe):
    with serve(pipe, timeout_s=0.3) as running, slow_steps(running):
        start = time.perf_counter()
        answer = running.post("generations", prompt="a cat", **{**QUICK, "steps": 200})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        assert time.perf_counter() - start < 5  # a loaded machine; all steps would take 10
        words = {**QUICK, "steps": 200, "stream": True}
        streamed = running.post("generations", prompt="a cat", **words)
        assert streamed.text.startswith("event: error\n") and "timeout" in streamed.text
        running.settle()


def mixed_requests(number: int, picture_file: bytes, holed_file: bytes) -> list[tuple[str, dict]]:
    """Requests of all kinds, steps, scales and sizes, each with a seed of its own."""
    made = []
    for i in range(number):
        words = {"seed": 100 + i, "steps": 2 + i % 3, "guidance": (1, 2.5, 4)[i % 3]}
        words |= {"size": "256x256" if i % 8 == 0 else "64x64"}
        prior = {"prior_steps": 2 + i % 2}
        kinds = [
            ("generations", {"prompt": "a " + "very " * (i % 5) + "red apple", **prior}),
            ("generations", {"prompt": f"a rocket {i}", "negative_prompt": "a cat", **prior}),
            ("variations", {"image": picture_file}),
            ("edits", {"image": holed_file, "prompt": "a hat", **prior}),
            ("text_diffs", {"image": picture_file, "target": "a dog", "frames": 2}),
        ]
        way, own = kinds[i % len(kinds)]
        made.append((way, {**words, **own}))
    return made


def alone(pipe, way: str, words: dict) -> list[np.ndarray]:
    """The pictures of a request, drawn by a pipeline that nobody else uses."""
    kinds = {
        "generations": fields.Generation,
        "variations": fields.Variation,
        "edits": fields.Edit,
        "text_diffs": fields.TextDiff,
    }
    opened = {k: pictures.opened(v, k) for k, v in words.items() if isinstance(v, bytes)}
    asked = kinds[way].model_construct(**{k: v for k, v in words.items() if k not in opened})
    orders = Easel(pipe, {}).orders(asked, opened, words["seed"])
    drawn = [one for order in orders for one in order.draw(lambda step: None)]
    return [np.asarray(one.picture).astype(int) for one in drawn]


def test_64_mixed_requests_at_once(running, pipe, picture_file, holed_file, figure):
    asked = mixed_requests(64, picture_file, holed_file)
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda one: running.post(one[0], **one[1]), asked))
    assert [answer.status_code for answer in answers] == [200] * 64
    same, right, num_pictures = 0, 0, 0
    for (way, words), answer in zip(asked, answers, strict=True):
        drawn = [decoded(item) for item in answer.json()["data"]]
        for picture, own in zip(drawn, alone(pipe, way, words), strict=True):
            difference = np.abs(picture - own)
            num_pictures += 1
            same += difference.max() == 0
            right += (difference <= 1).mean() >= 0.999 and difference.mean() <= 255e-4
    figure("R26", f"64 mixed requests at once: {right}/{num_pictures} right, {same} to the bit")
    assert right == num_pictures


def test_picture_bombs_are_refused(running, picture_file, figure):
    bombs = {
        "169 million pixels": bomb(13_000),
        "900 million pixels": bomb(30_000),
        "cut short": picture_file[: len(picture_file) // 2],
        "no picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "empty": b"",
        "text": b"<svg onload=alert(1)>",
    }
    before = psutil.Process().memory_info().rss
    for name, content in bombs.items():
        answer = running.post("variations", image=content)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "image", name
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    figure("R26", f"uploads that harm: {len(bombs)}/{len(bombs)} refused, {grown:+.0f} MB")
    assert grown < 50


def test_no_body_tells_of_the_insides(running, picture_file, caplog):
    plain = running.engine._plain["decoder"]

    def broken(*call):
        raise RuntimeError(f"{__file__} failed about a secret prompt")

    bodies = []
    running.engine._plain["decoder"] = broken
    try:
        words = {"prompt": "a secret", **QUICK}
        answer = running.post("generations", **words)
        assert answer.status_code == 500
        bodies += [answer.text, running.post("generations", **words, stream=True).text]
    finally:
        running.engine._plain["decoder"] = plain
    assert "secret" not in caplog.text
    with running.http() as client:
        bodies += [
            client.post("/v1/images/generations", content=b"{").text,
            client.post("/v1/images/generations", content=b"[1]").text,
            client.post("/v1/images/edits", content=b"--x", headers={
                "content-type": "multipart/form-data; boundary=x"}).text,
            client.post("/v1/images/variations", data={"image": "words"}).text,
            client.get("/nothing").text,
            client.get("/page/..%2fapp.py").text,
            client.put("/v1/images/edits").text,
        ]  # fmt: skip
    bodies.append(running.post("edits", image=picture_file, prompt="a hat").text)
    for body in bodies:
        assert not INSIDES.search(body), body
        assert "error" in body
    assert running.post("generations", prompt="a cat", **QUICK).status_code == 200


def test_links_expire_and_lead_nowhere_else(serve, pipe, figure):
    with serve(pipe, link_lifetime_s=1.0) as running, running.http() as client:
        words = {"prompt": "a cat", **QUICK, "response_format": "url"}
        (item,) = running.post("generations", **words).json()["data"]
        assert httpx.get(item["url"]).headers["content-type"] == "image/png"
        name = item["url"].rsplit("/", 1)[1]
        payloads = [
            *("../app.py", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd"),
            *("....//....//etc/passwd", "..\\..\\etc\\passwd", f"../files/{name}/../../x"),
            *(f"{name}%00.png", f"{name}/", f"./{name}%2f..", "%252e%252e%252fetc", "~root"),
        ]
        refused = 0
        for payload in payloads:
            request = client.build_request("GET", "/files/x")
            request.url = request.url.copy_with(raw_path=f"/files/{payload}".encode())
            answer = client.send(request)
            refused += answer.status_code in (404, 307) and not INSIDES.search(answer.text)
        figure("R26", f"names that leave the folder: {refused}/{len(payloads)} refused")
        assert refused == len(payloads) == 12
        time.sleep(1.1)
        assert httpx.get(item["url"]).status_code == 404


def test_it_listens_to_this_machine_alone():
    args = cli.parser().parse_args([])
    assert args.host == "127.0.0.1" and args.api_key is None


@contextlib.contextmanager
def command(*words: str, **environment: str):
    """unclip-serve as users start it; yields its process and its address."""
    script = str(Path(sys.executable).parent / "unclip-serve")
    process = subprocess.Popen(
        [script, "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    noise: list[str] = []
    try:
        line = process.stdout.readline()
        reading = threading.Thread(target=lambda: noise.extend(process.stderr), daemon=True)
        reading.start()
        yield process, re.search(r"http://\S+", line)[0], noise
    finally:
        process.terminate()
        process.wait(30)
        reading.join(5)


@pytest.mark.slow
def test_memory_comes_back(tmp_path, pipe, picture_file, holed_file, figure):
    pipe.save_pretrained(tmp_path / "tiny")
    with command("--model", str(tmp_path / "tiny")) as (process, url, _):
        memory = psutil.Process(process.pid).memory_info

        def ask(one):
            way, words = one
            files = {k: (k, v) for k, v in words.items() if isinstance(v, bytes)}
            rest = {k: v for k, v in words.items() if k not in files}
            body = {"data": rest, "files": files} if files else {"json": rest}
            return httpx.post(f"{url}/v1/images/{way}", **body, timeout=120).status_code

        asked = mixed_requests(200, picture_file, holed_file)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, asked[:40])) == {200}
            time.sleep(1)
            before = memory().rss
            assert set(pool.map(ask, asked)) == {200}
        time.sleep(1)
        grown = (memory().rss - before) / 1e6
    figure("R26", f"memory after 200 requests: {grown:+.1f} MB")
    assert grown <= 20


@pytest.mark.slow
def test_health_answers_during_a_job(figure):
    with command() as (_, url, _), ThreadPoolExecutor(2) as pool:
        words = {"prompt": "a red apple", "n": 2}
        job = pool.submit(httpx.post, f"{url}/v1/images/generations", json=words, timeout=300)
        seconds = []
        with httpx.Client() as client:
            while not job.done():
                start = time.perf_counter()
                assert client.get(f"{url}/health").json()["status"] == "ok"
                seconds.append(time.perf_counter() - start)
                time.sleep(0.02)
        assert job.result().status_code == 200
    p99 = float(np.percentile(seconds, 99))
    figure("R26", f"/health during a job: p99 {1000 * p99:.0f} ms of {len(seconds)}")
    assert p99 < 0.1


def test_a_server_that_stops_says_so(serve, pipe, caplog):
    with ThreadPoolExecutor(2) as pool:
        with serve(pipe, grace=1) as running, slow_steps(running, 0.05):
            url, words = f"{running.url}/v1/images/generations", {"prompt": "a cat", "steps": 250}
            jobs = [
                pool.submit(httpx.post, url, json={**words, "stream": stream}, timeout=60)
                for stream in (False, True)
            ]
            until(lambda: len(running.engine.running) == 2)
        plain, stream = (job.result() for job in jobs)
    assert plain.status_code == 503 and plain.headers["retry-after"] == "1"
    assert "shutting down" in plain.json()["error"]["message"]
    assert stream.status_code == 200
    last = stream.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error") and "shutting down" in last


@pytest.mark.slow
def test_a_signal_lets_answers_end(tmp_path, pipe, figure):
    pipe.save_pretrained(tmp_path / "tiny")
    with command("--model", str(tmp_path / "tiny")) as (process, url, noise):
        words = {"prompt": "a secret apple", **QUICK, "steps": 250}
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(httpx.post, f"{url}/v1/images/generations", json=words, timeout=60)
            until(lambda: httpx.get(f"{url}/health").json()["running"])
            process.terminate()
            assert job.result().status_code == 200
        assert process.wait(20) == -signal.SIGTERM  # it ends by the signal, once all is answered
    lines = [json.loads(line) for line in noise if line.startswith("{")]  # libraries warn, too
    assert any(line.get("path") == "/v1/images/generations" for line in lines)
    assert "secret" not in "".join(noise)
