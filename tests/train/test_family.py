"""unclip-train all: stages in the order of their needs, side by side, stopped and gone on with."""

import sys
import threading
import time
from pathlib import Path

import pytest

from unclip_train.cli import main
from unclip_train.config import ConfigError
from unclip_train.family import Family, FamilyError, Job, family_folder, for_stage, plan

NOTE = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); time.sleep({seconds})"


def job(name: str, log: Path, *needs: str, seconds: float = 0.0, code: int = 0) -> Job:
    """A process that writes its name into a log, waits, and ends with the code given."""
    program = NOTE.format(seconds=seconds) + f"; sys.exit({code})"
    return Job(name, [sys.executable, "-S", "-c", program, str(log), name], needs)


def test_needs_come_first(tmp_path):
    log = tmp_path / "log"
    family = Family([job("decoder", log, "clip"), job("clip", log, seconds=0.3)], side_by_side=2)
    family.train()
    assert family.is_complete
    assert log.read_text().split() == ["clip", "decoder"]


@pytest.mark.parametrize("side_by_side, at_once", [(1, 1), (3, 3)])
def test_as_many_at_once_as_allowed(tmp_path, side_by_side, at_once):
    family = Family([job(name, tmp_path / "log", seconds=0.5) for name in "abc"], side_by_side)
    family._start_what_can()
    assert sum(j.is_running for j in family.jobs) == at_once
    family.train()
    assert family.is_complete


def test_others_go_on_when_one_fails(tmp_path):
    log = tmp_path / "log"
    jobs = [job("clip", log, code=1), job("prior", log, "clip"), job("upsampler_256", log)]
    with pytest.raises(FamilyError, match="clip.*exit status 1") as failure:
        Family(jobs).train()
    assert failure.value.exit_code == 1
    assert log.read_text().split() == ["clip", "upsampler_256"]


def test_a_mistake_of_the_user_keeps_its_exit_status(tmp_path):
    with pytest.raises(FamilyError) as failure:
        Family([job("clip", tmp_path / "log", code=2)]).train()
    assert failure.value.exit_code == 2


def test_time_limit_asks_to_stop_and_starts_nothing_more(tmp_path):
    log = tmp_path / "log"
    jobs = [job("clip", log, seconds=60), job("prior", log, "clip"), job("decoder", log, "clip")]
    started = time.monotonic()
    family = Family(jobs, side_by_side=3, minutes=1 / 60)
    family.train()
    assert time.monotonic() - started < 10 and not family.is_complete
    assert log.read_text().split() == ["clip"]


def test_a_stage_that_another_killed_has_failed(tmp_path):
    family = Family([job("clip", tmp_path / "log", seconds=60)])
    threading.Timer(0.5, lambda: family.jobs[0].process.terminate()).start()
    with pytest.raises(FamilyError, match="clip"):
        family.train()


def test_words_reach_the_stage_they_name():
    assert for_stage("run.steps=3", "prior") == "run.steps=3"
    assert for_stage("prior.run.steps=3", "prior") == "run.steps=3"
    assert for_stage("upsampler_256.run.steps=3", "upsampler_1024") is None
    assert for_stage("clip=my/clip", "prior") == "clip=my/clip"


def test_plan_checks_every_configuration(tmp_path):
    jobs = {j.name: j for j in plan(family_folder("tiny"), tmp_path, ["prior.run.steps=7"])}
    assert list(jobs) == ["clip", "prior", "decoder", "upsampler_256", "upsampler_1024"]
    assert jobs["decoder"].needs == ("clip",)
    assert f"clip={tmp_path / 'clip' / 'model'}" in jobs["decoder"].command
    assert "run.steps=7" in jobs["prior"].command and "run.steps=7" not in jobs["clip"].command
    with pytest.raises(ConfigError, match="run.steps"):
        plan(family_folder("tiny"), tmp_path, ["decoder.run.steps=-1"])


def test_what_a_stage_would_refuse_is_told_before_any_is_trained(tmp_path, drawings_folder, capsys):
    words = ["all", "--config", "tiny", "--runs", str(tmp_path / "runs"), "--dry-run"]
    words += [f"data.source={drawings_folder}"]
    assert main(words) == 0  # though there is no CLIP yet
    for more, told in (
        (["decoder.data.size=32"], "data.size: upsampler_256 draws 64 pixels"),
        (["decoder.network.head_dim=20"], "decoder: network.channels[1]"),
        (["decoder.network.embedding_dim=48"], "decoder: network.embedding_dim is 48, but 32"),
        (["clip.network.projection_dim=64"], "prior: clip: the prior needs text states as wide"),
        (["clip.data.size=48"], "clip: data.size:"),  # not rendered
        (["upsampler_256.init=nowhere"], "upsampler_256: init: no trained network"),
        ([f"data.source={tmp_path / 'nowhere'}"], "clip: data.source: there is no folder"),
    ):
        capsys.readouterr()
        assert main([*words, *more]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_faults_are_told_before_anything_runs(tmp_path, capsys):
    for words, told in (
        (["--config", "nowhere"], "installed families are"),
        (["--config", "tiny", "--minutes", "0"], "--minutes"),
        (["--config", "tiny", "--side-by-side", "0"], "--side-by-side"),
        ([], "--config is missing"),
    ):
        assert main(["all", "--runs", str(tmp_path / "runs"), *words]) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    words = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "model")]
    assert main(["all", "--config", "tiny", *words]) == 2
    assert "not empty" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_family_becomes_a_model(drawings_folder, tmp_path, capfd):
    from unclip import UnCLIPPipeline

    words = ["all", "--config", "tiny", "--runs", str(tmp_path / "runs"), "--side-by-side", "2"]
    words += [f"data.source={drawings_folder}", "run.steps=2", "--output", str(tmp_path / "model")]
    assert main([*words, "--minutes", "0.02"]) == 0  # stopped while it begins
    assert "the same command goes on" in capfd.readouterr().out
    assert main(words) == 0
    assert "[upsampler_1024] upsampler: step 2/2" in capfd.readouterr().out
    drawn = UnCLIPPipeline.from_pretrained(tmp_path / "model")("a red circle", size=64, seeds=[1])
    assert drawn.images[0].size == (64, 64)
