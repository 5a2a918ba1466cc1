"""Corruptions of the small picture on which the upsamplers are conditioned.

The 64 -> 256 upsampler sees a Gaussian blur (unCLIP, appendix C, Table 3: kernel 3, sigma 0.6);
the 256 -> 1024 upsampler sees the blind super-resolution (BSR) degradation of latent diffusion
(Rombach et al. 2022, section 4.4, after Zhang et al. 2021, "Designing a Practical Degradation
Model for Deep Blind Image Super-Resolution").

Letters: B batch, C channels, H W height and width, K kernel width. Pictures inside this module are
float32 [3,H,W] in [0,1].
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

__all__ = ["bsr_degrade", "gaussian_blur", "gaussian_kernel", "make_uneven"]

SIGMA = 0.6  # of the Gaussian blur, in pixels of the small picture
MAX_UNEVENNESS = 4.0  # levels of 255, one standard deviation
MAX_PATCH = 1.5  # sigma of what smooths the unevenness, in pixels of the small picture
PRE_HALVING_PROBABILITY = 0.25
ANISOTROPIC_PROBABILITY = 0.5
JPEG_PROBABILITY = 0.9
COLOUR_NOISE_PROBABILITY = 0.4
GRAY_NOISE_PROBABILITY = 0.4  # what is left, 0.2, is noise correlated between the channels
SHIFTED_KERNEL_SIZE = 25
RESIZE_MODES = ("bilinear", "bicubic", "area")
STEPS = ("blur_a", "blur_b", "downsample", "resize", "noise", "jpeg")


@dataclass(frozen=True)
class Variant:
    """The numbers in which the full and the light degradation differ."""

    second_blur: bool
    blur_width: float  # multiplies the upper limits of the blur's variance and sigma
    anisotropic_sizes: Sequence[int]  # kernel widths, pixels
    isotropic_sizes: Sequence[int]
    resize_probability: float  # a random resize; else a shifted Gaussian and every sf-th pixel
    noise_levels: tuple[int, int]  # standard deviation in 1/255, both ends included
    jpeg_quality: tuple[int, int]  # both ends included


VARIANTS = {
    "full": Variant(True, 1.0, range(7, 26, 2), range(7, 26, 2), 0.75, (2, 25), (30, 95)),
    "light": Variant(False, 0.25, range(5, 15), range(5, 8), 0.80, (1, 2), (80, 95)),
}


def gaussian_kernel(
    size: int, variances: tuple[float, float], angle: float = 0.0, shift: float = 0.0
) -> torch.Tensor:
    """Gaussian window k(d) ~ exp(-d^T S^-1 d / 2), S = R(angle) diag(variances) R(angle)^T.

    size: width K in pixels; an even one is widened by 1, so that the window has a centre pixel.
    variances: along the two axes, pixels^2, > 0. angle: radians. shift: of the peak from the
    centre, right and down, pixels. Returns [K,K] float32 that sums to one.
    """
    half = size // 2
    offset = np.arange(-half, half + 1, dtype=np.float64) - shift
    along = np.cos(angle) * offset[None, :] + np.sin(angle) * offset[:, None]
    across = np.cos(angle) * offset[:, None] - np.sin(angle) * offset[None, :]
    first, second = (max(float(variance), 1e-6) for variance in variances)
    exponent = 0.5 * (along**2 / first + across**2 / second)
    kernel = np.exp(exponent.min() - exponent)
    return torch.from_numpy((kernel / kernel.sum()).astype(np.float32))


def gaussian_blur(x: torch.Tensor, kernel_size: int = 3, sigma: float = SIGMA) -> torch.Tensor:
    """Blurs each channel with a Gaussian window, mirrored at the border (unCLIP, Table 3; SR3).

    x: [...,C,H,W] floating point, any range, H and W > kernel_size // 2. kernel_size: odd, pixels.
    sigma: pixels, > 0. Returns the same shape and dtype. Raises ValueError for anything else.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 3:
        raise ValueError("x: give a floating-point tensor of shape [...,C,H,W]")
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: give an odd number of pixels, not {kernel_size!r}")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma: give a positive number of pixels, not {sigma}")
    half = kernel_size // 2
    height, width = x.shape[-2:]
    if min(height, width) <= half:
        raise ValueError(f"x: {height}x{width} pixels are too few for kernel_size {kernel_size}")
    kernel = gaussian_kernel(kernel_size, (sigma**2, sigma**2)).to(x)
    planes = x.reshape(-1, 1, height, width)  # [B*C,1,H,W]
    padded = F.pad(planes, (half, half, half, half), mode="reflect")
    return F.conv2d(padded, kernel[None, None]).reshape(x.shape)


def make_uneven(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Adds faint unevenness, such as small networks leave in even areas, to a small picture.

    x + level n, where n is noise of unit variance, smoothed by a Gaussian of 0 to MAX_PATCH pixels;
    level is 0 to MAX_UNEVENNESS / 255 of the range. It teaches an upsampler that this is no detail.

    x: [C,H,W] in [-1,1]. Returns the same shape, in [-1,1].
    """
    level, patch = (1.0 - rng.random(2)) * (MAX_UNEVENNESS, MAX_PATCH)  # never 0
    widest = 2 * min(x.shape[-2:]) - 1  # what can be mirrored at the border
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    noise = gaussian_blur(noise, min(7, widest), patch)
    return (x + noise * (level / 127.5 / noise.std())).clamp(-1, 1)


def bsr_degrade(
    image: np.ndarray, scale: int, rng: np.random.Generator, variant: str = "light"
) -> np.ndarray:
    """Makes the small picture that a blind super-resolution network is trained on.

    Blur, random down-sampling, resizing to the final size, noise and JPEG in a random order (the
    resizing always after the down-sampling), then a last JPEG (Zhang et al. 2021, section 3).

    image: [H,W,3] uint8; H and W are cropped to multiples of scale. scale: >= 2. rng: the only
    source of chance. variant: "light" (what latent diffusion's released model used) or "full".
    Returns [H // scale, W // scale, 3] uint8. Raises ValueError naming the argument at fault.
    """
    numbers = _checked(image, scale, rng, variant)
    height, width = image.shape[0] // scale, image.shape[1] // scale
    cropped = np.ascontiguousarray(image[: height * scale, : width * scale].transpose(2, 0, 1))
    x = torch.from_numpy(cropped).float().div_(255)
    factor = scale  # what is left to shrink
    if scale >= 4 and scale % 2 == 0 and rng.random() < PRE_HALVING_PROBABILITY:
        x = _resize(x, (x.shape[1] // 2, x.shape[2] // 2), _resize_mode(rng))
        factor = scale // 2
    for step in _shuffled_steps(rng):
        if step == "blur_a" or (step == "blur_b" and numbers.second_blur):
            x = _random_blur(x, factor, rng, numbers)
        elif step == "downsample":
            x = _random_downsample(x, factor, rng, numbers)
        elif step == "resize":
            x = _resize(x, (height, width), _resize_mode(rng))
        elif step == "noise":
            x = _random_noise(x, rng, numbers)
        elif step == "jpeg" and rng.random() < JPEG_PROBABILITY:
            x = _from_bytes(_jpeg(_to_bytes(x), rng, numbers))
    return _jpeg(_to_bytes(x), rng, numbers)


def _checked(image: np.ndarray, scale: int, rng: np.random.Generator, variant: str) -> Variant:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise ValueError("image: give a uint8 numpy array of shape [H,W,3]")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: give shape [H,W,3], not {list(image.shape)}")
    if isinstance(scale, bool) or not isinstance(scale, int | np.integer) or scale < 2:
        raise ValueError(f"scale: give a whole number of at least 2, not {scale!r}")
    if min(image.shape[:2]) < scale:
        raise ValueError(f"image: {list(image.shape[:2])} pixels are fewer than scale {scale}")
    if not isinstance(rng, np.random.Generator):
        raise ValueError("rng: give a numpy.random.Generator, as from numpy.random.default_rng(0)")
    if variant not in tuple(VARIANTS):
        raise ValueError(f"variant: give one of {', '.join(sorted(VARIANTS))}, not {variant!r}")
    return VARIANTS[variant]


def _shuffled_steps(rng: np.random.Generator) -> list[str]:
    """A random order of the steps in which "resize" always follows "downsample"."""
    order = [STEPS[index] for index in rng.permutation(len(STEPS))]
    first, second = sorted((order.index("downsample"), order.index("resize")))
    order[first], order[second] = "downsample", "resize"
    return order


def _random_blur(
    x: torch.Tensor, factor: int, rng: np.random.Generator, numbers: Variant
) -> torch.Tensor:
    """Blur of a random Gaussian: variances ~ U(0, 4 + sf) turned by U(0, pi), or one sigma."""
    if rng.random() < ANISOTROPIC_PROBABILITY:
        size = int(rng.choice(numbers.anisotropic_sizes))
        first, second = rng.uniform(0, numbers.blur_width * (4 + factor), size=2)
        kernel = gaussian_kernel(size, (first, second), angle=rng.uniform(0, np.pi))
    else:
        size = int(rng.choice(numbers.isotropic_sizes))
        variance = rng.uniform(0, numbers.blur_width * (2 + 0.2 * factor)) ** 2
        kernel = gaussian_kernel(size, (variance, variance))
    return _filter(x, kernel)


def _random_downsample(
    x: torch.Tensor, factor: int, rng: np.random.Generator, numbers: Variant
) -> torch.Tensor:
    """Resize by 1/U(1, 2 sf), or a Gaussian at each cell's centre and one pixel of each cell."""
    if rng.random() < numbers.resize_probability:
        shrink = rng.uniform(1, 2 * factor)
        size = tuple(max(1, int(side / shrink)) for side in x.shape[1:])
        return _resize(x, size, _resize_mode(rng))
    variance = rng.uniform(0.1, 0.6 * factor) ** 2
    # Pixel sf*i is read; the cell's centre lies (sf - 1) / 2 further on.
    shift = (factor - 1) / 2
    kernel = gaussian_kernel(SHIFTED_KERNEL_SIZE, (variance, variance), shift=shift)
    return _filter(x, kernel)[:, ::factor, ::factor].clamp(0, 1)


def _random_noise(x: torch.Tensor, rng: np.random.Generator, numbers: Variant) -> torch.Tensor:
    """Adds Gaussian noise: independent in each channel, the same in all, or correlated."""
    low, high = numbers.noise_levels
    level = int(rng.integers(low, high, endpoint=True)) / 255
    kind = rng.random()
    gray = COLOUR_NOISE_PROBABILITY <= kind < COLOUR_NOISE_PROBABILITY + GRAY_NOISE_PROBABILITY
    noise = rng.standard_normal((1 if gray else 3, *x.shape[1:]), dtype=np.float32)
    if kind >= COLOUR_NOISE_PROBABILITY + GRAY_NOISE_PROBABILITY:
        # Covariance U^T diag(d) U with a random rotation U and d ~ U(0, 1).
        rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        spread = rotation.T @ np.diag(np.sqrt(rng.random(3)))
        noise = np.tensordot(spread.astype(np.float32), noise, axes=1)
    return torch.from_numpy(noise).mul_(level).add(x).clamp_(0, 1)


def _jpeg(image: np.ndarray, rng: np.random.Generator, numbers: Variant) -> np.ndarray:
    low, high = numbers.jpeg_quality
    quality = int(rng.integers(low, high, endpoint=True))
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return np.array(Image.open(file))


def _filter(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Correlates [C,H,W] with [K,K], mirrored at the border, through the Fourier transform.

    For windows of 7 to 25 pixels the transform costs the same at every width, and less than
    convolving directly.
    """
    height, width = x.shape[1:]
    half = kernel.shape[0] // 2
    rows, columns = (_mirrored(side, half) for side in (height, width))
    padded = x.index_select(1, rows).index_select(2, columns)
    size = [32 * -(-side // 32) for side in padded.shape[1:]]  # products of small primes
    spectrum = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernel, s=size).conj()
    return torch.fft.irfft2(spectrum, s=size)[:, :height, :width]


def _mirrored(side: int, pad: int) -> torch.Tensor:
    """Indices -pad .. side+pad-1 folded back into 0 .. side-1 at the edge pixels."""
    period = max(1, 2 * (side - 1))
    index = torch.arange(-pad, side + pad) % period
    return torch.minimum(index, period - index) if side > 1 else torch.zeros_like(index)


def _resize_mode(rng: np.random.Generator) -> str:
    return RESIZE_MODES[int(rng.integers(len(RESIZE_MODES)))]


def _resize(x: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resizes [C,H,W] to size, without antialiasing but for "area", which averages cells."""
    if tuple(x.shape[1:]) == tuple(size):
        return x
    if mode == "area" and size[0] <= x.shape[1] and size[1] <= x.shape[2]:
        rows, columns = (_area_weights(*ends) for ends in zip(x.shape[1:], size, strict=True))
        return rows @ x @ columns.T
    mode = "bilinear" if mode == "area" else mode  # enlarging by area means interpolating
    resized = F.interpolate(x[None], size=tuple(size), mode=mode, align_corners=False)[0]
    return resized.clamp_(0, 1)


def _area_weights(side: int, small: int) -> torch.Tensor:
    """[small,side] matrix of the share that each pixel has in each cell; rows sum to one."""
    edges = torch.arange(small + 1, dtype=torch.float64)[:, None] * side / small
    pixels = torch.arange(side, dtype=torch.float64)
    covered = (edges - pixels).clamp(0, 1)  # of each pixel, left of each edge
    return ((covered[1:] - covered[:-1]) * (small / side)).float()


def _to_bytes(x: torch.Tensor) -> np.ndarray:
    scaled = x.clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().numpy()


def _from_bytes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255).contiguous()
