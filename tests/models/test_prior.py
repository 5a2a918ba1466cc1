"""The prior: a causal sequence, padding unseen, embeddings normalised and back."""

import math

import pytest
import torch

from unclip import Prior


@pytest.fixture
def prior(shaken):
    torch.manual_seed(0)
    return shaken(Prior(embedding_dim=32, context=12, num_layers=2, num_heads=2, head_dim=16))


def run(prior, text, z=None, t=500):
    z = torch.ones(len(text.z_txt), 32) if z is None else z
    with torch.no_grad():
        return prior(z, torch.full((len(z),), t), text)


def test_every_condition_matters(prior, text):
    base = text(8)
    out = run(prior, base)
    assert not torch.allclose(out, run(prior, base, t=100), atol=1e-3)
    assert not torch.allclose(out, run(prior, base, z=-torch.ones(1, 32)), atol=1e-3)
    other = base._replace(z_txt=base.z_txt + 1)
    assert not torch.allclose(out, run(prior, other), atol=1e-3)
    other = base._replace(text_states=base.text_states + 1)
    assert not torch.allclose(out, run(prior, other), atol=1e-3)


@torch.no_grad()
def test_further_layers_begin_as_the_prior_without_them_and_are_heard(prior, text):
    deeper = Prior.with_layers(prior, 4).eval()
    assert torch.equal(run(deeper, text(8)), run(prior, text(8)))
    for block in deeper.transformer.transformer_blocks[2:]:
        before = run(deeper, text(8))
        torch.nn.init.normal_(block.ff.net[-1].weight, std=0.1)
        assert not torch.allclose(run(deeper, text(8)), before, atol=1e-3)
    with pytest.raises(ValueError, match="num_layers: give more than the 2"):
        Prior.with_layers(prior, 2)


def test_padding_does_not_matter(prior, text):
    one = text(5)
    states = one.text_states.clone()
    states[:, 5:] = 100.0
    assert torch.allclose(run(prior, one), run(prior, one._replace(text_states=states)), atol=1e-5)


def test_later_tokens_never_change_earlier_outputs(prior, text):
    """The states at every place before a changed one stay as they were."""
    seen = []
    prior.transformer.norm_out.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    base = text(12)
    states = base.text_states.clone()
    states[:, 6] += 1
    run(prior, base)
    run(prior, base._replace(text_states=states))
    assert torch.allclose(seen[0][:, :6], seen[1][:, :6], atol=1e-6)
    assert not torch.allclose(seen[0][:, 6], seen[1][:, 6], atol=1e-3)


def test_the_sequence_ends_in_timestep_noise_and_query(prior, text):
    """A change of z_img_t reaches only its own place and the query's, the last two."""
    seen = []
    prior.transformer.norm_out.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    run(prior, text(12))
    run(prior, text(12), z=-torch.ones(1, 32))
    changed = [
        not torch.allclose(a, b, atol=1e-5) for a, b in zip(seen[0][0], seen[1][0], strict=True)
    ]
    assert len(changed) == 12 + 4 and changed == [False] * 14 + [True] * 2


def test_a_caption_does_not_depend_on_its_batch(prior, text):
    both = text(5, 9)
    assert torch.allclose(run(prior, both)[1:], run(prior, both.select(slice(1, 2))), atol=1e-5)


def test_statistics(prior, tmp_path):
    mean, std = torch.randn(32), torch.rand(32) + 0.1
    prior.set_statistics(mean, std)
    z = torch.randn(4, 32)
    assert torch.allclose(prior.normalize(z), (z - mean) / std, atol=1e-5)
    assert torch.allclose(prior.denormalize(prior.normalize(z)), z, atol=1e-5)
    prior.save_pretrained(tmp_path)
    assert torch.equal(Prior.from_pretrained(tmp_path).normalize(z), prior.normalize(z))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_statistics_that_cannot_be_divided_by(prior, std):
    with pytest.raises(ValueError, match="std"):
        prior.set_statistics(torch.zeros(32), torch.full((32,), std))


def test_paper_scale():
    """17.2 at 1024 dimensions: unit vectors come to an RMS of 0.5375 in every dimension."""
    prior = Prior(1024, context=4, num_layers=1, num_heads=1, head_dim=8, normalization="scale")
    z = torch.nn.functional.normalize(torch.randn(3, 1024), dim=1)
    assert torch.allclose(prior.normalize(z), 17.2 * z, rtol=1e-5)
    assert prior.normalize(z).pow(2).mean().sqrt().item() == pytest.approx(17.2 / math.sqrt(1024))


def test_unknown_normalization_is_named():
    with pytest.raises(ValueError, match="normalization"):
        Prior(32, 12, 1, 1, 8, normalization="batch")


def test_karlo_size():
    """Karlo's prior fits by construction: 1022 M parameters (table of its README: 1 B)."""
    with torch.device("meta"):
        prior = Prior()
    count = sum(p.numel() for p in prior.parameters())
    assert count == pytest.approx(1022e6, rel=0.005)
    assert len(prior.transformer.state_dict()) == 338
