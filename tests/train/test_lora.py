"""LoRA: trained beside frozen weights, saved alone, added to a pipeline and taken away."""

import json
import shutil

import pytest
import torch
from PIL import Image

from unclip import UnCLIPPipeline
from unclip.pipeline.loading import ModelFileError
from unclip.pipeline.lora import CONFIG, WEIGHTS, read_lora
from unclip_train.cli import main, make_stage
from unclip_train.config import ConfigError
from unclip_train.engine import Engine


@pytest.fixture(scope="module")
def base(tmp_path_factory, drawings_folder, tiny_clip):
    """A tiny model with random weights: a prior and a decoder."""
    from unclip_train.config import load_config

    folder = tmp_path_factory.mktemp("base")
    stages = {}
    for name in ("prior", "decoder"):
        words = [f"data.source={drawings_folder}", f"output={folder}", f"clip={tiny_clip}"]
        stage, _ = make_stage(name, load_config(name, f"tiny/{name}", words))
        for parameter in stage.network.parameters():  # what begins at zero would hide mistakes
            if parameter.requires_grad:
                parameter.data.add_(0.02 * torch.randn_like(parameter))
        stages[name] = stage.network
    pipe = UnCLIPPipeline.from_stages(clip=tiny_clip, **stages)
    pipe.save_pretrained(folder / "model")
    return folder / "model"


def adapted(name, base, tiny_config, tiny_clip, output, *more) -> Engine:
    words = [f"clip={tiny_clip}", f"init={base}", f"output={output}", "lora.rank=2"]
    config = tiny_config(name, *words, "run.steps=3", "optimizer.lr=0.05", *more)
    stage, dataset = make_stage(name, config)
    engine = Engine(stage, dataset, config)
    engine.train()
    return engine


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_a_lora_is_trained_saved_loaded_and_taken_away(
    name, base, tiny_config, tiny_clip, tmp_path
):
    engine = adapted(name, base, tiny_config, tiny_clip, tmp_path / "run", "lora.alpha=3")
    pipe = UnCLIPPipeline.from_pretrained(base)
    before = {n: w.clone() for n, w in pipe.components[name].state_dict().items()}
    network = engine.bare_network
    for key, weight in network.state_dict().items():  # nothing else has moved
        if ".lora_" not in key:
            assert torch.equal(weight, before[key.replace(".base_layer", "")]), key
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} == {CONFIG, WEIGHTS}
    assert (tmp_path / "run" / "model" / WEIGHTS).stat().st_size < 30_000
    given = inputs(name, pipe)
    with torch.no_grad():
        plain = pipe.components[name](*given)
        assert pipe.load_lora(tmp_path / "run") == name
        changed = pipe.components[name](*given)
        with engine.averages.applied() as averaged:
            assert torch.allclose(averaged(*given), changed, atol=1e-4)
    assert not torch.allclose(plain, changed, atol=1e-3)
    pipe.load_lora(tmp_path / "run", -1.0)  # the opposite of it
    for key, weight in pipe.components[name].state_dict().items():
        assert torch.allclose(weight, before[key], atol=1e-6), key
    pipe.unload_lora()
    for key, weight in pipe.components[name].state_dict().items():
        assert torch.equal(weight, before[key]), key


def inputs(name, pipe) -> tuple:
    """What a forward pass is given."""
    text = pipe.encode(["a red circle", "a blue bar"])
    t, z = torch.tensor([300, 700]), torch.randn(2, 32)
    return (z, t, text) if name == "prior" else (torch.randn(2, 3, 16, 16), t, z, text)


def test_a_resumed_lora_is_the_straight_one(base, tiny_config, tiny_clip, tmp_path):
    straight = adapted("prior", base, tiny_config, tiny_clip, tmp_path / "a")
    adapted("prior", base, tiny_config, tiny_clip, tmp_path / "b", "run.steps=2")
    parts = adapted("prior", base, tiny_config, tiny_clip, tmp_path / "b")
    for key, weight in straight.bare_network.state_dict().items():
        assert torch.equal(weight, parts.bare_network.state_dict()[key]), key


@pytest.mark.parametrize(
    ("name", "word"), [("decoder", "network.inpainting=true"), ("prior", "network.num_layers=3")]
)
def test_weights_beside_a_lora_do_not_grow(name, word, base, tiny_config, tiny_clip, tmp_path):
    """They would be kept as they begin, at nothing, and not be saved."""
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        adapted(name, base, tiny_config, tiny_clip, tmp_path / "run", word)


def test_the_command_draws_with_it(base, tiny_config, tiny_clip, tmp_path, capsys):
    from unclip_sample.cli import main as sample
    from unclip_sample.png import read_png

    adapted("decoder", base, tiny_config, tiny_clip, tmp_path / "run")
    words = ["--model", str(base), "--prompt", "a red circle", "--seed", "1", "--quiet"]
    words += ["--steps", "2", "--prior-steps", "2"]

    def drawn(number, *lora):
        path = tmp_path / f"{number}.png"
        assert sample([*words, *lora, "--output", str(path)]) == 0, capsys.readouterr().err
        return path

    plain, full = drawn(0), drawn(1, "--lora", str(tmp_path / "run"))
    none, half = (drawn(n, "--lora", f"{tmp_path / 'run'}:{s}") for n, s in ((2, 0), (3, 0.5)))
    pixels = [Image.open(path).tobytes() for path in (plain, full, none, half)]
    assert pixels[0] == pixels[2] and len(set(pixels)) == 3
    assert read_png(full)["lora"][0]["scale"] == 1.0 and "lora" not in read_png(plain)
    for bad, told in ((f"{tmp_path}/run:much", "no number"), (f"{tmp_path}/nowhere", "missing")):
        assert sample([*words, "--lora", bad, "--output", str(tmp_path / "x.png")]) == 2
        assert told in capsys.readouterr().err


def test_what_is_no_lora_is_refused(base, tiny_config, tiny_clip, tmp_path, capsys):
    adapted("prior", base, tiny_config, tiny_clip, tmp_path / "run")
    good = tmp_path / "run" / "model"

    def broken(change) -> str:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder)
        with pytest.raises((ModelFileError, FileNotFoundError)) as error:
            read_lora(folder)
        return str(error.value)

    def edit(**facts):
        def change(folder):
            config = json.loads((folder / CONFIG).read_text())
            (folder / CONFIG).write_text(json.dumps(config | facts))

        return change

    assert "use_dora" in broken(edit(use_dora=True))
    assert "r and lora_alpha" in broken(edit(r=0))
    assert "no LoRA of a prior" in broken(edit(unclip_stage="clip"))
    assert "shape" in broken(edit(r=3))
    assert WEIGHTS in broken(lambda folder: (folder / WEIGHTS).unlink())
    assert "damaged" in broken(lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100))
    pipe = UnCLIPPipeline.from_pretrained()  # of other sizes
    with pytest.raises(ValueError, match="but here it is|lacks"):
        pipe.load_lora(good)
    with pytest.raises(ValueError, match="weight"):
        pipe.load_lora(good, float("nan"))
    words = ["prior", "--config", "tiny/prior", f"clip={tiny_clip}", f"output={tmp_path / 'x'}"]
    config = tiny_config("prior")
    words += [f"data.source={config.data.source}"]
    assert main([*words, "lora.rank=2"]) == 2 and "init=" in capsys.readouterr().err
    more = [f"init={base}", "lora.rank=2", "lora.targets=[to_z]"]
    assert main([*words, *more]) == 2
    line = capsys.readouterr().err
    assert "lora.targets" in line and "to_q" in line
