"""Every trainer in one process and in two, in fp32 and bf16; whole weights, and shards."""

import json
import os
import subprocess
import sys

import pytest

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]


def launch(launcher: list[str], stage: str, words: list[str]) -> str:
    """Run unclip-train under a launcher; what it printed."""
    done = subprocess.run(
        [*launcher, "unclip_train.cli", stage, *words],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def words_of(drawings_folder, tiny_clip, tmp_path):
    """The words of a tiny stage's run in a folder of tmp_path."""

    def make(name: str, folder: str, *more: str) -> list[str]:
        clip = [f"clip={tiny_clip}"] if name in ("prior", "decoder") else []
        place = [f"data.source={drawings_folder}", f"output={tmp_path / folder}"]
        return ["--config", f"tiny/{name}", *place, *clip, "run.log_every=1", *more]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "precision", "steps"),
    [
        ("prior", 1, "no", 80),
        ("prior", 2, "bf16", 80),
        ("decoder", 1, "bf16", 120),
        ("decoder", 2, "no", 120),
        ("upsampler_256", 1, "no", 80),
        ("upsampler_256", 2, "bf16", 80),
    ],
)
def test_every_trainer_learns(
    name, processes, precision, steps, words_of, tmp_path, capsys, two_processes
):
    """Two batches of drawings are learned: the loss falls to a half, finite all the way."""
    more = (f"run.steps={steps}", f"run.precision={precision}", "optimizer.lr=3e-3")
    launcher = two_processes if processes == 2 else [*ACCELERATE, "--cpu", "-m"]
    printed = launch(launcher, name.split("_")[0], words_of(name, "run", *more))
    assert ("2 processes" in printed) == (processes == 2)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    first, last = sum(losses[:4]) / 4, sum(losses[-steps // 10 :]) / (steps // 10)
    with capsys.disabled():
        print(f"\n{name}, {processes} x {precision}: loss {first:.3f} -> {last:.3f}")
    assert len(losses) == steps and all(loss < 100 for loss in losses)
    assert last <= 0.5 * first


@pytest.mark.slow
def test_shards_by_accelerates_own_words(words_of, tmp_path):
    launcher = [*ACCELERATE, "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "-m"]
    printed = launch(launcher, "prior", words_of("prior", "run", "run.steps=3"))
    assert "in shards over 2 processes" in printed
    assert (tmp_path / "run" / "model" / "config.json").exists()
