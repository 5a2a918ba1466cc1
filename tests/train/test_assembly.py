"""From tiny runs to a model: five trained stages are put together, load, and draw."""

import pytest

from unclip_train.cli import main, make_stage
from unclip_train.engine import Engine


@pytest.fixture(scope="module")
def runs(drawings_folder, tmp_path_factory):
    """A run of one update for each of the five stages."""
    from unclip_train.config import load_config

    folder = tmp_path_factory.mktemp("runs")
    for name in ("clip", "prior", "decoder", "upsampler_256", "upsampler_1024"):
        stage_name = name.split("_")[0]
        words = [f"data.source={drawings_folder}", f"output={folder / name}", "run.steps=1"]
        if stage_name in ("prior", "decoder"):
            words.append(f"clip={folder / 'clip' / 'model'}")
        config = load_config(stage_name, f"tiny/{name}", words)
        stage, dataset = make_stage(stage_name, config)
        Engine(stage, dataset, config).train()
    return folder


def test_trained_stages_become_a_model_that_draws(runs, tmp_path, capsys):
    from unclip import UnCLIPPipeline

    output = tmp_path / "model"
    words = ["assemble", "--runs", str(runs), "--output", str(output)]
    settings = ["steps.decoder=3", "candidates=3", "guidance_interval=[0,900]"]
    assert main([*words, "--config", "emoji/assemble", *settings]) == 0
    assert capsys.readouterr().out.strip().endswith(str(output))
    pipeline = UnCLIPPipeline.from_pretrained(output)
    config = pipeline.config
    assert (config.default_steps["decoder"], config.default_candidates) == (3, 3)
    assert config.default_guidance_interval == [0, 900]
    drawn = pipeline("a red circle", size=256, seeds=[1])
    assert drawn.images[0].size == (256, 256)
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err


def test_missing_stage_is_named(runs, tmp_path, capsys):
    words = ["assemble", "--runs", str(runs / "clip"), "--output", str(tmp_path / "model")]
    assert main(words) == 2
    assert "clip" in capsys.readouterr().err
