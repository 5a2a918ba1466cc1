"""What upsamplers must keep: edges as sharp as those of real pictures, and the colours of a stage.

Shapes: N pictures, S pixels a side, K octaves.
"""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
NUM_OCTAVES = 6
LEAST_SIDE = 2 * 2**NUM_OCTAVES


def gradient_spectrum(pictures: Tensor) -> Tensor:
    """How strong the edges are, by spatial frequency: [N, K] of pictures [N, S, S, 3] uint8.

    g = |grad Y| of the luma Y in 0..1, by differences of neighbours; the mean of |FFT(g)| / S over
    the frequencies f, in periods a side, of octave k: S / 2^(k+2) < f <= S / 2^(k+1), k = 0 the
    finest. Blur lowers the first octaves, grain raises them.

    Raises:
        ValueError: when the pictures are not square, not uint8, or below 128 pixels a side.
    """
    _check_pictures("pictures", pictures)
    num, side = len(pictures), pictures.shape[1]
    if side < LEAST_SIDE:
        raise ValueError(f"pictures: give at least {LEAST_SIDE} pixels a side, not {side}")
    luma = (pictures.float() / 255) @ torch.tensor(LUMA)  # [N, S, S]
    down, across = luma.diff(dim=1)[:, :, :-1], luma.diff(dim=2)[:, :-1]
    magnitude = (down.square() + across.square()).sqrt()  # [N, S-1, S-1]
    amplitude = torch.fft.rfft2(magnitude).abs() / side
    rows = torch.fft.fftfreq(side - 1)[:, None]  # in periods a pixel, 1/2 the finest
    frequency = (rows.square() + torch.fft.rfftfreq(side - 1).square()).sqrt()
    octaves = []
    for k in range(NUM_OCTAVES):
        inside = (frequency > 0.5 / 2 ** (k + 1)) & (frequency <= 0.5 / 2**k)
        octaves.append(amplitude.reshape(num, -1)[:, inside.flatten()].mean(dim=1))
    return torch.stack(octaves, dim=1)


def colour_shift(pictures: Tensor, others: Tensor) -> Tensor:
    """By how many of 256 levels the mean colour differs, the largest of three channels: [N].

    pictures [N, S, S, 3] and others [N, T, T, 3], uint8: the same pictures at two sizes.

    Raises:
        ValueError: when they are not square, not uint8, or not as many.
    """
    _check_pictures("pictures", pictures)
    _check_pictures("others", others)
    if len(pictures) != len(others):
        raise ValueError(f"others: {len(others)} pictures beside {len(pictures)}; give pairs")
    means = [x.double().mean(dim=(1, 2)) for x in (pictures, others)]  # [N, 3] each
    return (means[0] - means[1]).abs().amax(dim=1)


def _check_pictures(name: str, pictures: Tensor) -> None:
    shape = tuple(pictures.shape)
    fits = len(shape) == 4 and shape[0] > 0 and shape[1] == shape[2] and shape[3] == 3
    if not fits or pictures.dtype != torch.uint8:
        raise ValueError(f"{name}: give uint8 [N, S, S, 3], not {shape} of {pictures.dtype}")
