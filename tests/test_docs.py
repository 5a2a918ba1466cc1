"""Scripts in docs/ that the shipped model was made with."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from unclip import Decoder

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"channels": [32, 32], "attention_levels": [False, True], "num_blocks": 1, "size": 16}
MORE = {"embedding_dim": 16, "text_states_dim": 16, "context": 4, "context_dim": 32, "head_dim": 16}


def average(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["average_weights.py", *map(str, words)])
    runpy.run_path(str(ROOT / "docs/average_weights.py"), run_name="__main__")


def test_weights_between_two_networks(tmp_path, monkeypatch, capsys):
    networks = []
    for seed, shards in enumerate(("1MB", "40KB")):  # the second in several files
        torch.manual_seed(seed)
        networks.append(Decoder(**SIZES, **MORE))
        networks[-1].save_pretrained(tmp_path / str(seed), max_shard_size=shards)
    assert len(list((tmp_path / "1").glob("*.safetensors"))) > 1
    further, before = (network.state_dict() for network in networks)
    for share in (0, 0.25, 1):
        output = tmp_path / f"mean-{share}"
        words = (tmp_path / "0", tmp_path / "1", "--share", share, "--output", output)
        average(monkeypatch, *words)
        for name, weight in Decoder.from_pretrained(output).state_dict().items():
            expected = share * further[name] + (1 - share) * before[name]
            assert torch.allclose(weight, expected, atol=1e-7), name
    words = (tmp_path / "mean-0.25", tmp_path / "1", "--share", 4, "--output", tmp_path / "apart")
    average(monkeypatch, *words)
    for name, weight in Decoder.from_pretrained(tmp_path / "apart").state_dict().items():
        assert torch.allclose(weight, further[name], atol=1e-5), name
    other = Decoder(**{**SIZES, "channels": [32, 64]}, **MORE)
    other.save_pretrained(tmp_path / "other")
    unlike = (tmp_path / "0", tmp_path / "other", "--share", 0.5, "--output", tmp_path / "new")
    beyond = (tmp_path / "0", tmp_path / "1", "--share", -0.5, "--output", tmp_path / "new")
    for wrong in (words, unlike, beyond):
        with pytest.raises(SystemExit) as left:
            average(monkeypatch, *wrong)
        assert left.value.code == 2
    said = capsys.readouterr().err
    assert all(part in said for part in ("exists; name another", "another network", "not -0.5"))
