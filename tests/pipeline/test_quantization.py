"""Networks in fewer bits: by torchao's own means on this CPU, near the whole ones, and smaller."""

import sys

import pytest
import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig

from unclip import UnCLIPPipeline
from unclip.pipeline.arguments import STAGES
from unclip.pipeline.lora import check_whole
from unclip.pipeline.quantization import (
    configs_by_stage,
    is_quantized,
    num_bytes,
    quantize,
    quantize_networks,
)

torchao = pytest.importorskip(
    "torchao.quantization", reason="of the extra quant: make test EXTRAS=dev,quant VENV=.venv-quant"
)
ARGUMENTS = {"seeds": 7, "size": 256, "output_type": "pt"}


def of_int8():
    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


def loaded(folder, config, **arguments):
    pipe = UnCLIPPipeline.from_pretrained(folder, quantization_config=config, **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("word", ["int8", pytest.param("float8", marks=pytest.mark.slow)])
def test_quantized_stages_are_near_the_whole_ones_and_smaller(pipe, model_folder, word, tmp_path):
    small = loaded(model_folder, word)
    assert all(is_quantized(small.components[stage]) for stage in STAGES)
    assert not is_quantized(small.clip)
    text, x = pipe.encode(["a red apple"]), torch.randn(2, 32)
    with torch.no_grad():
        t, cond = torch.tensor([500, 20]), text.expand(2)
        exact, rounded = (one.prior(x, t, cond) for one in (pipe, small))
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.05
    for stage in STAGES:
        assert num_bytes(small.components[stage]) < num_bytes(pipe.components[stage])
    assert num_bytes(small.prior) < 0.5 * num_bytes(pipe.prior)
    assert num_bytes(pipe.prior) == 4 * sum(p.numel() for p in pipe.prior.parameters())
    drawn = small("a red apple", **ARGUMENTS).images
    assert torch.isfinite(drawn).all() and not torch.equal(drawn, pipe("", **ARGUMENTS).images)
    assert torch.equal(drawn, small("a red apple", **ARGUMENTS).images)
    with pytest.raises(ValueError, match="^prior: its weights are quantized; save the model"):
        small.save_pretrained(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_the_library_s_own_configs_choose_the_stages():
    by_backend = {"quant_backend": "bitsandbytes_8bit", "quant_kwargs": {"load_in_8bit": True}}
    one = PipelineQuantizationConfig(**by_backend, components_to_quantize=["decoder"])
    ways = [
        (of_int8(), set(STAGES)),
        ({"prior": of_int8(), "decoder": "int8"}, {"prior", "decoder"}),
        (PipelineQuantizationConfig(quant_mapping={"prior": of_int8()}), {"prior"}),
        (one, {"decoder"}),
    ]
    assert all(set(configs_by_stage(config)) == stages for config, stages in ways)


def test_layers_that_are_named_stay_whole(own_pipe):
    config = {
        "prior": TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=["proj_in"])
    }
    quantize_networks(own_pipe.components, config)
    kinds = {name: type(p.data) for name, p in own_pipe.prior.named_parameters() if p.ndim == 2}
    whole = {name for name, kind in kinds.items() if kind is torch.Tensor}
    assert any("proj_in" in name for name in whole) and len(whole) < len(kinds)
    assert not any("attn" in name for name in whole)
    assert config["prior"].modules_to_not_convert == ["proj_in"]  # the config is the user's
    assert not is_quantized(own_pipe.decoder)
    own_pipe.to("cpu", torch.bfloat16)
    drawn = own_pipe("a red apple", **{**ARGUMENTS, "size": 64})
    assert torch.isfinite(drawn.images).all() and own_pipe.prior.dtype == torch.float32


def test_a_config_that_no_layer_follows(own_pipe):
    names = [name for name, _ in own_pipe.prior.named_children()]
    with pytest.raises(ValueError, match="every layer of prior"):
        quantize(own_pipe.prior, TorchAoConfig(torchao.Int8WeightOnlyConfig(), names), "prior")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("int7", "int8"),
        (8, "TorchAoConfig"),
        ({"prior": 8}, "prior"),
        ({"clip": of_int8()}, "'clip' cannot be quantized; give prior"),
        ({"unet": of_int8()}, "'unet' cannot be quantized"),
        (PipelineQuantizationConfig(quant_mapping={"unet": of_int8()}), "'unet'"),
    ],
)
def test_configs_that_cannot_be_followed(config, words):
    with pytest.raises(ValueError, match="^quantization_config: ") as caught:
        configs_by_stage(config)
    assert words in str(caught.value)


def test_what_is_no_longer_whole_is_not_quantized(own_pipe, make_pipe):
    own_pipe.quantize({"decoder": "int8"})
    with pytest.raises(ValueError, match="^quantization_config: the decoder is quantized already"):
        own_pipe.quantize({"prior": "int8", "decoder": "int8"})
    assert not is_quantized(own_pipe.prior)  # nothing was begun
    offloaded = make_pipe()
    offloaded.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="^quantization_config: the weights of the prior are offl"):
        offloaded.quantize({"prior": "int8"})
    offloaded.remove_all_hooks()
    offloaded.quantize({"prior": "int8"})
    assert is_quantized(offloaded.prior)


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match=r"pip install 'unclip\[quant\]'"):
        configs_by_stage("int8")


def test_a_lora_is_added_before(own_pipe):
    check_whole(own_pipe.prior, "prior")
    own_pipe.quantize({"prior": "int8"})
    with pytest.raises(ValueError, match="the prior is quantized; add a LoRA first"):
        check_whole(own_pipe.prior, "prior")
