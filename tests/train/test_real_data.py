"""Every stage learns from real drawings with its shipped config (fetches and renders; minutes)."""

import json

import pytest
import torch

from unclip.diffusion.noise import child_generators
from unclip_train.cli import main, make_stage
from unclip_train.config import load_config
from unclip_train.data.cli import main as data_main
from unclip_train.data.loader import collate

pytestmark = pytest.mark.slow

SHORTER = ["run.batch_size=8", "run.log_every=1", "run.save_every=20", "run.preview_every=0"]
SHORTER += ["run.validate_every=0"]
STAGES = {  # updates of the first and of the second call
    "clip": (60, 64),
    "prior": (20, 24),
    "decoder": (20, 24),
    "upsampler_256": (60, 64),
    "upsampler_1024": (80, 84),
}


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """Some of the emoji at all three sizes, fetched and rendered by the command."""
    folder = tmp_path_factory.mktemp("emoji")
    words = ["--sizes", "64", "256", "1024", "--shared-only", "--styles", "noto", "--limit", "40"]
    assert data_main(["emoji", "--output", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@torch.no_grad()
def loss_of(stage_name: str, config_name: str, words: list[str]) -> float:
    """The loss of a network, fresh or begun from weights, over the same samples and draws."""
    stage, dataset = make_stage(stage_name, load_config(stage_name, config_name, words))
    batch = collate([dataset[position] for position in range(16)])
    generators = child_generators(list(range(16)), "real data")
    return stage.loss(stage.network.eval(), batch, generators)["loss"].item()


@pytest.mark.parametrize("name", STAGES)
def test_loss_falls_and_the_run_resumes(name, emoji, runs, capsys):
    stage = name.split("_")[0]
    first, second = STAGES[name]
    words = [stage, "--config", f"emoji/{name}", f"data.source={emoji}", f"output={runs / name}"]
    words += [*SHORTER, "optimizer.warmup_steps=0", "optimizer.decay=constant"]
    if stage in ("prior", "decoder"):
        words.append(f"clip={runs / 'clip' / 'model'}")
    if stage == "prior":
        words.append("statistics_samples=64")
    assert main([*words, f"run.steps={first}"]) == 0
    assert main([*words, f"run.steps={second}"]) == 0
    assert "resumed" in capsys.readouterr().out
    lines = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, second + 1))
    assert all(line["images_per_s"] > 0 for line in lines)
    trained = loss_of(stage, f"emoji/{name}", [*words[3:], f"init={runs / name / 'model'}"])
    assert trained < loss_of(stage, f"emoji/{name}", words[3:])
