"""The prior that reads its text once gives what diffusers' transformer gives."""

import pytest
import torch
from diffusers import PriorTransformer
from torch.utils.flop_counter import FlopCounterMode

from unclip.models.prior_transformer import Prefix, PrefixPriorTransformer

DIM, CONTEXT = 24, 77
LENGTHS = (77, 5, 1)  # real tokens of the three captions


def make(cls=PrefixPriorTransformer, **settings):
    torch.manual_seed(0)
    network = cls(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        embedding_dim=DIM,
        num_embeddings=CONTEXT,
        **settings,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def captions(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    z_txt = torch.randn(len(lengths), DIM, generator=generator)
    states = torch.randn(len(lengths), CONTEXT, DIM, generator=generator)
    mask = torch.arange(CONTEXT) < torch.tensor(lengths)[:, None]
    return {"proj_embedding": z_txt, "encoder_hidden_states": states, "attention_mask": mask}


def noised(num, seed=2):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num, DIM, generator=generator)
    return z, torch.randint(1000, (num,), generator=generator)


@pytest.mark.parametrize("norm_in_type", [None, "layer"])
@pytest.mark.parametrize("lengths", [LENGTHS, (4, 3), (0, 2), (0,)])
@torch.no_grad()
def test_equals_the_library(lengths, norm_in_type):
    network = make(norm_in_type=norm_in_type)
    library = make(PriorTransformer, norm_in_type=norm_in_type)
    text, prefix = captions(lengths), Prefix()
    for seed in range(3):  # the second and the third read no text
        z, t = noised(len(lengths), seed)
        expected = library(z, t, **text).predicted_image_embedding
        found = network(z, t, **text, prefix=prefix).predicted_image_embedding
        assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
    assert torch.equal(network(z, t, **text, return_dict=False)[0], expected)


@torch.no_grad()
def test_rows_share_the_captions_that_they_belong_to():
    network, text = make(), captions()
    rows = torch.tensor([2, 0, 0, 1, 2])
    z, t = noised(len(rows))
    found = network(z, t, **text, prefix=Prefix(rows)).predicted_image_embedding
    spread = {name: value[rows] for name, value in text.items()}
    expected = network(z, t, **spread).predicted_image_embedding
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[1], found[2], atol=1e-3)


@torch.no_grad()
def test_a_filled_prefix_asks_for_no_text():
    network, prefix = make(), Prefix()
    z, t = noised(3)
    expected = network(z, t, **captions(), prefix=prefix).predicted_image_embedding
    assert torch.equal(network(z, t, prefix=prefix).predicted_image_embedding, expected)
    one_time = network(z, t[:1].expand(3), prefix=prefix).predicted_image_embedding
    assert torch.equal(network(z, t[0], prefix=prefix).predicted_image_embedding, one_time)


def test_gradients_are_those_of_the_library():
    network = make()
    text = captions((5, 3))
    z, t = noised(2)
    gradients = []
    for prefix in (None, Prefix()):
        network.zero_grad()
        network(z, t, **text, prefix=prefix).predicted_image_embedding.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    for plain, cached in zip(*gradients, strict=True):
        assert torch.allclose(plain, cached, rtol=1e-3, atol=1e-6 * largest)


def test_gradients_in_half_precision():
    """Plain products take the place of the fused kernel there: the same gradients, to rounding."""
    network = make()
    text = captions((5, 3))
    z, t = noised(2)
    gradients = []
    for half in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            predicted = network(z, t, **text, prefix=Prefix()).predicted_image_embedding
        predicted.float().square().sum().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        )
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


@torch.no_grad()
def test_work_of_a_schedule():
    """25 steps over 77 tokens of text: the text's work is done once, a step's over three tokens."""
    network, text = make(), captions((77,))
    z, t = noised(1)

    def work(prefix, steps):
        with FlopCounterMode(display=False) as counter:
            for _ in range(steps):
                network(z, t, **text, prefix=prefix)
        return counter.get_total_flops()

    assert work(None, 25) > 12 * work(Prefix(), 25)
    short = {name: value[1:2] for name, value in captions().items()}
    with FlopCounterMode(display=False) as counter:
        network(z, t, **short, prefix=Prefix())
    assert counter.get_total_flops() < work(Prefix(), 1) / 5  # what only pads is not read


def test_gradient_checkpointing_changes_no_gradient():
    network, text = make().train(), captions()
    z, t = noised(len(LENGTHS))

    def gradients(prefix):
        network.zero_grad()
        network(z, t, **text, prefix=prefix).predicted_image_embedding.square().mean().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    def kept(prefix) -> int:
        """Numbers that a forward keeps for its backward."""
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            network(z, t, **text, prefix=prefix)
        return sum(sizes)

    plain, num_kept = gradients(None), kept(None)
    network.enable_gradient_checkpointing()
    for prefix in (None, Prefix()):
        found = gradients(prefix)
        assert len(found) == len(plain) > 30
        for one, other in zip(found, plain, strict=True):
            assert torch.allclose(one, other, atol=1e-6 + 1e-4 * other.abs().max())
    assert kept(None) < num_kept / 3
