"""The engine: a run that was stopped is the run that never stopped; nothing broken is saved."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from unclip_train.cli import make_stage
from unclip_train.config import ConfigError, OptimizerConfig
from unclip_train.data.loader import PositionSampler
from unclip_train.engine import Engine, Stopped, learning_rate

STAGES = ["clip", "prior", "decoder", "upsampler_256"]


def engine_for(name, tiny_config, tiny_clip, *overrides) -> Engine:
    stage_name = name.split("_")[0]
    if stage_name in ("prior", "decoder"):
        overrides = (f"clip={tiny_clip}", *overrides)
    config = tiny_config(stage_name, "run.log_every=1", *overrides, name=name)
    stage, dataset = make_stage(stage_name, config)
    return Engine(stage, dataset, config)


def losses(engine: Engine) -> list[float]:
    lines = (engine.folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("name", STAGES)
def test_resumed_run_equals_the_straight_one(name, tiny_config, tiny_clip, tmp_path):
    straight = engine_for(
        name, tiny_config, tiny_clip, f"output={tmp_path / 'straight'}", "run.steps=5"
    )
    straight.train()
    for steps in (2, 5):
        parts = engine_for(
            name, tiny_config, tiny_clip, f"output={tmp_path / 'parts'}", f"run.steps={steps}"
        )
        parts.train()
    assert losses(parts) == losses(straight) and len(losses(parts)) == 5
    for key, tensor in straight.bare_network.state_dict().items():
        assert torch.equal(tensor, parts.bare_network.state_dict()[key]), key
    for one, other in zip(straight.ema.shadow_params, parts.ema.shadow_params, strict=True):
        assert torch.equal(one, other)


def test_workers_and_accumulation_change_nothing(tiny_config, tiny_clip, tmp_path):
    plain = engine_for(
        "upsampler_256", tiny_config, tiny_clip, f"output={tmp_path / 'a'}", "run.steps=3"
    )
    plain.train()
    other = engine_for(
        "upsampler_256", tiny_config, tiny_clip, f"output={tmp_path / 'b'}", "run.steps=3",
        "run.gradient_accumulation=4", "data.workers=2",
    )  # fmt: skip
    other.train()
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)


def test_signal_saves_and_stops(tiny_config, tiny_clip):
    engine = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=50")
    update = engine.update

    def interrupted(batches):
        if engine.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(batches)

    engine.update = interrupted
    with pytest.raises(Stopped) as stopped:
        engine.train()
    assert stopped.value.exit_code == 143
    again = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=50")
    assert again.step == 3


def test_non_finite_gradient_stops_and_saves_nothing(tiny_config, tiny_clip):
    engine = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=4", "run.save_every=1")
    loss = engine.stage.loss

    def poisoned(network, batch, generators):
        parts = loss(network, batch, generators)
        return {"loss": parts["loss"] * (float("nan") if engine.step == 2 else 1.0)}

    engine.stage.loss = poisoned
    with pytest.raises(FloatingPointError, match="upsampler.*step 2"):
        engine.train()
    saved = sorted(path.name for path in (engine.folder / "checkpoints").iterdir())
    assert saved == ["step-00000001", "step-00000002"]


def test_another_configuration_is_not_resumed(tiny_config, tiny_clip):
    engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=1").train()
    with pytest.raises(ConfigError, match="init="):
        engine_for("upsampler_256", tiny_config, tiny_clip, "optimizer.lr=0.5")


def test_init_begins_from_trained_weights(tiny_config, tiny_clip, tmp_path):
    first = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=2")
    first.train()
    second = engine_for(
        "upsampler_256", tiny_config, tiny_clip, f"output={tmp_path / 'second'}",
        f"init={first.folder / 'model'}",
    )  # fmt: skip
    assert second.step == 0
    shadow = dict(
        zip(dict(first.bare_network.named_parameters()), first.ema.shadow_params, strict=True)
    )
    for name, parameter in second.bare_network.named_parameters():
        assert torch.allclose(parameter, shadow[name])


def test_saved_model_is_the_averaged_network(tiny_config, tiny_clip):
    from unclip import Upsampler

    engine = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=3")
    engine.train()
    saved = Upsampler.from_pretrained(engine.folder / "model")
    for parameter, shadow in zip(saved.parameters(), engine.ema.shadow_params, strict=True):
        assert torch.equal(parameter, shadow)


def test_learning_rate():
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay="cosine")
    assert learning_rate(config, 0, 110) == pytest.approx(0.1)
    assert learning_rate(config, 10, 110) == pytest.approx(1.0)
    assert learning_rate(config, 60, 110) == pytest.approx(0.5)
    assert learning_rate(config, 110, 110) == pytest.approx(0.0)
    assert learning_rate(replace(config, decay="constant"), 99, 110) == 1.0


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_share_each_update(num_processes):
    shares = [
        [p for micro in PositionSampler(8, 3, 6, 2, rank, num_processes) for p in micro]
        for rank in range(num_processes)
    ]
    assert sorted(sum(shares, [])) == list(range(24, 48))
    assert len({len(share) for share in shares}) == 1


def test_uneven_batches_are_refused():
    with pytest.raises(ValueError, match="run.batch_size 8"):
        PositionSampler(8, 0, 1, 3)
