"""LoRA on offloaded and quantized weights: taken away, or refused by what must be done first."""

import json

import pytest
import safetensors.torch
import torch

from unclip.pipeline.lora import CONFIG, WEIGHTS

LAYER = "unet.mid_block.resnets.0.time_emb_proj"


@pytest.fixture
def lora(own_pipe, tmp_path):
    """The folder of a LoRA of rank 1 that changes one layer of the decoder."""
    weight = own_pipe.decoder.get_submodule(LAYER).weight
    factors = {"A": torch.ones(1, weight.shape[1]), "B": torch.ones(weight.shape[0], 1)}
    tensors = {f"{LAYER}.lora_{half}.weight": factor for half, factor in factors.items()}
    config = {"peft_type": "LORA", "unclip_stage": "decoder", "r": 1, "lora_alpha": 1.0}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS)
    return tmp_path


def test_a_lora_is_not_taken_from_weights_out_of_reach(own_pipe, lora):
    layer = own_pipe.decoder.get_submodule(LAYER)
    before = layer.weight.detach().clone()
    own_pipe.load_lora(lora)
    assert not torch.equal(layer.weight, before)
    own_pipe.enable_sequential_cpu_offload(device="cpu")
    for _ in range(2):  # what it has added is still known
        with pytest.raises(ValueError, match=r"^lora: unload it before .* remove_all_hooks\(\)"):
            own_pipe.unload_lora()
    own_pipe.remove_all_hooks()
    own_pipe.unload_lora()
    assert torch.equal(layer.weight, before)


def test_a_lora_is_not_taken_from_quantized_weights(own_pipe, lora):
    own_pipe.load_lora(lora)
    own_pipe.decoder.hf_quantizer = object()  # as quantize() leaves it
    with pytest.raises(ValueError, match=r"^lora: the decoder is quantized; unload it before"):
        own_pipe.unload_lora()


def test_a_lora_is_taken_from_weights_that_wait(own_pipe, lora):
    layer = own_pipe.decoder.get_submodule(LAYER)
    before = layer.weight.detach().clone()
    own_pipe.load_lora(lora)
    own_pipe.enable_model_cpu_offload(device="cpu")
    own_pipe.unload_lora()
    assert torch.equal(layer.weight, before)
    own_pipe.unload_lora()  # nothing is left to take
