"""unclip-train: a mistake is one clear line and exit code 2; a run makes weights from words."""

import os
import subprocess
import sys

import pytest

from unclip_train.cli import main


def words(folder, output, *more):
    return [f"data.source={folder}", f"output={output}", *more]


def complaint(capsys, arguments: list[str]) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_unknown_stage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["unpsampler", "--config", "tiny/decoder"])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "upsampler" in line and line.count("\n") == 1


def test_missing_config(capsys):
    assert "--config" in complaint(capsys, ["decoder"])
    assert "nowhere" in complaint(capsys, ["decoder", "--config", "nowhere.yaml"])


def test_misspelt_key(capsys, drawings_folder, tmp_path):
    line = complaint(
        capsys, ["clip", "--config", "tiny/clip", *words(drawings_folder, tmp_path, "run.stesp=2")]
    )
    assert "stesp" in line and "run.steps" in line


def test_misspelt_network_key(capsys, drawings_folder, tmp_path):
    more = words(drawings_folder, tmp_path, "network.chanels=[32]")
    line = complaint(capsys, ["upsampler", "--config", "tiny/upsampler_256", *more])
    assert "network.chanels" in line and "channels" in line


def test_missing_data_folder(capsys, tmp_path):
    line = complaint(capsys, ["clip", "--config", "tiny/clip", *words("no-such-folder", tmp_path)])
    assert "data.source" in line and "unclip-data" in line


def test_missing_clip(capsys, drawings_folder, tmp_path):
    more = words(drawings_folder, tmp_path, "clip=no-such-clip")
    assert "clip" in complaint(capsys, ["prior", "--config", "tiny/prior", *more])


def test_corrupt_weights(capsys, drawings_folder, tmp_path, tiny_clip):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_clip, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    more = words(drawings_folder, tmp_path / "out", f"clip={broken}")
    capsys.readouterr()
    assert main(["prior", "--config", "tiny/prior", *more]) != 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "broken" in line


def test_weights_to_begin_from_must_fit(capsys, drawings_folder, tmp_path):
    from unclip import Upsampler

    folder = tmp_path / "weights"
    Upsampler(size=64, channels=(32, 64), num_blocks=1, dropout=0.0).save_pretrained(folder)
    capsys.readouterr()
    more = words(drawings_folder, tmp_path / "out", f"init={folder}")
    line = complaint(capsys, ["upsampler", "--config", "tiny/upsampler_256", *more])
    assert "network.channels" in line and "[32, 64]" in line
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    line = complaint(capsys, ["upsampler", "--config", "tiny/upsampler_256", *more])
    assert "init" in line and "weights" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output(capsys, drawings_folder, tmp_path):
    tmp_path.chmod(0o500)
    more = words(drawings_folder, tmp_path / "run")
    assert "output" in complaint(capsys, ["clip", "--config", "tiny/clip", *more])


def test_output_below_a_file(capsys, drawings_folder, tmp_path):
    (tmp_path / "file").write_text("")
    more = words(drawings_folder, tmp_path / "file" / "run")
    assert "output" in complaint(capsys, ["clip", "--config", "tiny/clip", *more])


def test_resolution_chooses_the_upsampler(capsys, drawings_folder, tmp_path):
    more = [*words(drawings_folder, tmp_path), "--dry-run"]
    assert main(["upsampler", "--resolution", "256", *more]) == 0
    assert "size: 256" in capsys.readouterr().out
    line = complaint(
        capsys, ["upsampler", "--config", "tiny/upsampler_256", "--resolution", "1024", *more]
    )
    assert "--resolution" in line
    assert not (tmp_path / "run.yaml").exists()


def test_bad_batch_size_is_a_line_without_a_trace(capsys, drawings_folder, tmp_path):
    more = words(drawings_folder, tmp_path, "run.gradient_accumulation=3")
    assert main(["upsampler", "--config", "tiny/upsampler_256", *more]) != 0
    assert "run.batch_size" in capsys.readouterr().err


def test_words_to_weights_and_resume(drawings_folder, tmp_path):
    """The installed command trains, stops, and goes on when called again."""

    def run(steps: int) -> str:
        command = [sys.executable, "-m", "unclip_train.cli", "upsampler"]
        more = words(drawings_folder, tmp_path, f"run.steps={steps}", "run.log_every=1")
        command += ["--config", "tiny/upsampler_256", *more]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "step 2/2" in run(2)
    second = run(4)
    assert "resumed" in second and "step 3/4" in second and "step 2/4" not in second
    assert (tmp_path / "model" / "config.json").is_file()
    assert "all its 4 steps" in run(4)
