"""Folders of Karlo's layout that lie, are damaged or would run code: all refused, and quickly."""

import json
import os
import shutil
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unclip import UnCLIPPipeline
from unclip.pipeline.loading import ModelFileError

WEIGHTS = "diffusion_pytorch_model.safetensors"
SECONDS = 1.0  # of processor time


@pytest.fixture
def folder(karlo, tmp_path):
    """A copy of the tiny Karlo for a test to spoil; a module "evil" lies within reach."""
    return Path(shutil.copytree(karlo.text_folder, tmp_path / "karlo"))


class Bomb:
    """Writes a canary when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (os.mkdir, (self.canary,))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def resave(path, change):
    tensors = load_file(path)
    key = max(tensors, key=lambda name: tensors[name].numel())
    save_file(change(tensors, key), path)


def pickled(folder, part, file):
    """Replace the weights of a part by a pickle that would run code."""
    for path in (folder / part).glob("*.safetensors"):
        path.unlink()
    torch.save({"weight": Bomb(folder.parent / "canary")}, folder / part / file)


def header(folder, length, content=b"{}"):
    (folder / "prior" / WEIGHTS).write_bytes(struct.pack("<Q", length) + content)


def overlapping(folder):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    content = json.dumps({"a": entry, "b": entry}).encode()
    header(folder, len(content), content + b"\0" * 8)


def linked(folder, part, target):
    shutil.rmtree(folder / part)
    (folder / part).symlink_to(target)


def evil_module(folder):
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(folder.parent / 'canary')!r})")
    edit(folder / "model_index.json", decoder=["evil", "Decoder"])


BIN = "diffusion_pytorch_model.bin"
# What is done to the folder, and the file that the error must name.
FAULTS = {
    "pickled prior": (lambda f: pickled(f, "prior", BIN), BIN),
    "pickled decoder": (lambda f: pickled(f, "decoder", BIN), BIN),
    "pickled text_proj": (lambda f: pickled(f, "text_proj", BIN), BIN),
    "pickled upsampler": (lambda f: pickled(f, "super_res_last", BIN), BIN),
    "pickled text encoder": (lambda f: pickled(f, "text_encoder", "pytorch_model.bin"), ".bin"),
    "Popen": (
        lambda f: edit(f / "model_index.json", prior=["subprocess", "Popen"]),
        "model_index.json",
    ),
    "a local module": (evil_module, "model_index.json"),
    "another component": (
        lambda f: edit(f / "model_index.json", safety_checker=["os", "system"]),
        "model_index.json",
    ),
    "code of the text encoder": (
        lambda f: edit(f / "text_encoder/config.json", auto_map={"AutoModel": "evil.Model"}),
        "text_encoder/config.json",
    ),
    "code of the tokenizer": (
        lambda f: edit(f / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": "evil"}),
        "tokenizer/tokenizer_config.json",
    ),
    "a link out": (lambda f: linked(f, "decoder", "/tmp"), "decoder/config.json"),
    "a link upwards": (lambda f: linked(f, "prior", ".."), "prior/config.json"),
    "a path": (
        lambda f: edit(f / "model_index.json", decoder=["diffusers", "../../etc/passwd"]),
        "model_index.json",
    ),
    "a header of 2^62 bytes": (lambda f: header(f, 2**62), f"prior/{WEIGHTS}"),
    "a cut file": (
        lambda f: (f / "decoder" / WEIGHTS).write_bytes(
            (f / "decoder" / WEIGHTS).read_bytes()[:-9]
        ),
        f"decoder/{WEIGHTS}",
    ),
    "an empty file": (lambda f: (f / "text_proj" / WEIGHTS).write_bytes(b""), WEIGHTS),
    "overlapping tensors": (overlapping, f"prior/{WEIGHTS}"),
    "a missing weight": (
        lambda f: resave(
            f / "decoder" / WEIGHTS, lambda t, key: {n: w for n, w in t.items() if n != key}
        ),
        "decoder",
    ),
    "another weight": (
        lambda f: resave(f / "prior" / WEIGHTS, lambda t, key: {**t, "smuggled": t[key].clone()}),
        f"prior/{WEIGHTS}",
    ),
    "another shape": (
        lambda f: resave(
            f / "super_res_first" / WEIGHTS, lambda t, key: {**t, key: t[key][:1].clone()}
        ),
        f"super_res_first/{WEIGHTS}",
    ),
    "NaN": (
        lambda f: resave(f / "text_proj" / WEIGHTS, lambda t, key: {**t, key: t[key] * torch.nan}),
        f"text_proj/{WEIGHTS}",
    ),
    "an unknown setting": (
        lambda f: edit(f / "decoder/config.json", norm_nun_groups=32),
        "decoder/config.json",
    ),
    "a setting we cannot follow": (
        lambda f: edit(f / "decoder/config.json", act_fn="gelu"),
        "decoder/config.json",
    ),
    "another class": (
        lambda f: edit(f / "prior/config.json", _class_name="UNet2DModel"),
        "prior/config.json",
    ),
    "no deviation": (
        lambda f: resave(
            f / "prior" / WEIGHTS, lambda t, key: {**t, "clip_std": t["clip_std"] * 0}
        ),
        "prior",
    ),
    "50 MB of JSON": (
        lambda f: (f / "decoder/config.json").write_bytes(b" " * (50 << 20)),
        "decoder/config.json",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_folders(fault, folder, monkeypatch):
    spoil, file = FAULTS[fault]
    spoil(folder)
    monkeypatch.syspath_prepend(str(folder))
    before, started = set(sys.modules), time.process_time()
    with pytest.raises((ModelFileError, FileNotFoundError)) as error:
        UnCLIPPipeline.from_pretrained(folder)
    assert time.process_time() - started < SECONDS
    assert file in str(error.value) and "\n" not in str(error.value)
    assert not (folder.parent / "canary").exists()
    assert "evil" not in set(sys.modules) - before


def test_pickles_of_weights_alone_are_read_after_a_warning(karlo, folder, caplog):
    for path in sorted(folder.rglob("*.safetensors")):
        name = "pytorch_model.bin" if path.name == "model.safetensors" else BIN
        torch.save(load_file(path), path.parent / name)
        path.unlink()
    pipe = UnCLIPPipeline.from_pretrained(folder)
    assert sum("is pickled" in record.message for record in caplog.records) == 6
    state = karlo.text.decoder.state_dict()
    assert all(torch.equal(state[n], w) for n, w in pipe.decoder.unet.state_dict().items())


def test_variants_and_hub_names(karlo, tmp_path, monkeypatch):
    """The files of a hub's cache are links; the variant is in their names."""
    cache = tmp_path / "models--kakaobrain--karlo"
    snapshot = cache / "snapshots" / "abc"
    shutil.copytree(karlo.variations_folder, snapshot)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.rglob("*.safetensors"))):
        blob = cache / "blobs" / str(number)
        save_file({n: w.half() for n, w in load_file(path).items()}, blob)
        path.with_name(path.name.replace(".safe", ".fp16.safe")).symlink_to(blob)
        path.unlink()
    asked = {}

    def download(name, **given):
        asked.update(given, name=name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pipe = UnCLIPPipeline.from_pretrained("kakaobrain/karlo", torch.float16, variant="fp16")
    assert asked["name"] == "kakaobrain/karlo" and "*.fp16*.safetensors" in asked["allow_patterns"]
    assert pipe.decoder.dtype == torch.float16
    with pytest.raises(FileNotFoundError, match="safetensors"):
        UnCLIPPipeline.from_pretrained("kakaobrain/karlo")
    with pytest.raises(ValueError, match="variant: "):
        UnCLIPPipeline.from_pretrained("kakaobrain/karlo", variant="../x")


def test_names_that_lead_nowhere(tmp_path):
    for name in ("nobody/nothing", "not-here", "../..", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="no model"):
            UnCLIPPipeline.from_pretrained(name)
