"""A folder of small drawings, as unclip-data would have written it, and the tiny configs."""

import numpy as np
import pytest
from PIL import Image

from unclip_train.config import load_config
from unclip_train.data.drawings import Drawing, save_drawings

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "black": (0, 0, 0)}
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
