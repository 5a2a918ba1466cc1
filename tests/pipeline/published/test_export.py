"""There and back: ours as diffusers' own classes load it, and every layout as ours."""

import json
import shutil

import pytest
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip import UnCLIPPipeline as TheirPipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from unclip import UnCLIPPipeline, UnCLIPTextProjModel, Upsampler
from unclip.pipeline.loading import ModelFileError
from unclip.pipeline.published.conversion import check_equal, convert, networks_of, states_of
from unclip.pipeline.published.diffusers_export import export_to_diffusers
from unclip.pipeline.published.sources import read_prior

CLASSES = {
    "prior": PriorTransformer,
    "decoder": UNet2DConditionModel,
    "text_proj": UnCLIPTextProjModel,
    "super_res_first": UNet2DModel,
    "super_res_last": UNet2DModel,
    "text_encoder": CLIPTextModelWithProjection,
}


def equal_states(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_ours_loads_in_diffusers_classes_and_comes_back(karlo, tmp_path):
    ours = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    export_to_diffusers(ours, tmp_path / "exported")
    for name, cls in CLASSES.items():
        network = cls.from_pretrained(tmp_path / "exported" / name)
        assert equal_states(network.state_dict(), karlo.text.components[name].state_dict()), name
        network.save_pretrained(tmp_path / "theirs" / name)
    CLIPTokenizer.from_pretrained(tmp_path / "exported/tokenizer")
    theirs = TheirPipeline.from_pretrained(tmp_path / "exported")
    assert theirs.decoder_scheduler.config.variance_type == "learned_range"
    for name in ("tokenizer", "prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        getattr(theirs, name).save_pretrained(tmp_path / "theirs" / name)
    index = (tmp_path / "exported/model_index.json").read_text()
    (tmp_path / "theirs/model_index.json").write_text(index)
    again = UnCLIPPipeline.from_pretrained(tmp_path / "theirs")
    before, after = (states_of(networks_of(pipe.components)) for pipe in (ours, again))
    assert equal_states(before, after)


def test_a_folder_for_variations(karlo, tmp_path):
    ours = UnCLIPPipeline.from_pretrained(karlo.variations_folder)
    export_to_diffusers(ours, tmp_path / "exported")
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "exported/image_encoder")
    assert equal_states(tower.state_dict(), karlo.variations.image_encoder.state_dict())
    again = UnCLIPPipeline.from_pretrained(tmp_path / "exported")
    assert again.prior is None and again.config.image_mean == pytest.approx(ours.config.image_mean)


def test_one_network_for_all_steps_comes_back_as_one(karlo, tmp_path):
    ours = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    ours.upsampler_256.unet_last = None
    ours.upsampler_256.register_to_config(separate_last_step=False)
    export_to_diffusers(ours, tmp_path / "exported")
    again = UnCLIPPipeline.from_pretrained(tmp_path / "exported")
    assert not again.upsampler_256.config.separate_last_step
    assert equal_states(ours.upsampler_256.state_dict(), again.upsampler_256.state_dict())


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("decoder", "stem", 2),
        ("decoder", "prediction", "v"),
        ("decoder", "z_img_scale", 5.0),
        ("decoder", "inpainting", True),
        ("upsampler_256", "noise_conditioning", True),
        ("upsampler_256", "readout", 8),
        ("prior", "schedule", "linear"),
    ],
)
def test_what_diffusers_cannot_be_is_refused(karlo, part, setting, value, tmp_path):
    ours = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    ours.components[part].register_to_config(**{setting: value})
    with pytest.raises(ValueError, match=f"{part}: its {setting} is {value!r}"):
        export_to_diffusers(ours, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["prior", "decoder", "upsampler_256"])
def test_weights_that_are_not_what_was_stored_are_not_exported(karlo, part, tmp_path):
    ours = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    ours.components[part].hf_quantizer = "what quantize() leaves there"
    with pytest.raises(ValueError, match=f"^{part}: its weights are quantized"):
        export_to_diffusers(ours, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_convert_karlo_and_continue_to_larger_pictures(karlo, tmp_path):
    """Karlo's 256 pixels (32 here) go on through an upsampler of ours."""
    last = Upsampler(128, stem=4, channels=(8, 8), num_blocks=1, norm_groups=8, prediction="x_0")
    last.save_pretrained(tmp_path / "last")
    result = convert(karlo.text_folder, tmp_path / "ours", upsampler_1024=tmp_path / "last")
    assert result["layout"] == "karlo" and result["tensors"] > 300 and result["left_out"] is None
    pipe = UnCLIPPipeline.from_pretrained(tmp_path / "ours")
    pipe.set_progress_bar_config(disable=True)
    direct = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    direct.set_progress_bar_config(disable=True)
    steps = {f"{stage}_num_inference_steps": 2 for stage in ("prior", "decoder", "upsampler_256")}
    large = pipe("a dog", seeds=1, output_type="pt", upsampler_1024_num_inference_steps=1, **steps)
    small = direct("a dog", seeds=1, output_type="pt", **steps)
    assert large.images.shape[-1] == 128
    assert torch.equal(large.low_res[32], small.images)
    assert pipe.config.default_guidance == {"prior": 4.0, "decoder": 8.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convert_to_half(karlo, dtype, tmp_path):
    convert(karlo.text_folder, tmp_path / "half", dtype=dtype)
    pipe = UnCLIPPipeline.from_pretrained(tmp_path / "half", dtype=dtype)
    state, stored = karlo.text.decoder.state_dict(), pipe.decoder.unet.state_dict()
    assert all(torch.equal(state[name].to(dtype), weight) for name, weight in stored.items())


def test_convert_a_prior_alone(kandinsky_folder, karlo, tmp_path):
    result = convert(kandinsky_folder, tmp_path / "prior")
    assert result["layout"] == "kandinsky"
    found = read_prior(tmp_path / "prior")
    assert (found["steps"], found["guidance"]) == (25, 4.0)
    pipe = UnCLIPPipeline.from_pretrained(karlo.text_folder, prior=tmp_path / "prior")
    assert pipe.prior_scheduler.config.clip_sample_range == 10.0
    with pytest.raises(ValueError, match="holds a prior alone"):
        UnCLIPPipeline.from_pretrained(tmp_path / "prior")
    with pytest.raises(ValueError, match="to: "):
        convert(kandinsky_folder, tmp_path / "other", to="diffusers")


def test_what_was_lost_on_the_way_is_seen(tmp_path):
    a = {"x.weight": torch.ones(2), "x.bias": torch.zeros(1)}
    for other in ({"x.weight": torch.ones(2)}, {**a, "x.bias": torch.ones(1)}):
        with pytest.raises(ModelFileError, match="x.bias"):
            check_equal(tmp_path, a, other, torch.float32)
    assert check_equal(tmp_path, a, dict(a), torch.float32) == {"tensors": 2, "parameters": 3}


def test_command(karlo, tmp_path, capsys):
    from unclip_sample.convert import main

    words = [str(karlo.text_folder), str(tmp_path / "out")]
    assert main([*words, "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["layout"] == "karlo" and result["parameters"] > 100_000
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err
    assert main([str(tmp_path / "out"), str(tmp_path / "back"), "--to", "diffusers"]) == 0
    assert "read back and equal" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.startswith("unclip-convert: no model in")
    (tmp_path / "out/decoder/config.json").write_text("{")
    assert main([str(tmp_path / "out"), str(tmp_path / "c")]) == 1
    assert "decoder/config.json" in capsys.readouterr().err


def test_a_repository_of_the_hub(karlo, tmp_path, monkeypatch):
    """What would be uploaded: the model whole, a card, and no pickle."""
    seen = {}

    class Hub:
        def create_repo(self, name, **given):
            seen.update(given, name=name)

        def upload_folder(self, folder_path, **given):
            shutil.copytree(folder_path, tmp_path / given["repo_id"])
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    ours = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    ours.register_to_config(default_guidance_interval=[0, 900])
    with pytest.raises(ValueError, match="license: "):
        ours.push_to_hub("me/karlo", license="")
    for to in ("unclip", "diffusers"):
        assert ours.push_to_hub(f"me/{to}", license="openrail++", to=to) == "https://hub/commit/1"
        folder = tmp_path / "me" / to
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlicense: openrail++\n") and "| decoder | Decoder | " in card
        assert ("is guided from t = 900 to 0." in card) == (to == "unclip")
        assert "as CLIP gives them" in card and "| upsampler_256 | 7 |  |" in card
        again = UnCLIPPipeline.from_pretrained(folder)
        before, after = (states_of(networks_of(pipe.components)) for pipe in (ours, again))
        assert equal_states(before, after)
        kinds = {path.suffix for path in folder.rglob("*.*") if path.is_file()}
        assert kinds <= {".json", ".safetensors", ".md"}
    assert seen == {"private": False, "exist_ok": True, "name": "me/diffusers"}
