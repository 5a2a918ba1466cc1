"""A server on a tiny random model, as clients see it: in this process, on a port of its own."""

import contextlib
import io
import threading
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn
from openai import OpenAI
from PIL import Image

from unclip_sample.serve.app import Server, Settings, create_app
from unclip_sample.serve.cli import listening
from unclip_sample.serve.drawing import Easel
from unclip_sample.serve.engine import Engine

FACTS = {"model": "tiny", "model_hash": "0123456789abcdef", "dtype": "float32"}


def new_pipe():
    """The tiny pipeline of tests/pipeline."""
    path = Path(__file__).parents[2] / "pipeline" / "conftest.py"
    spec = spec_from_file_location("tiny_pipeline", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.new_pipe(decoder_config={"stem": 8})


class Running:
    """A server that listens."""

    def __init__(self, server: Server, url: str):
        self.server, self.engine, self.url = server, server.engine, url

    def openai(self, key: str = "any", **settings) -> OpenAI:
        """The client that programs use."""
        settings = {"max_retries": 0, "timeout": 60, **settings}
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **settings)

    def http(self, **settings) -> httpx.Client:
        """A bare client."""
        return httpx.Client(base_url=self.url, timeout=60, **settings)

    def post(self, way: str, timeout: float = 60, **fields) -> httpx.Response:
        """Ask for pictures; fields that are bytes are files."""
        files = {k: (k, v) for k, v in fields.items() if isinstance(v, bytes)}
        words = {k: v for k, v in fields.items() if k not in files}
        body = {"data": words, "files": files} if files else {"json": words}
        return httpx.post(f"{self.url}/v1/images/{way}", **body, timeout=timeout)

    def settle(self) -> None:
        """Wait until nothing is drawn any more."""
        until(lambda: not self.engine.running and not self.engine.num_waiting)


def until(condition) -> None:
    """Wait for what must come soon."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def serving(pipe, max_running: int = 8, max_waiting: int = 100, grace=None, **settings):
    """A server for as long as the context lasts; answers have `grace` seconds to end then."""
    engine = Engine(pipe, max_running=max_running, max_waiting=max_waiting)
    server = Server(Easel(pipe, FACTS), engine, Settings(**{"model": "tiny", **settings}))
    config = uvicorn.Config(
        create_app(server),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=grace,
    )
    listener = listening("127.0.0.1", 0)
    answering = uvicorn.Server(config)
    thread = threading.Thread(target=answering.run, args=([listener],))
    thread.start()
    while not answering.started:
        time.sleep(0.01)
    try:
        yield Running(server, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        answering.should_exit = True
        thread.join()
        listener.close()


def png(picture: Image.Image) -> bytes:
    """A picture as a file."""
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="session")
def make_pipe():
    """Make a tiny pipeline."""
    return new_pipe


@pytest.fixture(scope="session")
def pipe():
    """A tiny pipeline that no server has."""
    return new_pipe()


@pytest.fixture(scope="session")
def running():
    """A server with the usual settings."""
    with serving(new_pipe()) as running:
        yield running


@pytest.fixture(scope="session")
def serve():
    """Run a server with other settings: with serve(pipe, max_waiting=2, ...) as running."""
    return serving


@pytest.fixture(scope="session")
def picture_file():
    """A picture of 64 pixels a side as a PNG file."""
    return png(Image.effect_noise((64, 64), 60).convert("RGB"))


@pytest.fixture(scope="session")
def holed_file():
    """The same with a transparent corner."""
    picture = Image.effect_noise((64, 64), 60).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 32, 32))
    return png(picture)


@pytest.fixture
def figure():
    """Print a figure of a promise: figure("R26", "...")."""

    def show(name, text):
        print(f"\n{name}: {text}")

    return show
