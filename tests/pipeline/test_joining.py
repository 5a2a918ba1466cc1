"""Calls of a network that are joined return what each returns alone."""

import pytest
import torch

from unclip.models.decoder import Context
from unclip.models.prior_transformer import Prefix
from unclip.pipeline import joining


def close(a, b):
    return torch.allclose(a, b, atol=1e-5)


def test_decoder_calls_join_at_different_steps(pipe):
    text = pipe.encode(["a red apple", "a rocket", "a cat"])
    generator = torch.Generator().manual_seed(1)
    calls = []
    for rows in (torch.tensor([0]), torch.tensor([1, 2])):
        x_t = torch.randn(len(rows), 3, 64, 64, generator=generator)
        t = torch.randint(1000, (len(rows),), generator=generator)
        z_img = torch.randn(len(rows), 32, generator=generator)
        calls.append((x_t, t, z_img, text.select(rows)))
    assert len({joining.kind_of(call) for call in calls}) == 1
    with torch.no_grad():
        together = joining.split(pipe.decoder(*joining.joined(calls)), calls)
        alone = [pipe.decoder(*call) for call in calls]
    assert [len(x) for x in together] == [1, 2]
    assert all(close(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("sliced", [False, True])
def test_decoder_calls_join_after_their_captions_are_read(own_pipe, sliced):
    if sliced:  # then there are no keys and values to join, but tokens
        own_pipe.decoder.unet.set_attention_slice(1)
    generator = torch.Generator().manual_seed(1)
    calls = []
    with torch.no_grad():
        for captions in (["a cat", "a far longer one"], ["of"]):
            rows = len(captions)
            call = (torch.randn(rows, 3, 64, 64, generator=generator), torch.full((rows,), 7))
            call += (torch.randn(rows, 32, generator=generator), own_pipe.encode(captions))
            call += (None, None, Context())
            assert joining.kind_of(call) is None and joining.portions(call, 1) == [call]
            own_pipe.decoder(*call)
            calls.append(call)
        assert len({joining.kind_of(call) for call in calls}) == 1
        together = own_pipe.decoder(*joining.joined(calls))
        for call, output in zip(calls, joining.split(together, calls), strict=True):
            assert close(own_pipe.decoder(*call), output)
        portions = joining.portions(joining.joined(calls), 1)
        parts = [own_pipe.decoder(*portion) for portion in portions]
        assert len(parts) == 3 and close(torch.cat(parts), together)


def test_a_decoder_call_that_keeps_its_deep_levels_runs_alone(pipe):
    call = (torch.randn(2, 3, 64, 64), torch.tensor([7, 7]), torch.randn(2, 32))
    call += (pipe.encode(["a", "b"]), None, None, Context(reuse=2))
    with torch.no_grad():
        pipe.decoder(*call)
    assert joining.kind_of(call) is None and joining.portions(call, 1) == [call]


def test_prior_calls_join_whatever_the_length_of_their_captions(pipe):
    generator = torch.Generator().manual_seed(2)
    calls = []
    with torch.no_grad():
        for caption in ("a cat", "a far longer one", "of"):
            call = (torch.randn(2, 32, generator=generator), torch.tensor([7, 7]))
            call += (pipe.encode([caption]), Prefix(torch.tensor([0, 0])))
            assert joining.kind_of(call) is None  # until its caption is read
            pipe.prior(*call)
            calls.append(call)
        assert len({call[3].bias.shape[-1] for call in calls}) == 3
        assert len({joining.kind_of(call) for call in calls}) == 1
        together = joining.split(pipe.prior(*joining.joined(calls)), calls)
        for call, output in zip(calls, together, strict=True):
            assert close(pipe.prior(*call), output)


def test_what_does_not_fit_is_not_joined():
    small, large = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 256, 256)
    t = torch.zeros(1, dtype=torch.long)
    kinds = {
        joining.kind_of(call)
        for call in (
            (small, t),
            (large, t),
            (small, t.float()),
            (small.half(), t),
            (small, t, None),
        )
    }
    assert len(kinds) == 5
    assert joining.kind_of((small, t)) == joining.kind_of((torch.zeros(4, 3, 64, 64), t))
    assert joining.kind_of((small, "words")) is None


@pytest.mark.parametrize("max_rows", [1, 2, 7])
def test_large_calls_are_run_in_portions(pipe, max_rows):
    x_low = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    call = (torch.zeros(5, 3, 256, 256), torch.arange(5), x_low)
    portions = joining.portions(call, max_rows)
    assert max(map(joining.num_rows, portions)) <= max_rows
    with torch.no_grad():
        outputs = [pipe.upsampler_256(*portion) for portion in portions]
        assert close(torch.cat(outputs), pipe.upsampler_256(*call))


def test_a_prefix_is_not_divided(pipe):
    call = (torch.zeros(4, 32), torch.zeros(4), pipe.encode(["a"]), Prefix(torch.zeros(4).long()))
    assert joining.portions(call, 2) == [call]
