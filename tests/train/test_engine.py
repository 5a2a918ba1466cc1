"""The engine: a run that was stopped is the run that never stopped; nothing broken is saved."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from unclip_train.checkpoint import load_checkpoint
from unclip_train.cli import make_stage
from unclip_train.config import ConfigError, OptimizerConfig
from unclip_train.data.loader import PositionSampler
from unclip_train.engine import Engine
from unclip_train.optimizer import learning_rate
from unclip_train.signals import Stopped
from unclip_train.state import pack_optimizer

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


def averages(engine: Engine) -> dict[str, torch.Tensor]:
    return engine.averages.tensors(engine.averages.first)


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
    for name, mean in averages(straight).items():
        assert torch.equal(mean, averages(parts)[name]), name


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
    assert again.step == 2


def poison(engine: Engine, is_bad) -> None:
    """Make the loss nan in the updates that is_bad names."""
    loss = engine.stage.loss

    def poisoned(network, batch, generators):
        parts = loss(network, batch, generators)
        return {"loss": parts["loss"] * (float("nan") if is_bad(engine.step) else 1.0)}

    engine.stage.loss = poisoned


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    """All that an update changes, copied."""
    state = {f"network.{k}": v for k, v in engine.bare_network.state_dict().items()}
    state |= {f"average.{name}": mean for name, mean in averages(engine).items()}
    state |= {f"optimizer.{k}": v for k, v in pack_optimizer(engine.optimizer).items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def test_a_batch_that_is_not_finite_changes_nothing(tiny_config, tiny_clip):
    engine = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=4")
    poison(engine, lambda step: step == 2)
    update, states = engine.update, []

    def watched(batches):
        states.append(state_of(engine))
        return update(batches)

    engine.update = watched
    engine.train()
    before, after = states[2:]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any(not torch.equal(tensor, states[1][name]) for name, tensor in before.items())
    lines = [json.loads(line) for line in (engine.folder / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1]
    assert ["loss" in line for line in lines] == [True, True, False, True]


def test_ten_bad_batches_in_a_row_stop_the_run(tiny_config, tiny_clip):
    engine = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=30", "run.save_every=1")
    poison(engine, lambda step: step >= 2)
    with pytest.raises(FloatingPointError, match="upsampler: .*10 updates in a row"):
        engine.train()
    for path in (engine.folder / "checkpoints").iterdir():
        _, tensors = load_checkpoint(path)
        assert all(t.isfinite().all() for named in tensors.values() for t in named.values())
    resumed = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=30")
    assert (resumed.step, resumed.num_skipped, resumed.skipped_in_a_row) == (11, 9, 9)


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
    for name, parameter in second.bare_network.named_parameters():
        assert torch.allclose(parameter, averages(first)[name])


def test_saved_model_is_the_averaged_network(tiny_config, tiny_clip):
    from unclip import Upsampler

    engine = engine_for("upsampler_256", tiny_config, tiny_clip, "run.steps=3")
    engine.train()
    saved = Upsampler.from_pretrained(engine.folder / "model")
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, averages(engine)[name])


def test_learning_rate():
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay="cosine")
    assert learning_rate(config, 0, 110) == pytest.approx(0.1)
    assert learning_rate(config, 10, 110) == pytest.approx(1.0)
    assert learning_rate(config, 60, 110) == pytest.approx(0.5)
    assert learning_rate(config, 110, 110) == pytest.approx(0.0)
    assert learning_rate(replace(config, decay="constant"), 99, 110) == 1.0
    cooldown = replace(config, decay="cooldown")
    assert learning_rate(cooldown, 89, 110) == 1.0  # of 100 steps after the warm-up, 80
    assert learning_rate(cooldown, 100, 110) == pytest.approx(0.5)


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
