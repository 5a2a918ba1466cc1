"""Tiny random networks and captions without a tokenizer's help."""

import pytest
import torch

from unclip import TextEncoding


@pytest.fixture
def text():
    """Make a random encoding of captions of given lengths; D = W = 32, L = 12."""

    def make(*lengths: int, seed: int = 0) -> TextEncoding:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.arange(12)[None] < torch.tensor(lengths)[:, None]
        return TextEncoding(
            torch.randn(len(lengths), 32, generator=generator),
            torch.randn(len(lengths), 12, 32, generator=generator),
            mask,
            torch.randint(0, 50, (len(lengths), 12), generator=generator),
        )

    return make


@pytest.fixture
def shaken():
    """Give every weight of a network, those that start at zero too, a random part."""

    @torch.no_grad()
    def shake(network: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(1)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return network.eval()

    return shake
