"""Small drawings, small pictures with captions, tar shards of them, and the tiny configs."""

import io
import multiprocessing
import os
import socket
import tarfile
import traceback
from collections.abc import Callable
from queue import Empty

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_train.config import load_config
from unclip_train.data.drawings import Drawing, save_drawings

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "black": (0, 0, 0)}
MAX_PROCESS_S = 120
SHAPES = ("circle", "square", "bar", "ring")


def draw(shape: str, colour: tuple[int, int, int], size: int) -> Image.Image:
    """An RGBA picture of one shape."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    inside = {
        "circle": x**2 + y**2 < 0.16,
        "square": np.maximum(abs(x), abs(y)) < 0.35,
        "bar": abs(y) < 0.12,
        "ring": (x**2 + y**2 < 0.2) & (x**2 + y**2 > 0.06),
    }[shape]
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = 255 * inside
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def drawings_folder(tmp_path_factory):
    """16 drawings at 16, 64 and 256 pixels, one of them held out."""
    folder = tmp_path_factory.mktemp("drawings")
    drawings = []
    for shape in SHAPES:
        for colour in COLOURS:
            concept = f"{colour}-{shape}"
            for size in (16, 64, 256):
                path = folder / str(size) / "noto" / f"{concept}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw(shape, COLOURS[colour], size).save(path)
            drawings.append(
                Drawing(
                    id=f"noto/{concept}",
                    file_name=f"16/noto/{concept}.png",
                    concept=concept,
                    name=f"{colour} {shape}",
                    keywords=(shape,),
                    style="noto",
                    family="noto",
                    category="Objects",
                    shared=True,
                    held_out=concept == "black-ring",
                )
            )
    save_drawings(folder, drawings)
    return folder


@pytest.fixture
def tiny_config(drawings_folder, tmp_path):
    """Load a tiny config over the small drawings, with further overrides."""

    def load(stage: str, *overrides: str, name: str | None = None):
        return load_config(
            stage,
            f"tiny/{name or stage}",
            [f"data.source={drawings_folder}", f"output={tmp_path / stage}", *overrides],
        )

    return load


@pytest.fixture(scope="session")
def tiny_clip(drawings_folder, tmp_path_factory):
    """The model folder of a tiny CLIP, trained for a moment."""
    from unclip_train.cli import make_stage
    from unclip_train.engine import Engine

    output = tmp_path_factory.mktemp("clip")
    overrides = [f"data.source={drawings_folder}", f"output={output}", "run.steps=20"]
    config = load_config("clip", "tiny/clip", overrides)
    stage, dataset = make_stage("clip", config)
    Engine(stage, dataset, config).train()
    return output / "model"


def encode_picture(number: int, form: str = "PNG", size: tuple[int, int] = (24, 18)) -> bytes:
    """The file of a picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, form)
        return file.getvalue()


def pack_tar(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar archive of names and contents."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return file.getvalue()


def list_samples(numbers: range) -> list[tuple[str, bytes]]:
    """Members of sound samples: a picture and its caption each."""
    return [
        member
        for number in numbers
        for member in (
            (f"{number:05d}.png", encode_picture(number)),
            (f"{number:05d}.txt", f"picture {number}".encode()),
        )
    ]


@pytest.fixture(scope="session")
def picture_of():
    """A function: number, form and size to a picture's file."""
    return encode_picture


@pytest.fixture(scope="session")
def tar_of():
    """A function: members to a tar archive."""
    return pack_tar


@pytest.fixture(scope="session")
def samples():
    """A function: numbers to members of sound samples."""
    return list_samples


@pytest.fixture(scope="session")
def pictures_folder(tmp_path_factory):
    """20 pictures of 24 x 18 with captions in texts beside them; read only."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, content in list_samples(range(20)):
        (folder / name).write_bytes(content)
    return folder


def fork_processes(count: int, work: Callable[[int], object], **environment: str) -> list:
    """Call work(rank) in so many processes, as a launcher would; what each returns.

    Forked, so that they begin at once, and joined by gloo.

    Raises:
        RuntimeError: with the trace of the first that failed.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    environment = environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        context.Process(target=run_child, args=(rank, count, work, environment, answers))
        for rank in range(count)
    ]
    for child in children:
        child.start()
    try:
        found = dict(answers.get(timeout=MAX_PROCESS_S) for _ in children)
    except Empty:
        raise RuntimeError(f"no answer within {MAX_PROCESS_S} s") from None
    finally:
        for child in children:
            child.join(5)
            child.kill()
    failed = [answer for answer in found.values() if isinstance(answer, str)]
    if failed:
        raise RuntimeError(failed[0])
    return [found[rank][0] for rank in range(count)]


def run_child(rank: int, count: int, work, environment: dict[str, str], answers) -> None:
    os.environ.update(
        environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
    )  # fmt: skip
    torch.set_num_threads(1)  # the threads of the parent are not here
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        answers.put((rank, (work(rank),)))
    except BaseException:
        answers.put((rank, traceback.format_exc()))
    answers.close()
    answers.join_thread()
    os._exit(0)


@pytest.fixture(scope="session")
def run_processes():
    """A function: how many processes and what each does, to what they return."""
    return fork_processes
