"""Our layers in the library's U-Nets give what the library's own give, with less work."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch.utils.flop_counter import FlopCounterMode

from unclip.models.layers import (
    ContextAttention,
    ResidualBlock,
    attend,
    attention_layers,
    compile_layers,
    context_keys_and_values,
    doubled,
    doubling_pays,
    quickest_layout,
    read_values,
    take_over,
)

P, REAL = 9, 6  # tokens of the context, and those that are real in the longest caption
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def randomize(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def conditional(**settings):
    """Karlo's kinds of blocks, two levels, with a shortcut, a step down and a step up."""
    return randomize(
        UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(32, 64),
            cross_attention_dim=24,
            class_embed_type="identity",
            attention_head_dim=16,
            resnet_time_scale_shift="scale_shift",
            in_channels=3,
            out_channels=3,
            **settings,
        )
    )


def inputs(size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, size, size, generator=generator)
    context = torch.randn(2, P, 24, generator=generator)
    mask = torch.arange(P) < torch.tensor([[REAL], [2]])
    labels = torch.randn(2, 128, generator=generator)
    return {
        "sample": x,
        "timestep": torch.tensor([700, 3]),
        "encoder_hidden_states": context,
        "class_labels": labels,
        "attention_mask": mask,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradients", [False, True])
def test_a_decoder_is_the_library_s(layout, gradients):
    library = conditional().to(memory_format=layout)
    ours = copy.deepcopy(library)
    take_over(ours)
    assert sum(isinstance(module, ResidualBlock) for module in ours.modules()) == 10
    assert all(isinstance(layer.processor, ContextAttention) for layer in attention_layers(ours))
    assert list(ours.state_dict()) == list(library.state_dict())
    with torch.set_grad_enabled(gradients):
        expected, found = library(**inputs()).sample, ours(**inputs()).sample
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    if gradients:
        expected.square().sum().backward(), found.square().sum().backward()
        for theirs, own in zip(library.parameters(), ours.parameters(), strict=True):
            assert torch.allclose(own.grad, theirs.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale_shift", ["default", "scale_shift"])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_an_upsampler_is_the_library_s(layout, scale_shift):
    library = randomize(
        UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            down_block_types=["ResnetDownsampleBlock2D"] * 2,
            up_block_types=["ResnetUpsampleBlock2D"] * 2,
            block_out_channels=(32, 64),
            add_attention=False,
            resnet_time_scale_shift=scale_shift,
        )
    ).to(memory_format=layout)
    ours = copy.deepcopy(library)
    take_over(ours)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    kept = x.clone()
    expected, found = (network(x, 500).sample for network in (library, ours))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(x, kept)  # what a block is given stays as it was


@torch.no_grad()
def test_remembered_keys_and_values_stand_for_the_real_tokens():
    network = conditional()
    take_over(network)
    given = inputs()
    expected = network(**given).sample
    given["encoder_hidden_states"] = given["encoder_hidden_states"][:, :REAL]
    given["attention_mask"] = given["attention_mask"][:, :REAL]
    found = context_keys_and_values(network, given["encoder_hidden_states"])
    given["encoder_hidden_states"] = torch.full((2, REAL, 24), torch.nan)  # nobody looks at it
    remembered = network(**given, cross_attention_kwargs={"keys_and_values": found}).sample
    assert torch.allclose(remembered, expected, atol=1e-6)


@torch.no_grad()
def test_remembering_saves_the_projections_of_the_context():
    network = conditional()
    take_over(network)
    found = context_keys_and_values(network, inputs()["encoder_hidden_states"])

    def flops(**more):
        with FlopCounterMode(display=False) as counter:
            network(**inputs(), **more)
        return counter.get_total_flops()

    saved = flops() - flops(cross_attention_kwargs={"keys_and_values": found})
    widths = sum(layer.inner_dim for layer in attention_layers(network))
    assert saved == 2 * 2 * 2 * P * 24 * widths  # keys and values, of two captions


def test_other_processors_and_offloading_remember_nothing():
    network = conditional()
    take_over(network)
    context = inputs()["encoder_hidden_states"]
    network.mid_block._diffusers_hook = object()
    assert context_keys_and_values(network, context) is None
    del network.mid_block._diffusers_hook
    network.set_attention_slice(1)
    assert context_keys_and_values(network, context) is None


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_doubling_is_a_convolution_of_repeated_cells(layout):
    conv = torch.nn.Conv2d(6, 4, 3, padding=1).to(memory_format=layout)
    x = torch.randn(2, 6, 5, 7).to(memory_format=layout)
    expected = conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(doubled(conv, x), expected, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_block_that_doubles_a_large_grid_is_the_library_s(layout):
    library = randomize(ResnetBlock2D(in_channels=32, temb_channels=8, up=True))
    ours = copy.deepcopy(library.to(memory_format=layout))
    take_over(ours)
    x, temb = torch.randn(1, 32, 32, 40).to(memory_format=layout), torch.randn(1, 8)
    assert doubling_pays(ours.conv1, x) and not doubling_pays(ours.conv1, x[..., :8])
    assert not doubling_pays(ours.conv1, x.bfloat16())
    assert not doubling_pays(torch.nn.Sequential(ours.conv1), x)  # as peft has it in training
    kept = x.clone()
    with FlopCounterMode(display=False) as theirs:
        expected = library(x, temb)
    with FlopCounterMode(display=False) as own:
        found = ours(x, temb)
    assert torch.allclose(found, expected, atol=1e-5) and torch.equal(x, kept)
    place = 2 * 32 * 32 * 4 * 32 * 40  # FLOPs of one weight a channel, at every place
    assert theirs.get_total_flops() - own.get_total_flops() == (9 - 4) * place


def test_attention_is_compiled_on_a_gpu_alone(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **settings: compiled.append(f) or f)
    compile_layers(conditional())
    assert not compiled  # the library's own layers are not ours to compile
    network = conditional()
    take_over(network)
    compile_layers(network)
    assert len(compiled) == 10 and attend not in compiled
    compiled.clear()
    compile_layers(network.to("meta"))
    assert compiled.count(attend) == len(attention_layers(network)) == len(compiled) - 10


@pytest.mark.parametrize("rows", [None, 1, 4])
def test_attention_by_plain_products_reads_the_same(rows):
    """What training in half precision does on a CPU, beside the fused kernel in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4, 8), (2, 3, 9, 8), (2, 3, 9, 8)]
    tensors = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    bias = None
    if rows is not None:
        bias = torch.randn(2, 1, rows, 9, generator=generator).masked_fill(
            torch.rand(2, 1, rows, 9, generator=generator) < 0.3, -1e4
        )
    expected = read_values(*(tensor.float() for tensor in tensors), bias)
    found = read_values(*(tensor.requires_grad_() for tensor in tensors), bias)
    assert found.grad_fn is not None and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    with torch.no_grad():
        torch.testing.assert_close(read_values(*tensors, bias), found, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("stem", "layout"), [(1, LAYOUTS[1]), (2, LAYOUTS[1]), (4, LAYOUTS[0])])
def test_small_grids_are_laid_out_in_order(stem, layout):
    network = torch.nn.Conv2d(4, 4, 3)
    network.config = SimpleNamespace(size=64, stem=stem)
    assert quickest_layout(network) == layout
