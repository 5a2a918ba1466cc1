"""One network out of any layout; and training that begins from it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from unclip import Decoder, Prior, UnCLIPPipeline, Upsampler
from unclip.pipeline.loading import ModelFileError
from unclip.pipeline.published.parts import read_part
from unclip_train.cli import main
from unclip_train.config import load_config
from unclip_train.networks import build_network

PARTS = ("prior", "decoder", "upsampler_256")


def same_weights(network, other):
    state, wanted = network.state_dict(), other.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(state[n], wanted[n]) for n in wanted)


@pytest.fixture(scope="module")
def pipe(karlo):
    return UnCLIPPipeline.from_pretrained(karlo.text_folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "PNG")
            (folder / f"{number}.png").write_bytes(file.getvalue())
        (folder / f"{number}.txt").write_text(f"number {number}")
    return folder


@pytest.mark.parametrize("name", PARTS)
def test_every_layout_gives_its_parts(name, karlo, pipe, own_model, tmp_path):
    own = pipe.components[name]
    for source in (karlo.text_folder, own_model, own_model / name):
        assert same_weights(read_part(source, name), own), source
    own.save_pretrained(tmp_path / "run" / "model")  # as a run keeps it
    assert same_weights(read_part(tmp_path / "run", name), own)
    if name != "prior":
        assert same_weights(read_part(karlo.variations_folder, name), own)


def test_what_a_model_lacks_is_said(karlo, own_model, kandinsky_folder):
    assert isinstance(read_part(kandinsky_folder, "prior"), Prior)
    for source, name, words in (
        (karlo.variations_folder, "prior", "no prior"),
        (karlo.text_folder, "upsampler_1024", "no upsampler_1024"),
        (own_model, "upsampler_1024", "no upsampler_1024"),
        (kandinsky_folder, "decoder", "no decoder"),
    ):
        with pytest.raises(ModelFileError, match=words):
            read_part(source, name)


@pytest.mark.parametrize("name", PARTS)
def test_a_stage_goes_on_from_karlo(name, karlo, pipe, pictures, tmp_path):
    """Two updates with the options of configs/karlo, from tiny weights in Karlo's layout."""
    config = load_config(name.split("_")[0], f"karlo/{name}")
    words = [name.split("_")[0], "--config", f"karlo/{name}", f"init={karlo.text_folder}"]
    words += [f"data.source={pictures}", f"output={tmp_path}", "run.steps=2", "run.batch_size=4"]
    words += ["data.workers=0", "run.precision=no", "run.preview_every=0", "data.size=8"]
    if name == "upsampler_256":
        words += ["data.size=32", "data.crop=16"]
    else:
        words.append(f"clip={karlo.variations_folder}")
    given = config.network  # Karlo's sizes; the tiny one has its own
    own = pipe.components[name].config
    words += [f"network.{key}={as_word(own[key])}" for key in given]
    assert main([*words, "optimizer.lr=0.01"]) == 0
    trained = read_part(tmp_path, name)
    assert type(trained) is type(pipe.components[name])
    moved = [not torch.equal(a, b) for a, b in both(trained, pipe.components[name])]
    assert sum(moved) > len(moved) / 4
    if name == "prior":  # the statistics are the published ones
        assert torch.equal(trained.transformer.clip_std, pipe.prior.transformer.clip_std)
    if name == "upsampler_256":  # the second network is kept
        assert same_weights(trained.unet_last, pipe.upsampler_256.unet_last)


def both(network, other):
    return zip(network.parameters(), other.parameters(), strict=True)


def as_word(value):
    return str(list(value) if isinstance(value, list | tuple) else value).lower()


@pytest.mark.parametrize("name", PARTS)
def test_karlo_configs_have_karlos_weights(name, karlo_networks):
    """karlo_networks are held against the published names and shapes in test_originals.py."""
    classes = {"prior": Prior, "decoder": Decoder, "upsampler_256": Upsampler}
    config = load_config(name.split("_")[0], f"karlo/{name}")
    with torch.device("meta"):
        network = build_network(classes[name], config.network)
    known = karlo_networks["upsampler" if name == "upsampler_256" else name]
    wanted = {key: tensor.shape for key, tensor in known.state_dict().items()}
    wanted = {key: shape for key, shape in wanted.items() if not key.startswith("unet_last")}
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == wanted
