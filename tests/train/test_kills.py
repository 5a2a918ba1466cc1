"""A run killed at fifty random moments, half of them within a save, is the run that never was."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from unclip_train import checkpoint, keeper
from unclip_train.cli import make_stage
from unclip_train.engine import Engine
from unclip_train.state import pack_optimizer

NUM_KILLS = 50
SAVE_EVERY = 4


@pytest.fixture
def engine_of(tiny_config, tiny_clip, tmp_path):
    """An engine of the tiny prior in a folder, to its last step."""

    def make(folder: str, steps: int) -> Engine:
        words = (f"clip={tiny_clip}", f"output={tmp_path / folder}", f"run.steps={steps}")
        config = tiny_config("prior", *words, f"run.save_every={SAVE_EVERY}", "run.log_every=1000")
        return Engine(*make_stage("prior", config), config)

    return make


def train_until_killed(engine_of, began, step, saving) -> None:
    """Train on, telling the parent where it began, which step it is at, and when it saves."""
    torch.set_num_threads(1)
    save, save_model = keeper.save_checkpoint, keeper.save_model

    def told(write):
        def writing(*args, **kwargs):
            saving.value = 1
            write(*args, **kwargs)
            saving.value = 0

        return writing

    keeper.save_checkpoint, keeper.save_model = told(save), told(save_model)
    engine = engine_of("killed", 10**6)
    update = engine.update

    def counted(batches):
        values = update(batches)
        step.value = engine.step
        return values

    engine.update = counted
    began.value = engine.step
    engine.train()


def kill_somewhere(child, began, saving, chance: random.Random, in_save: bool) -> bool:
    """Let a child begin, then kill it at a random moment; whether that lay within a save."""
    deadline = time.monotonic() + 120
    while began.value < 0 and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.6))
    while in_save and not saving.value and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0002)
    if in_save:
        time.sleep(chance.uniform(0, 0.01))
    was_saving = bool(saving.value)
    assert child.is_alive(), f"the child ended by itself: {child.exitcode}"
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return was_saving


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    average = engine.averages.tensors(engine.averages.first)
    moments = pack_optimizer(engine.optimizer)
    return engine.bare_network.state_dict() | {f"ema.{n}": t for n, t in average.items()} | moments


@pytest.mark.slow
def test_fifty_kills_are_fifty_resumes(engine_of, tmp_path, capsys):
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    reached, num_resumed, most_lost, num_in_save = 0, 0, 0, 0
    for number in range(NUM_KILLS + 1):
        began, step, saving = (context.Value("q", value) for value in (-1, 0, 0))
        child = context.Process(target=train_until_killed, args=(engine_of, began, step, saving))
        child.start()
        num_in_save += kill_somewhere(child, began, saving, chance, in_save=number % 2 == 0)
        lost = reached - began.value
        most_lost = max(most_lost, lost)
        num_resumed += number > 0 and 0 <= lost <= SAVE_EVERY
        reached = max(step.value, began.value)
    final = engine_of("killed", reached + 8)
    final.train()
    straight = engine_of("straight", reached + 8)
    straight.train()
    for name, tensor in state_of(straight).items():
        assert torch.equal(tensor, state_of(final)[name]), name
    left = [path.name for path in (tmp_path / "killed").rglob(f"{checkpoint.STAGED}*")]
    with capsys.disabled():
        print(
            f"\n{NUM_KILLS} kills, {num_in_save} of {NUM_KILLS + 1} within a save: {num_resumed} "
            f"resumes, at most {most_lost} steps lost with run.save_every={SAVE_EVERY}, "
            f"step {reached + 8} equal to the bit to the run that was not killed"
        )
    assert num_resumed == NUM_KILLS and left == []
