"""The engine: a run that was stopped is the run that never stopped; nothing broken is saved."""

import functools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from unclip.diffusion.noise import child_generators
from unclip_train import checkpoint
from unclip_train.averages import Averages
from unclip_train.checkpoint import load_checkpoint
from unclip_train.cli import make_stage
from unclip_train.config import ConfigError, OptimizerConfig
from unclip_train.data.loader import PositionSampler, collate
from unclip_train.engine import Engine
from unclip_train.memory import OutOfMemory
from unclip_train.optimizer import learning_rate
from unclip_train.signals import Stopped
from unclip_train.state import pack_optimizer

STAGES = ["clip", "decoder", "upsampler_256"]


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


@pytest.mark.parametrize(
    ("name", "word"),
    [
        *((name, "optimizer.algorithm=adamw") for name in STAGES),
        *(("decoder", word) for word in ("optimizer.algorithm=muon", "network.dropout=0.1")),
    ],
)
def test_resumed_run_equals_the_straight_one(name, word, tiny_config, tiny_clip, tmp_path):
    def engine(folder: str, steps: int) -> Engine:
        words = (f"output={tmp_path / folder}", f"run.steps={steps}")
        return engine_for(name, tiny_config, tiny_clip, word, *words)

    straight = engine("straight", 5)
    straight.train()
    for steps in (2, 5):
        parts = engine("parts", steps)
        parts.train()
    assert losses(parts) == losses(straight) and len(losses(parts)) == 5
    for key, tensor in straight.bare_network.state_dict().items():
        assert torch.equal(tensor, parts.bare_network.state_dict()[key]), key
    for name, mean in averages(straight).items():
        assert torch.equal(mean, averages(parts)[name]), name


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("prior", 0),
        *(pytest.param("prior", 2, marks=SLOW), pytest.param("clip", 0, marks=SLOW)),
        *(pytest.param("decoder", 0, marks=SLOW), pytest.param("decoder", 2, marks=SLOW)),
        *(pytest.param("upsampler_256", w, marks=SLOW) for w in (0, 2)),
    ],
)
def test_fifteen_steps_are_five_and_ten_and_five_three_seven(
    name, workers, tiny_config, tiny_clip, tmp_path
):
    """Samples in order, losses, weights, averages and moments to the bit; over epochs of 15."""

    def run(folder: str, *stops: int):
        order = []
        for steps in stops:
            engine = engine_for(
                name, tiny_config, tiny_clip, f"output={tmp_path / folder}", f"run.steps={steps}",
                f"data.workers={workers}", "run.gradient_accumulation=2", "run.ema_decay=[0.9,0.5]",
            )  # fmt: skip
            loss = engine.stage.loss

            def watched(network, batch, generators, loss=loss):
                order.extend(
                    zip(batch["position"], batch.get("id", batch["position"]), strict=True)
                )
                return loss(network, batch, generators)

            engine.stage.loss = watched
            engine.train()
        return order, losses(engine), state_of(engine)

    straight = run("straight", 15)
    assert [position for position, _ in straight[0]] == list(range(15 * 8))
    for folder, stops in (("two", (5, 15)), ("three", (5, 8, 15))):
        order, found, state = run(folder, *stops)
        assert order == straight[0] and found == straight[1] and len(found) == 15
        assert state.keys() == straight[2].keys()
        for key, tensor in state.items():
            assert torch.equal(tensor, straight[2][key]), key


@pytest.mark.parametrize(
    "name", ["prior", *(pytest.param(s, marks=SLOW) for s in ("decoder", "upsampler_256"))]
)
def test_micro_batches_and_workers_change_nothing(name, tiny_config, tiny_clip, tmp_path):
    """8 x 1 = 2 x 4 to 1e-5, the gradient shortened once an update; CLIP compares in a batch."""
    states = []
    for folder, pieces, workers in (("whole", 1, 0), ("pieces", 4, 2)):
        engine = engine_for(
            name, tiny_config, tiny_clip, f"output={tmp_path / folder}", "run.steps=4",
            f"run.gradient_accumulation={pieces}", f"data.workers={workers}",
            "optimizer.clip_norm=0.1", "optimizer.eps=1e-4",
        )  # fmt: skip
        engine.train()
        states.append(state_of(engine))
    whole, parts = states
    gap = torch.stack([(whole[k] - parts[k]).norm() for k in whole]).norm()
    gap = float(gap / torch.stack([t.norm() for t in whole.values()]).norm())
    print(f"{name}: relative difference {gap:.1e}")
    assert gap < 1e-5


def kill_later(number: int = signal.SIGTERM, seconds: float = 0.3) -> None:
    """Send a signal to this process from another thread."""
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_a_wait_for_data(workers, tiny_config, tiny_clip):
    engine = engine_for("prior", tiny_config, tiny_clip, "run.steps=50", f"data.workers={workers}")
    read, trainer = type(engine.dataset).__getitem__, os.getpid()

    class Stalled(type(engine.dataset)):
        def __getitem__(self, position):
            if position == 4 * 8:
                threading.Timer(0.3, os.kill, (trainer, signal.SIGTERM)).start()
            while position >= 4 * 8:
                try:
                    time.sleep(0.05)
                except Exception:  # datasets count what is broken; a signal is not
                    continue
            return read(self, position)

    engine.dataset.__class__, started = Stalled, time.monotonic()
    with pytest.raises(Stopped) as stopped:
        engine.train()
    assert stopped.value.exit_code == 143 and engine.keeper.saved_step == engine.step
    assert engine.step == 4 or workers  # a worker reads ahead
    assert time.monotonic() - started < 10


def test_a_signal_ends_a_preview_and_weights_come_back(tiny_config, tiny_clip, tmp_path):
    words = ("run.preview_every=2", "run.ema_decay=0.5")
    engine = engine_for("prior", tiny_config, tiny_clip, "run.steps=50", *words)

    def stalled(network):
        if engine.step == 2:
            kill_later(signal.SIGINT)
            time.sleep(60)

    engine.stage.preview = stalled
    with pytest.raises(Stopped) as stopped:
        engine.train()
    assert (stopped.value.exit_code, engine.step, engine.keeper.saved_step) == (130, 2, 2)
    straight = engine_for(
        "prior", tiny_config, tiny_clip, "run.steps=2", f"output={tmp_path / 'straight'}", *words
    )
    straight.train()
    for key, tensor in state_of(straight).items():
        assert torch.equal(tensor, state_of(engine)[key]), key


def test_a_signal_while_saving_lets_it_finish(tiny_config, tiny_clip, monkeypatch):
    engine = engine_for("prior", tiny_config, tiny_clip, "run.steps=50", "run.save_every=3")
    write = checkpoint.save_file

    def interrupted(tensors, path):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(checkpoint, "save_file", write)
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(Stopped):
        engine.train()
    assert checkpoint.newest_checkpoint(engine.folder / "checkpoints").name == "step-00000003"
    assert (engine.folder / "model").exists()


def test_the_second_signal_ends_the_process_at_once(tiny_config, tiny_clip):
    engine = engine_for("prior", tiny_config, tiny_clip, "run.steps=50")

    def twice(batches):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("still here")

    engine.update = twice
    child = multiprocessing.get_context("fork").Process(target=engine.train)
    child.start()
    child.join(20)
    assert child.exitcode == 143


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
    words = ("run.steps=30", "run.save_every=3", "run.keep_checkpoints=9")
    engine = engine_for("prior", tiny_config, tiny_clip, *words)
    poison(engine, lambda step: step >= 2)
    with pytest.raises(FloatingPointError, match="prior: .*10 updates in a row"):
        engine.train()
    for path in (engine.folder / "checkpoints").iterdir():
        _, tensors = load_checkpoint(path)
        assert all(t.isfinite().all() for named in tensors.values() for t in named.values())
    resumed = engine_for("prior", tiny_config, tiny_clip, "run.steps=30")
    assert (resumed.step, resumed.num_skipped, resumed.skipped_in_a_row) == (9, 7, 7)


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


@pytest.mark.parametrize("name", ["prior", "decoder", "upsampler_256"])
def test_init_may_drop_another_share(name, tiny_config, tiny_clip, tmp_path):
    first = engine_for(name, tiny_config, tiny_clip, "run.steps=1")
    first.train()
    second = engine_for(
        name, tiny_config, tiny_clip, f"output={tmp_path / 'second'}", "network.dropout=0.25",
        f"init={first.folder / 'model'}",
    )  # fmt: skip
    network = second.bare_network
    assert network.config.dropout == 0.25 and network.training
    assert 0.25 in {module.p for module in network.modules() if isinstance(module, nn.Dropout)}
    weights = dict(network.named_parameters())
    for key, mean in averages(first).items():
        assert torch.allclose(weights[key], mean)


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


def test_several_averages_and_the_one_that_is_exported(tiny_config, tiny_clip):
    from unclip import Prior

    words = ("run.steps=4", "run.ema_decay=[0.9,0.2]")
    engine = engine_for("prior", tiny_config, tiny_clip, *words, "run.export_ema=0.2")
    engine.train()
    for decay, trained in ((0.2, engine), (0.9, None)):
        if trained is None:  # the run has all its steps; another average is exported
            engine_for("prior", tiny_config, tiny_clip, *words, "run.export_ema=0.9").train()
        saved = dict(Prior.from_pretrained(engine.folder / "model").named_parameters())
        for name, mean in engine.averages.tensors(decay).items():
            assert torch.equal(saved[name], mean), name
    n = 3  # updates after the first: mean <- mean + (1 - min(decay, (1 + n) / (10 + n))) ...
    assert engine.averages.num_updates == n + 1
    with pytest.raises(ConfigError, match="export_ema 0.5"):
        engine_for("prior", tiny_config, tiny_clip, *words, "run.export_ema=0.5")
    with pytest.raises(ConfigError, match="ema_decay"):
        engine_for("prior", tiny_config, tiny_clip, "run.ema_decay=[0.9,2]")


def test_averages_follow_their_formula():
    layer = torch.nn.Linear(1, 1, bias=False)
    averages, mean = Averages(layer, [0.3]), None
    for n in range(6):
        with torch.no_grad():
            layer.weight.fill_(n * n)
        averages.update()
        decay = min(0.3, (1 + n) / (10 + n))
        mean = float(n * n) if not n else decay * mean + (1 - decay) * n * n
        assert averages.tensors(0.3)["weight"].item() == pytest.approx(mean)
    with averages.applied():
        assert layer.weight.item() == pytest.approx(mean) and not layer.training
    assert layer.weight.item() == 25 and layer.training


@pytest.mark.parametrize("name", ["clip", "prior", pytest.param("upsampler_256", marks=SLOW)])
def test_gradient_checkpointing_changes_no_loss(name, tiny_config, tiny_clip, tmp_path):
    found = []
    for folder, wanted in (("kept", "false"), ("again", "true")):
        engine = engine_for(
            name, tiny_config, tiny_clip, f"output={tmp_path / folder}", "run.steps=3",
            f"run.gradient_checkpointing={wanted}", "optimizer.eps=1e-4",
        )  # fmt: skip
        engine.train()
        found.append(losses(engine))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def limit_memory(engine: Engine, most: int) -> None:
    """Let a micro-batch of more samples than most run out of memory."""
    loss = engine.stage.loss

    def limited(network, batch, generators):
        if len(batch["position"]) > most:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return loss(network, batch, generators)

    engine.stage.loss = limited


def test_out_of_memory_says_what_helps(tiny_config, tiny_clip):
    engine = engine_for("prior", tiny_config, tiny_clip, "run.steps=2")
    limit_memory(engine, 2)
    with pytest.raises(OutOfMemory) as error:
        engine.train()
    for word in ("step 1", "micro-batches of 8", "run.gradient_accumulation=2", "2 GiB",
                 "run.gradient_checkpointing=true", "run.precision=bf16"):  # fmt: skip
        assert word in str(error.value)


def test_micro_batches_are_halved_until_they_fit(tiny_config, tiny_clip, tmp_path, capsys):
    words = ("run.steps=3", "optimizer.eps=1e-4")
    engine = engine_for("prior", tiny_config, tiny_clip, *words, "run.halve_on_oom=true")
    limit_memory(engine, 2)
    engine.train()
    assert engine.parts == 4 and "micro-batches of 2 from now" in capsys.readouterr().out
    plain = engine_for("prior", tiny_config, tiny_clip, f"output={tmp_path / 'plain'}", *words)
    plain.train()
    assert losses(engine) == pytest.approx(losses(plain), rel=1e-5)


def test_the_scaler_of_fp16_is_kept_and_falls_with_a_skipped_update(tiny_config, tiny_clip):
    first = engine_for("prior", tiny_config, tiny_clip, "run.steps=1")
    first.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    first.accelerator.scaler.scale(torch.zeros(()))  # made when first used
    first._skip({"loss": 1.0, "grad_norm": float("inf")})
    assert first.accelerator.scaler.get_scale() == 64 and first.skipped_in_a_row == 0
    first.save()
    first.accelerator.scaler.update(2.0)
    again = engine_for("prior", tiny_config, tiny_clip, "run.steps=1")
    again.accelerator.scaler = torch.amp.GradScaler("cpu")
    again._resume()
    assert again.accelerator.scaler.get_scale() == 64 and again.num_skipped == 1
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        engine_for("prior", tiny_config, tiny_clip, "run.precision=fp16")


@pytest.mark.parametrize(("bf16_rate", "found"), [(3.0, "bf16"), (0.5, "no")])
def test_auto_precision_is_the_quicker_one(
    tiny_config, tiny_clip, monkeypatch, capsys, bf16_rate, found
):
    def rate(device, precision, side=None):
        return {"no": 1.0, "bf16": bf16_rate}[precision]

    monkeypatch.setattr("unclip_train.throughput.measure_matmul", rate)
    # accelerate keeps the first precision of a process
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    engine = engine_for("prior", tiny_config, tiny_clip, "run.precision=auto", "run.steps=1")
    assert engine.accelerator.mixed_precision == engine.run.precision == found
    engine.train()
    assert f"run.precision=auto: {found} here" in capsys.readouterr().out
    assert "precision: auto" in (engine.folder / "run.yaml").read_text()


def test_full_disk_costs_nothing_that_was_saved(tiny_config, tiny_clip):
    """A limit on the size of files stands in for a full disk; one checkpoint is kept."""
    words = ("run.steps=9", "run.save_every=2", "run.keep_checkpoints=1")
    engine = engine_for("prior", tiny_config, tiny_clip, *words)
    update, before = engine.update, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(batches):
        if engine.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        return update(batches)

    engine.update = filling
    try:
        with pytest.raises(checkpoint.SaveError, match="step-00000004.*needs [0-9]{6,} bytes"):
            engine.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = [path.name for path in (engine.folder / "checkpoints").iterdir()]
    assert kept == ["step-00000002"]
    assert engine_for("prior", tiny_config, tiny_clip, *words).step == 2


@pytest.fixture
def small_disk(tmp_path):
    """A function: how many bytes to a folder on a disk of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("no disk may be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.slow
def test_a_disk_that_is_truly_full_costs_nothing_that_was_saved(
    tiny_config, tiny_clip, small_disk, tmp_path
):
    words = ("run.save_every=2", "run.keep_checkpoints=1")
    engine_for(
        "prior", tiny_config, tiny_clip, f"output={tmp_path / 'roomy'}", "run.steps=2", *words
    ).train()
    size = sum(path.stat().st_size for path in (tmp_path / "roomy").rglob("*") if path.is_file())
    disk = small_disk(int(1.4 * size))
    engine = engine_for(
        "prior", tiny_config, tiny_clip, f"output={disk / 'run'}", "run.steps=8", *words
    )
    with pytest.raises(checkpoint.SaveError, match="step-00000004: .*No space left.*bytes"):
        engine.train()
    kept = [path.name for path in (disk / "run" / "checkpoints").iterdir()]
    assert kept == ["step-00000002"]
    again = engine_for(
        "prior", tiny_config, tiny_clip, f"output={disk / 'run'}", "run.steps=8", *words
    )
    assert again.step == 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_network_learns_and_sees_averages(
    backend, tiny_config, tiny_clip, tmp_path, monkeypatch
):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("it needs a compiler")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    found = []
    for folder, wanted in (("plain", "false"), ("compiled", "true")):
        engine = engine_for(
            "prior", tiny_config, tiny_clip, f"output={tmp_path / folder}", "run.steps=4",
            f"run.compile={wanted}", "optimizer.eps=1e-4",
        )  # fmt: skip
        engine.train()
        found.append(losses(engine))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    batch = collate([engine.dataset[position] for position in range(8)])

    def loss(network) -> float:
        with torch.no_grad():
            return engine.stage.loss(network, batch, child_generators([0] * 8, "x"))["loss"].item()

    plain = loss(engine.forward)
    with engine.averages.applied() as network:
        assert loss(engine.forward) == pytest.approx(loss(network), rel=1e-5)
        assert abs(loss(network) - plain) > 1e-4 * plain
    assert loss(engine.forward) == pytest.approx(plain, rel=1e-6)


def test_muon_refuses_weights_in_shards(tiny_config, tiny_clip, monkeypatch):
    monkeypatch.setattr("unclip_train.processes.wants_shards", lambda count: True)
    with pytest.raises(ConfigError, match="optimizer.algorithm=muon.*adamw"):
        engine_for("prior", tiny_config, tiny_clip, "optimizer.algorithm=muon")
