"""A run is looked at without being changed: figures, previews, speed and trackers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from unclip_train.cli import main, make_stage
from unclip_train.config import ConfigError
from unclip_train.data.build import make_held_out
from unclip_train.engine import Engine
from unclip_train.throughput import Throughput, count_flops, measure_matmul
from unclip_train.trackers import named_trackers

LOOKED_AT = (
    *("run.validate_every=2", "run.preview_every=2", "run.validation_samples=4"),
    *("run.measure_flops=true", "run.tracker=tensorboard"),
)


def trained(tiny_config, pictures: Path, output: Path, *overrides) -> Engine:
    words = [f"output={output}", "run.steps=3", "run.log_every=1", "network.dropout=0.1"]
    words += [f"data.source={pictures}", "data.validation_share=0.3", "data.size=16"]
    words += ["data.crop=16", "network.size=16"]
    config = tiny_config("upsampler", *words, *overrides, name="upsampler_256")
    stage, dataset = make_stage("upsampler", config)
    held_out = make_held_out("upsampler", config)
    engine = Engine(stage, dataset, config, held_out)
    engine.train()
    return engine


def test_looking_changes_nothing_and_tells_everything(tiny_config, pictures_folder, tmp_path):
    looked_at = trained(tiny_config, pictures_folder, tmp_path / "a", *LOOKED_AT)
    plain = trained(tiny_config, pictures_folder, tmp_path / "b")
    for name, weight in plain.bare_network.state_dict().items():
        assert torch.equal(weight, looked_at.bare_network.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    told = {line["step"]: line for line in lines if "validation/loss" in line}
    assert list(told) == [0, 2, 3]
    for line in told.values():
        assert {"validation_plain/loss", "validation/psnr", "validation/psnr_resized"} <= set(line)
    assert told[0]["validation/loss"] == pytest.approx(told[0]["validation_plain/loss"])
    assert told[3]["validation/loss"] != told[3]["validation_plain/loss"]
    learned = [line for line in lines if "loss" in line]
    assert [line["step"] for line in learned] == [1, 2, 3]
    for line in learned:
        assert line["tflops"] > 0 and 0 < line["mfu"] < 1 and line["peak_memory_gb"] > 0.05
    previews = sorted((tmp_path / "a/previews").iterdir())
    assert [path.name for path in previews] == [f"step-{step:08d}.png" for step in (0, 2, 3)]
    assert Image.open(previews[0]).size == (8 * 16, 3 * 16)
    assert not (tmp_path / "b/previews").exists() and not (tmp_path / "b/tensorboard").exists()
    check_board(tmp_path / "a/tensorboard", told)


def check_board(folder: Path, told: dict[int, dict]) -> None:
    """Curves and previews are those of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder)).Reload()
    curve = {event.step: event.value for event in board.Scalars("validation/loss")}
    assert curve == pytest.approx({step: line["validation/loss"] for step, line in told.items()})
    assert [event.step for event in board.Images("preview")] == [0, 2, 3]


def test_prompts_are_drawn_in_previews(tiny_config, tiny_clip, tmp_path):
    """Rows of a decoder, alone and led by a prior; rows of a prior, with a decoder and without."""
    words = [f"clip={tiny_clip}", "prompts=[a red circle]", "run.preview_every=1"]

    def sheet(name, *more):
        stage, _ = make_stage(name, tiny_config(name, *words, *more))
        with torch.no_grad():
            picture = stage.preview(stage.network.eval())
        stage.save(stage.network, tmp_path / name)
        return picture

    nearest = sheet("prior")
    alone = sheet("decoder")
    led = sheet("decoder", f"prior={tmp_path / 'prior'}")
    drawn = sheet("prior", f"decoder={tmp_path / 'decoder'}")
    assert nearest.tobytes() == sheet("prior").tobytes()  # the same seeds every time
    assert alone.size == led.size == (8 * 16, 3 * 16)
    assert drawn.size == nearest.size == (8 * 16, 16)
    assert alone.crop((0, 0, 128, 32)) == led.crop((0, 0, 128, 32)) and alone != led
    with pytest.raises(ConfigError, match="prior: cannot read"):
        sheet("decoder", f"prior={tmp_path / 'nowhere'}")


def test_work_is_counted_by_the_formula():
    class Network(nn.Linear):
        gradient_checkpointing = True

    def loss(network, batch, generators):
        return {"loss": nn.functional.dropout(network(torch.ones(2, 30))).sum()}

    network, batch = Network(30, 50, bias=False), {"position": [0, 1]}
    state = torch.get_rng_state()
    flops = count_flops(SimpleNamespace(loss=loss), network, batch, torch.enable_grad)
    # forward and the gradient of the weights; the input has none
    assert flops == 2 * 2 * 30 * 50
    assert network.weight.grad is None and network.gradient_checkpointing
    assert torch.equal(state, torch.get_rng_state())
    norm = nn.BatchNorm1d(30)  # learns the statistics of what it sees
    seen = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    count_flops(SimpleNamespace(loss=loss), norm, batch, torch.enable_grad)
    assert all(torch.equal(seen[name], buffer) for name, buffer in norm.named_buffers())
    peak = measure_matmul(torch.device("cpu"), "no")
    assert 1e9 < peak < 1e14
    assert Throughput(flops, 2 * flops).of(1.0) == {"tflops": flops / 1e12, "mfu": 0.5}


def test_unknown_trackers_are_named(capsys, drawings_folder, tmp_path):
    assert named_trackers("") == [] and named_trackers("tensorboard, ") == ["tensorboard"]
    words = [f"data.source={drawings_folder}", f"output={tmp_path}"]
    for name, told in (("wandbb", "did you mean wandb"), ("aim", "pip install aim")):
        more = [*words, f"run.tracker={name}"]
        assert main(["upsampler", "--config", "tiny/upsampler_256", *more]) == 2
        assert told in capsys.readouterr().err
