"""The upsamplers: convolutions only, any size, corrections to the resized small picture."""

import pytest
import torch

from unclip import Upsampler
from unclip.models.shock import smooth, steepen
from unclip.models.space_to_depth import depth_to_space, space_to_depth
from unclip.models.upsampler import resize

TINY = dict(size=64, channels=(32, 32), num_blocks=1, dropout=0.0)


@pytest.mark.parametrize("stem", [1, 2, 4, 8])
def test_space_to_depth_round_trip(stem):
    x = torch.randn(2, 3, 16, 32)
    h = space_to_depth(x, stem)
    assert h.shape == (2, 3 * stem**2, 16 // stem, 32 // stem)
    assert torch.equal(depth_to_space(h, stem), x)
    cell = h[0, :, 0, 0].view(3, stem, stem)
    assert torch.equal(cell, x[0, :, :stem, :stem])


def test_space_to_depth_needs_whole_cells():
    with pytest.raises(ValueError, match="cells of 4"):
        space_to_depth(torch.zeros(1, 3, 6, 8), 4)


def test_no_attention_anywhere():
    names = [type(module).__name__ for module in Upsampler(**TINY).modules()]
    assert not [name for name in names if "ttention" in name]


@pytest.mark.parametrize("prediction", ["eps", "x_0"])
@pytest.mark.parametrize("side", [16, 64, 96])
def test_crops_and_whole_pictures(prediction, side, shaken):
    upsampler = shaken(Upsampler(**TINY, prediction=prediction))
    x_t, x_low = torch.randn(2, 3, side, side), torch.rand(2, 3, side // 4, side // 4)
    with torch.no_grad():
        out = upsampler(x_t, torch.tensor([3, 900]), x_low)
        alone = upsampler(x_t[1:], torch.tensor([900]), x_low[1:])
        other = upsampler(x_t, torch.tensor([3, 900]), 1 - x_low)
    assert out.shape == x_t.shape
    assert torch.allclose(out[1:], alone, atol=1e-5)
    assert not torch.allclose(out, other, atol=1e-3)


@pytest.mark.parametrize("prediction", ["eps", "x_0"])
@torch.no_grad()
def test_what_is_resized_need_not_be_again(prediction, shaken):
    upsampler = shaken(Upsampler(**TINY, prediction=prediction))
    x_t, x_low, t = torch.randn(1, 3, 64, 64), torch.rand(1, 3, 16, 16), torch.tensor([500])
    resized = upsampler.resized(x_low)
    expected = upsampler(x_t, t, x_low)
    assert torch.equal(upsampler(x_t, t, x_low * torch.nan, x_resized=resized), expected)


def test_x_0_begins_at_the_resized_small_picture():
    upsampler = Upsampler(**TINY, prediction="x_0", stem=4)
    x_low = torch.rand(1, 3, 16, 16) * 2 - 1
    out = upsampler(torch.randn(1, 3, 64, 64), torch.tensor([500]), x_low)
    assert torch.allclose(out, resize(x_low, 64), atol=1e-6)


@torch.no_grad()
def test_a_readout_begins_as_the_network_without_it_and_is_heard(shaken):
    plain = shaken(Upsampler(**TINY, stem=8, prediction="x_0", separate_last_step=True))
    network = Upsampler.with_readout(plain, 48).eval()
    given = torch.randn(2, 3, 32, 32), torch.tensor([0, 900]), torch.rand(2, 3, 8, 8)
    assert torch.equal(network(*given), plain.eval()(*given))
    torch.nn.init.normal_(network.unet.conv_out.out.weight, std=0.1)
    changed = (network(*given) - plain(*given)).abs().amax(dim=(1, 2, 3))
    assert changed[0] == 0 and changed[1] > 0.01  # the last step has a network of its own


@torch.no_grad()
def test_a_shock_filter_is_part_of_the_network_and_works_in_its_dtype(shaken):
    network = shaken(Upsampler(**TINY, prediction="x_0", shock_passes=1))
    plain = Upsampler.from_config(network.config, shock_passes=None)
    plain.load_state_dict(network.state_dict())
    given = torch.randn(1, 3, 32, 32), torch.tensor([900]), torch.rand(1, 3, 8, 8)
    expected = steepen(smooth(plain.eval()(*given)), 1)
    assert torch.equal(network(*given), expected)
    half = network.to(torch.bfloat16)(given[0].bfloat16(), given[1], given[2].bfloat16())
    assert half.dtype == torch.bfloat16 and (half - expected).abs().mean() < 0.02


def test_noise_level_is_told(shaken):
    upsampler = shaken(Upsampler(**TINY, noise_conditioning=True))
    x_t, x_low, t = torch.randn(1, 3, 32, 32), torch.rand(1, 3, 8, 8), torch.tensor([10])
    with torch.no_grad():
        clean = upsampler(x_t, t, x_low)
        assert torch.equal(clean, upsampler(x_t, t, x_low, torch.tensor([0])))
        assert not torch.allclose(clean, upsampler(x_t, t, x_low, torch.tensor([600])), atol=1e-6)


def test_resize_keeps_flat_colours_and_range():
    assert torch.allclose(resize(torch.full((1, 3, 8, 8), 0.25), 32), torch.tensor(0.25), atol=1e-5)
    assert resize(torch.randn(1, 3, 8, 8).sign(), 32).abs().max() <= 1
    assert resize(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16), 32).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prediction": "noise"}, "prediction"),
        ({"stem": 4}, "stem"),
        ({"norm_groups": 24}, "norm_groups"),
        ({"shock_passes": 0, "prediction": "x_0"}, "shock_passes must"),
        ({"shock_passes": 2}, "shock_passes 2 needs"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        Upsampler(**{**TINY, **change})


def test_save_and_load(tmp_path, shaken):
    upsampler = shaken(Upsampler(**TINY))
    upsampler.save_pretrained(tmp_path)
    loaded = Upsampler.from_pretrained(tmp_path).eval()
    arguments = torch.randn(1, 3, 32, 32), torch.tensor([5]), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(loaded(*arguments), upsampler(*arguments), atol=1e-5)
    for name, tensor in upsampler.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_karlo_size():
    """Karlo's super-resolution fits by construction: 692 M parameters without attention."""
    with torch.device("meta"):
        upsampler = Upsampler()
    count = sum(parameter.numel() for parameter in upsampler.parameters())
    assert count == pytest.approx(692e6, rel=0.005)
    assert len(upsampler.unet.state_dict()) == 408
