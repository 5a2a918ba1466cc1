"""Many processes learn what one learns, whole or in shards, and stop together."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from unclip_train.checkpoint import newest_checkpoint
from unclip_train.cli import make_stage
from unclip_train.config import ConfigError
from unclip_train.engine import Engine
from unclip_train.signals import Stopped

SLOW = pytest.mark.slow
STAGES = ["clip", "prior", *(pytest.param(n, marks=SLOW) for n in ("decoder", "upsampler_256"))]
# Where a gradient is zero but for rounding (the bias of keys, a bias before a normalisation), AdamW
# divides noise by noise; so large an eps lets that be as small as it is.
CALM = "optimizer.eps=1e-4"
LOOKED_AT = (
    *("run.measure_flops=true", "run.validate_every=2", "run.validation_samples=4"),
    "run.preview_every=2",
)
SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture
def trained(tiny_config, tiny_clip, tmp_path):
    """Train a stage for some steps in a folder of tmp_path; the engine."""

    def train(name: str, folder: str, *overrides: str, engine_class: type = Engine) -> Engine:
        stage_name = name.split("_")[0]
        clip = [f"clip={tiny_clip}"] if stage_name in ("prior", "decoder") else []
        words = [*clip, f"output={tmp_path / folder}", "run.log_every=1", CALM, *overrides]
        config = tiny_config(stage_name, *words, name=name)
        stage, dataset = make_stage(stage_name, config)
        engine = engine_class(stage, dataset, config, dataset)
        engine.train()
        return engine

    return train


def kept(folder) -> dict[str, torch.Tensor]:
    """Weights and averages of the newest checkpoint, as one dict."""
    path = newest_checkpoint(folder / "checkpoints")
    files = {stem: load_file(path / f"{stem}.safetensors") for stem in ("network", "ema")}
    return {f"{stem}.{name}": t for stem, named in files.items() for name, t in named.items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """||one - other|| / ||one|| over all tensors."""
    assert one.keys() == other.keys()
    gaps = torch.stack([(one[name] - other[name]).double().norm() for name in one])
    found = float(gaps.norm() / torch.stack([t.double().norm() for t in one.values()]).norm())
    print(f"relative difference {found:.1e}")
    return found


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_learn_what_one_learns(name, trained, run_processes, tmp_path):
    trained(name, "one", "run.steps=4")
    run_processes(2, lambda rank: trained(name, "two", "run.steps=4", *LOOKED_AT).step)
    assert difference(kept(tmp_path / "one"), kept(tmp_path / "two")) < 1e-5


@pytest.mark.parametrize("name", ["prior", pytest.param("clip", marks=SLOW), *STAGES[2:]])
def test_shards_learn_save_resume_and_export_what_one_process_does(
    name, trained, run_processes, tmp_path
):
    words = ("run.gradient_accumulation=2", *LOOKED_AT)
    trained(name, "one", "run.steps=3", *words[:1])

    def in_shards(rank):
        trained(name, "shards", "run.steps=1", *words)
        engine = trained(name, "shards", "run.steps=3", *words)
        cut = [isinstance(p, DTensor) for p in engine.network.parameters() if p.ndim]
        return sum(cut) / len(cut)

    shares = run_processes(2, in_shards, **SHARDS)
    assert min(shares) > 0.9
    assert difference(kept(tmp_path / "one"), kept(tmp_path / "shards")) < 1e-5
    weights = [sorted((tmp_path / f / "model").glob("*.safetensors")) for f in ("one", "shards")]
    one, shards = (load_file(*files) for files in weights)
    assert difference(one, shards) < 1e-5


@pytest.mark.slow
def test_one_process_goes_on_where_shards_stopped(trained, run_processes, tmp_path):
    trained("prior", "one", "run.steps=3")
    run_processes(2, lambda rank: trained("prior", "mixed", "run.steps=2").step, **SHARDS)
    trained("prior", "mixed", "run.steps=3")
    assert difference(kept(tmp_path / "one"), kept(tmp_path / "mixed")) < 1e-5


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        (SHARDS, "only one process"),
        (SHARDS | {"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "pickles"),
    ],
)
def test_what_is_asked_of_accelerate_is_done_or_refused(environment, word, trained, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=word):
        trained("prior", "refused", "run.steps=1")


def test_a_signal_to_one_process_stops_both_at_one_step(trained, run_processes, tmp_path):
    """The other waits for it in an agreement; neither goes on, neither is left behind."""

    class Signalled(Engine):
        def update(self, batches):
            if self.step == 2 and self.accelerator.process_index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().update(batches)

    def stopped(rank):
        with pytest.raises(Stopped) as error:
            trained("prior", "stopped", "run.steps=50", engine_class=Signalled)
        return error.value.exit_code

    assert run_processes(2, stopped) == [143, 143]
    names = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
    assert names == ["step-00000002"]
