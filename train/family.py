"""All stages of a family of configs, each in a process of its own: from pictures to a model.

A stage begins when those that it needs have ended; as many run side by side as are allowed. Every
stage resumes by itself, so that the same call goes on wherever an earlier one stopped.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from unclip_train.checks import check_chain, check_config, towers_of
from unclip_train.config import ConfigError, StageConfig, load_config

# What must be trained before: prior and decoder are conditioned on the CLIP of the family.
NEEDS: dict[str, tuple[str, ...]] = {
    "clip": (),
    "prior": ("clip",),
    "decoder": ("clip",),
    "upsampler_256": (),
    "upsampler_1024": (),
}
POLL_SECONDS = 0.2


@dataclass
class Job:
    """One stage of the family: its command, what it needs, and its process once it runs.

    config: what the command says; to be checked before any stage is trained.
    """

    name: str
    command: list[str]
    needs: tuple[str, ...]
    config: StageConfig | None = None
    process: subprocess.Popen | None = None
    lines: threading.Thread | None = None

    @property
    def code(self) -> int | None:
        """Its exit status; None while it waits or runs."""
        return None if self.process is None else self.process.poll()

    @property
    def is_running(self) -> bool:
        """Whether its process has begun and not ended."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Begin; what it prints is passed on, each line with the job's name before it."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches it through its parent, once
        )
        self.lines = threading.Thread(target=self._pass_on, daemon=True)
        self.lines.start()

    def _pass_on(self) -> None:
        for line in self.process.stdout:
            print(f"[{self.name}] {line.rstrip()}", flush=True)


def plan(folder: Path, runs: Path, words: list[str]) -> list[Job]:
    """The family's jobs, the values of every configuration checked.

    Args:
        folder: holds YAML files named after the stages.
        runs: folder of the runs, one folder in it for each stage.
        words: key=value for every stage, or stage.key=value for one of them.

    Raises:
        ConfigError: when a stage's configuration is at fault.
    """
    names = [name for name in NEEDS if (folder / f"{name}.yaml").is_file()]
    jobs = []
    for name in names:
        needs = tuple(need for need in NEEDS[name] if need in names)
        own = [f"output={runs / name}", *(f"{need}={runs / need / 'model'}" for need in needs)]
        own += [told for told in (for_stage(word, name) for word in words) if told]
        stage, path = name.split("_")[0], folder / f"{name}.yaml"
        config = load_config(stage, path, own)
        command = [sys.executable, "-m", "unclip_train.cli", stage, "--config", str(path), *own]
        jobs.append(Job(name, command, needs, config))
    return jobs


def check_jobs(jobs: list[Job]) -> None:
    """Refuse now what a stage would refuse once the others are trained.

    Stages that wait for the family's CLIP are held against the one that it is going to be.

    Raises:
        ConfigError, FileNotFoundError: naming the stage and the key.
    """
    configs = {job.name: job.config for job in jobs}
    check_chain({name: config.data.size for name, config in configs.items()})
    for name, config in configs.items():
        clip = configs["clip"] if waits_for_clip(config, configs) else None
        try:
            towers = towers_of(clip) if clip else None
            if towers or not clip:  # else it begins from a layout that is read later
                check_config(name.split("_")[0], config, towers)
        except (ConfigError, FileNotFoundError) as error:
            raise type(error)(f"{name}: {error}") from None


def waits_for_clip(config: StageConfig, configs: dict[str, StageConfig]) -> bool:
    """Whether a stage's CLIP is the family's, which is not trained yet."""
    if "clip" not in configs or not hasattr(config, "clip"):
        return False
    model = Path(configs["clip"].output) / "model"
    return Path(config.clip) == model and not model.exists()


def family_folder(config: str) -> Path:
    """A folder that holds the YAML file of at least one stage."""
    installed = Path(str(files("unclip_configs")))
    for folder in (Path(config), installed / config):
        if any((folder / f"{name}.yaml").is_file() for name in NEEDS):
            return folder
    families = sorted(path.parent.name for path in installed.glob("*/decoder.yaml"))
    raise ConfigError(
        f"--config: {config} is no folder with {', '.join(NEEDS)}.yaml; installed families are "
        f"{', '.join(families)}"
    )


def for_stage(word: str, name: str) -> str | None:
    """A word as this stage is told it; None for one that is meant for another stage."""
    key, dot, rest = word.partition(".")
    if dot and key in NEEDS and "=" not in key:
        return rest if key == name else None
    return word


@dataclass
class Family:
    """Runs jobs in the order of their needs.

    Args:
        jobs: what plan gave.
        side_by_side: how many may run at once.
        minutes: after so long all are asked to save and stop; None for no limit.
    """

    jobs: list[Job]
    side_by_side: int = 1
    minutes: float | None = None
    signal_number: int = 0
    is_time_up: bool = field(default=False, init=False)

    def train(self) -> None:
        """Run until every job has ended, or until it is time to stop.

        Raises:
            FamilyError: naming the stages that failed or were stopped.
        """
        handlers = {number: signal.signal(number, self._ask_to_stop) for number in STOP_SIGNALS}
        end = time.monotonic() + 60 * self.minutes if self.minutes else None
        try:
            while self._start_what_can() or any(job.is_running for job in self.jobs):
                if end is not None and time.monotonic() > end and not self.is_time_up:
                    self.is_time_up = True
                    self._stop_all()
                time.sleep(POLL_SECONDS)
        finally:
            self._stop_all()
            for job in self.jobs:
                if job.process is not None:
                    job.process.wait()
                    job.lines.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self._report()

    def _start_what_can(self) -> bool:
        """Start jobs whose needs have ended well; whether any was started."""
        done = {job.name for job in self.jobs if job.code == 0}
        started = False
        for job in self.jobs:
            if self.is_time_up or self.signal_number or job.process is not None:
                continue
            running = sum(other.is_running for other in self.jobs)
            if running < self.side_by_side and done.issuperset(job.needs):
                job.start()
                started = True
        return started

    def _ask_to_stop(self, number: int, frame) -> None:
        self.signal_number = number
        self._stop_all()

    def _stop_all(self) -> None:
        for job in self.jobs:
            if job.is_running:
                job.process.terminate()

    def _report(self) -> None:
        """Raise what is to be said of jobs that have not ended well."""
        if self.signal_number:
            raise FamilyError("stopped; the same command goes on", 128 + self.signal_number)
        well = (None, 0, *(STOPPED_CODES if self.is_time_up else ()))
        failed = [job for job in self.jobs if job.code not in well]
        if failed:
            told = ", ".join(f"{job.name} (exit status {job.code})" for job in failed)
            fault = USER_FAULT if any(job.code == USER_FAULT for job in failed) else 1
            raise FamilyError(f"failed: {told}; its own lines stand above", fault)

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well."""
        return all(job.code == 0 for job in self.jobs)


class FamilyError(RuntimeError):
    """Stages that failed or were stopped, and the exit status that says so."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED_CODES = (128 + signal.SIGTERM, -signal.SIGTERM)  # the latter of one that had hardly begun
USER_FAULT = 2
