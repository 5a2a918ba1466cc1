"""Checkpoints: whole or absent, verified, and never a reason to lose the one before."""

import json
import os
import pickle

import pytest
import torch

from unclip_train import checkpoint
from unclip_train.state import pack_optimizer, unpack_optimizer


@pytest.fixture
def tensors():
    return {"network": {"weight": torch.arange(6.0).view(2, 3).T}, "ema": {"weight": torch.ones(2)}}


def test_round_trip(tmp_path, tensors):
    path = checkpoint.save_checkpoint(tmp_path, 12, tensors, config="abc")
    manifest, loaded = checkpoint.load_checkpoint(path)
    assert (manifest["step"], manifest["config"]) == (12, "abc")
    assert torch.equal(loaded["network"]["weight"], tensors["network"]["weight"])
    assert sorted(p.suffix for p in path.iterdir()) == [".json", ".safetensors", ".safetensors"]


@pytest.mark.parametrize(
    "fault", ["truncated", "missing", "altered", "no manifest", "bad manifest"]
)
def test_newest_valid_checkpoint_is_taken(tmp_path, tensors, fault):
    good = checkpoint.save_checkpoint(tmp_path, 1, tensors)
    bad = checkpoint.save_checkpoint(tmp_path, 2, tensors)
    weights = bad / "network.safetensors"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif fault == "missing":
        weights.unlink()
    elif fault == "altered":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif fault == "no manifest":
        (bad / "manifest.json").unlink()
    else:
        (bad / "manifest.json").write_text("{")
    with pytest.warns(UserWarning, match="step-00000002"):
        assert checkpoint.newest_checkpoint(tmp_path) == good


def test_staged_folders_are_never_resumed(tmp_path, tensors):
    (tmp_path / ".staged-00000009-1").mkdir()
    good = checkpoint.save_checkpoint(tmp_path, 1, tensors)
    assert checkpoint.newest_checkpoint(tmp_path) == good


def test_full_disk_leaves_the_older_checkpoint(tmp_path, tensors, monkeypatch):
    good = checkpoint.save_checkpoint(tmp_path, 1, tensors)

    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_checkpoint(tmp_path, 2, tensors)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_old_checkpoints_go_only_after_the_newest_is_verified(tmp_path, tensors):
    for step in (1, 2, 3):
        checkpoint.save_checkpoint(tmp_path, step, tensors)
    manifest = tmp_path / "step-00000003" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps({"step": 3, "files": {"network.safetensors": {}}}))
    checkpoint.remove_old(tmp_path, keep=1)
    assert len(os.listdir(tmp_path)) == 3
    manifest.write_text(text)
    checkpoint.remove_old(tmp_path, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000002", "step-00000003"]


def test_optimizer_round_trip():
    def trained(steps: int):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).pow(2).sum().backward()
        optimizer.step()

    layer, optimizer = trained(0)
    step(layer, optimizer)
    copy, optimizer_copy = trained(0)
    copy.load_state_dict(layer.state_dict())
    packed = {name: tensor.clone() for name, tensor in pack_optimizer(optimizer).items()}
    unpack_optimizer(optimizer_copy, packed)
    step(layer, optimizer)
    step(copy, optimizer_copy)
    assert torch.equal(layer.weight, copy.weight)


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_read(tmp_path, tensors):
    good = checkpoint.save_checkpoint(tmp_path, 1, tensors)
    bad = checkpoint.save_checkpoint(tmp_path, 2, tensors)
    for path in (good, bad):
        (path / "optimizer.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    manifest = json.loads((bad / "manifest.json").read_text())
    manifest["files"]["optimizer.bin"] = checkpoint.file_facts(bad / "optimizer.bin")
    (bad / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match="optimizer.bin"):
        assert checkpoint.newest_checkpoint(tmp_path) == good
    assert checkpoint.load_checkpoint(good)[1].keys() == tensors.keys()
    assert not (tmp_path / "canary").exists()


def test_a_run_is_not_begun_again_where_all_checkpoints_are_broken(tmp_path, tensors):
    path = checkpoint.save_checkpoint(tmp_path, 1, tensors)
    (path / "ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(OSError, match="remove the folder"):
        checkpoint.newest_checkpoint(tmp_path)


def test_what_a_killed_process_left_is_cleared_up(tmp_path, tensors):
    (tmp_path / ".staged-model").mkdir()
    (tmp_path / ".old-model").mkdir()
    (tmp_path / ".old-model" / "config.json").touch()
    checkpoint.clear_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / ".old-model").mkdir()
    checkpoint.clear_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").exists()


def test_a_model_that_cannot_be_written_leaves_the_older(tmp_path, tensors):
    def write(folder, content="old"):
        folder.mkdir()
        (folder / "config.json").write_text(content)
        if content != "old":
            raise OSError(28, "No space left on device")

    checkpoint.save_model(tmp_path / "model", write, tensors["ema"])
    with pytest.raises(checkpoint.SaveError, match="model: No space.*needs 8 bytes"):
        checkpoint.save_model(tmp_path / "model", lambda f: write(f, "new"), tensors["ema"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"
