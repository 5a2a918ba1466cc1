"""dtype="auto" is bfloat16 where the device multiplies it faster, and float32 elsewhere."""

import pytest
import torch

from unclip import UnCLIPPipeline
from unclip.pipeline.memory import chosen_dtype


@pytest.mark.parametrize(
    ("has", "chosen"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
    ],
)
def test_a_processor_says_what_it_has(has, chosen, monkeypatch, model_folder):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    pipe = UnCLIPPipeline.from_pretrained(model_folder, dtype="auto")
    assert pipe.decoder.dtype == pipe.upsampler_1024.dtype == chosen
    assert pipe.prior.dtype == torch.float32


def test_an_old_torch_says_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert chosen_dtype("auto") == torch.float32


@pytest.mark.parametrize("emulated", [False, True])
def test_a_gpu_that_emulates_is_not_faster(emulated, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: not emulated
    )
    chosen = torch.float32 if emulated else torch.bfloat16
    assert chosen_dtype("auto", "cuda:1") == chosen
    assert chosen_dtype("auto", "mps") == torch.float32


def test_another_word_is_refused(model_folder):
    with pytest.raises(ValueError, match="dtype: give"):
        UnCLIPPipeline.from_pretrained(model_folder, dtype="fast")
