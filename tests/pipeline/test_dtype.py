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


def test_joined_networks_are_brought_to_a_dtype(make_pipe, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    for asked, dtype in (("auto", torch.bfloat16), (torch.float16, torch.float16)):
        pipe = make_pipe(dtype=asked)
        assert {pipe.decoder.dtype, pipe.upsampler_256.dtype, pipe.upsampler_1024.dtype} == {dtype}
        assert pipe.prior.dtype == pipe.clip.dtype == torch.float32
    assert make_pipe(decoder=pipe.decoder).decoder.dtype == torch.float16  # as it is given


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
