"""Blur, unevenness, BSR: shapes, chance, colour, alignment and bad arguments."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unclip_train.data import degradation
from unclip_train.data.degradation import (
    bsr_degrade,
    gaussian_blur,
    gaussian_kernel,
    make_uneven,
)


def smooth_picture(seed: int, height: int = 96, width: int = 96) -> np.ndarray:
    """A uint8 picture of coloured waves, [height,width,3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 24
    phase, turn = rng.uniform(0, 2 * np.pi, size=(2, 3))
    waves = [
        np.sin(rows * np.cos(a) + columns * np.sin(a) + p) for p, a in zip(phase, turn, strict=True)
    ]
    return (127.5 + 90 * np.stack(waves, axis=-1)).round().astype(np.uint8)


def area(image: np.ndarray, scale: int) -> np.ndarray:
    height, width = (side // scale for side in image.shape[:2])
    cells = image[: height * scale, : width * scale].astype(np.float64)
    return cells.reshape(height, scale, width, scale, 3).mean(axis=(1, 3))


# gaussian_blur


def test_blur_is_the_three_by_three_gaussian_by_hand() -> None:
    x = torch.rand(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edge = np.exp(-1 / (2 * 0.6**2))
    weights = np.outer([edge, 1, edge], [edge, 1, edge]) / (1 + 2 * edge) ** 2
    mirrored = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = sum(
        weights[i, j] * mirrored[:, :, i : i + 5, j : j + 6] for i in range(3) for j in range(3)
    )
    np.testing.assert_allclose(gaussian_blur(x).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 8, 9), (2, 3, 8, 9), (2, 4, 1, 8, 9)])
def test_blur_keeps_shape_dtype_and_constants(shape: tuple[int, ...]) -> None:
    x = torch.full(shape, -0.7)
    blurred = gaussian_blur(x, kernel_size=5, sigma=1.3)
    assert blurred.shape == x.shape and blurred.dtype == x.dtype
    torch.testing.assert_close(blurred, x)
    assert gaussian_blur(x.bfloat16()).dtype == torch.bfloat16


def test_blur_keeps_channels_apart_and_passes_gradients() -> None:
    x = torch.zeros(1, 3, 7, 7)
    x[0, 1, 3, 3] = 1
    x.requires_grad_()
    blurred = gaussian_blur(x)
    assert blurred[0, 0].abs().max() == 0 and blurred[0, 2].abs().max() == 0
    assert 0.3 < blurred[0, 1, 3, 3] < 1
    blurred.sum().backward()
    torch.testing.assert_close(x.grad[..., 2:-2, 2:-2], torch.ones(1, 3, 3, 3))


@pytest.mark.parametrize(
    ("x", "kernel_size", "sigma", "name"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 3, 0.6, "x:"),
        (torch.zeros(8, 8), 3, 0.6, "x:"),
        (torch.zeros(3, 1, 8), 3, 0.6, "x:"),
        (np.zeros((3, 8, 8)), 3, 0.6, "x:"),
        (torch.zeros(3, 8, 8), 4, 0.6, "kernel_size:"),
        (torch.zeros(3, 8, 8), -1, 0.6, "kernel_size:"),
        (torch.zeros(3, 8, 8), 3, 0.0, "sigma:"),
        (torch.zeros(3, 8, 8), 3, float("nan"), "sigma:"),
    ],
)
def test_blur_names_the_bad_argument(x, kernel_size: int, sigma: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        gaussian_blur(x, kernel_size, sigma)


# make_uneven


def test_even_areas_become_uneven_by_four_levels_at_most() -> None:
    even = torch.full((3, 24, 24), 0.5)
    found = [make_uneven(even, np.random.default_rng(seed)).std() * 127.5 for seed in range(60)]
    assert 0 <= min(found) < 0.3 and 3.5 < max(found) < 4.1


def test_unevenness_is_smooth_by_any_amount() -> None:
    even = torch.zeros(1, 64, 64)
    likeness = []  # of neighbours
    for seed in range(60):
        x = make_uneven(even, np.random.default_rng(seed))[0]
        likeness.append(float(torch.corrcoef(torch.stack([x[:, 1:], x[:, :-1]]).flatten(1))[0, 1]))
    assert min(likeness) < 0.1 and 0.8 < max(likeness) < 0.95


@pytest.mark.parametrize("side", [2, 3, 8])
def test_unevenness_comes_from_the_generator_alone(side: int) -> None:
    x = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, again, other = (make_uneven(x, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == x.shape and first.abs().max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


# Kernels, filtering and resizing


@pytest.mark.parametrize("size", [3, 6, 7, 14, 25])
@pytest.mark.parametrize("variances", [(0.0, 0.0), (0.01, 8.0), (2.0, 2.0), (60.0, 1.0)])
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_kernels_sum_to_one(size: int, variances: tuple[float, float], shift: float) -> None:
    kernel = gaussian_kernel(size, variances, angle=0.7, shift=shift)
    assert kernel.shape == (2 * (size // 2) + 1,) * 2
    assert kernel.min() >= 0
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5)


def test_kernel_has_the_covariance_that_was_asked_for() -> None:
    angle, (first, second) = 0.4, (6.0, 1.0)
    kernel = gaussian_kernel(41, (first, second), angle).double().numpy()
    down, right = np.mgrid[-20:21, -20:21]
    points = np.stack([right.ravel(), down.ravel()])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = turn @ np.diag([first, second]) @ turn.T
    np.testing.assert_allclose((points * kernel.ravel()) @ points.T, expected, atol=1e-3)


@pytest.mark.parametrize("size", [(40, 33), (13, 90)])
def test_filter_equals_a_direct_convolution(size: tuple[int, int]) -> None:
    x = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_kernel(25, (5.0, 0.3), angle=0.3, shift=1.5)
    direct = F.conv2d(F.pad(x[:, None], (12,) * 4, mode="reflect"), kernel[None, None])[:, 0]
    torch.testing.assert_close(degradation._filter(x, kernel), direct, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 5)])
def test_filter_keeps_constants_in_pictures_smaller_than_the_window(size: tuple[int, int]) -> None:
    x = torch.full((3, *size), 0.4)
    filtered = degradation._filter(x, gaussian_kernel(25, (9.0, 9.0)))
    torch.testing.assert_close(filtered, x, atol=1e-5, rtol=0)


def test_area_resize_averages_whole_and_broken_cells() -> None:
    x = torch.rand(3, 12, 8, generator=torch.Generator().manual_seed(0))
    whole = degradation._resize(x, (3, 4), "area")
    torch.testing.assert_close(whole, F.avg_pool2d(x, (4, 2)))
    broken = degradation._resize(x, (5, 3), "area")
    assert broken.mean().item() == pytest.approx(x.mean().item(), abs=1e-6)
    first_cell = (x[:, :2].sum(1) + 0.4 * x[:, 2]) / 2.4
    columns = (first_cell[:, :2].sum(1) + (2 / 3) * first_cell[:, 2]) / (8 / 3)
    torch.testing.assert_close(broken[:, 0, 0], columns)


def test_resizing_follows_downsampling_in_every_order() -> None:
    rng = np.random.default_rng(0)
    orders = [degradation._shuffled_steps(rng) for _ in range(200)]
    assert all(sorted(order) == sorted(degradation.STEPS) for order in orders)
    assert all(order.index("resize") > order.index("downsample") for order in orders)
    assert {order[0] for order in orders} == set(degradation.STEPS) - {"resize"}


# bsr_degrade


@pytest.mark.parametrize("variant", ["light", "full"])
@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(64, 64, 4), (67, 93, 4), (45, 31, 2), (50, 41, 3), (70, 65, 8), (4, 7, 4), (5, 130, 4)],
)
def test_shapes(variant: str, height: int, width: int, scale: int) -> None:
    image = smooth_picture(1, height, width)
    for seed in range(12):
        small = bsr_degrade(image, scale, np.random.default_rng(seed), variant)
        assert small.shape == (height // scale, width // scale, 3)
        assert small.dtype == np.uint8 and small.flags.writeable


@pytest.mark.parametrize("variant", ["light", "full"])
def test_the_generator_alone_decides(variant: str) -> None:
    image = smooth_picture(2)
    before = image.copy()
    first = [bsr_degrade(image, 4, np.random.default_rng(seed), variant) for seed in range(8)]
    torch.manual_seed(123)
    np.random.seed(123)
    again = [bsr_degrade(image, 4, np.random.default_rng(seed), variant) for seed in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({small.tobytes() for small in first}) == 8
    assert np.array_equal(image, before)


def test_a_view_gives_what_its_copy_gives() -> None:
    image = smooth_picture(3, 80, 96)[8:72, 95:15:-1]
    small, copied = (
        bsr_degrade(picture, 4, np.random.default_rng(5), "full")
        for picture in (image, image.copy())
    )
    assert np.array_equal(small, copied)


@pytest.mark.parametrize(("variant", "limit"), [("light", 1.5), ("full", 4.0)])
def test_mean_colour_is_kept(variant: str, limit: float) -> None:
    errors = []
    for seed in range(60):
        image = smooth_picture(seed)
        small = bsr_degrade(image, 4, np.random.default_rng(seed), variant)
        errors.append(small.mean(axis=(0, 1)) - image.mean(axis=(0, 1)))
    assert np.abs(errors).mean() < limit  # of 255, a picture
    assert np.abs(np.mean(errors, axis=0)).max() < 1  # of 255, on average


def test_light_is_nearer_to_the_plain_average_than_full() -> None:
    distance = {"light": [], "full": []}
    for seed in range(60):
        image = smooth_picture(seed)
        for variant, distances in distance.items():
            small = bsr_degrade(image, 4, np.random.default_rng(seed), variant)
            distances.append(np.abs(small - area(image, 4)).mean())
    assert np.mean(distance["light"]) < 0.6 * np.mean(distance["full"])
    assert 0.3 < np.mean(distance["light"])  # it does corrupt


@pytest.mark.parametrize("variant", ["light", "full"])
def test_a_bright_dot_stays_where_it_was(variant: str) -> None:
    offsets = []
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:96, 0:96]
    for seed in range(150):
        row, column = rng.uniform(36, 60, size=2)
        dot = 255 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 6.0**2))
        image = np.repeat(dot.round().astype(np.uint8)[..., None], 3, axis=2)
        small = bsr_degrade(image, 4, np.random.default_rng(seed), variant).mean(axis=2)
        weight = np.where(small > 0.3 * small.max(), small, 0)
        centre = [(weight * axis).sum() / weight.sum() for axis in np.mgrid[0:24, 0:24]]
        offsets.append(np.array(centre) - [(row - 1.5) / 4, (column - 1.5) / 4])
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.1  # small pixels: no common shift
    assert np.abs(offsets).mean() < 0.5


@pytest.mark.parametrize("resize_probability", [0.0, 1.0])
@pytest.mark.parametrize("factor", [2, 4])
def test_downsampling_keeps_the_centre_of_the_cells(resize_probability: float, factor: int) -> None:
    full = degradation.VARIANTS["full"]
    numbers = dataclasses.replace(full, resize_probability=resize_probability)
    rows, columns = np.mgrid[0:96, 0:96]
    dot = np.exp(-((rows - 41.3) ** 2 + (columns - 50.2) ** 2) / (2 * 9.0**2))
    x = torch.from_numpy(dot).float().expand(3, 96, 96)
    for seed in range(20):
        small = degradation._random_downsample(x, factor, np.random.default_rng(seed), numbers)
        weight = small[0].double().numpy()
        for axis, expected in enumerate((41.3, 50.2)):
            position = (weight * np.indices(weight.shape)[axis]).sum() / weight.sum()
            pixels = 96 / weight.shape[axis]
            assert (position + 0.5) * pixels - 0.5 == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("variant", "low", "high"), [("light", 80, 95), ("full", 30, 95)])
def test_jpeg_is_always_last_and_its_quality_in_range(
    variant: str, low: int, high: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    qualities: list[int] = []
    returned: list[np.ndarray] = []
    save, jpeg = degradation.Image.Image.save, degradation._jpeg

    def recording_save(picture, file, format, *, quality: int, **options) -> None:
        qualities.append(quality)
        save(picture, file, format, quality=quality, **options)

    def recording_jpeg(*arguments) -> np.ndarray:
        returned.append(jpeg(*arguments))
        return returned[-1]

    monkeypatch.setattr(degradation.Image.Image, "save", recording_save)
    monkeypatch.setattr(degradation, "_jpeg", recording_jpeg)
    image = smooth_picture(4, 32, 32)
    for seed in range(100):
        assert bsr_degrade(image, 4, np.random.default_rng(seed), variant) is returned[-1]
    assert 100 + 75 < len(qualities) <= 200  # a second one nine times of ten
    assert low <= min(qualities) < max(qualities) <= high
    assert min(qualities) < low + 5 and max(qualities) > high - 5


def test_only_full_blurs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    blur = degradation._random_blur
    monkeypatch.setattr(degradation, "_random_blur", lambda *a: calls.append(1) or blur(*a))
    image = smooth_picture(5, 16, 16)
    for variant, expected in (("light", 1), ("full", 2)):
        calls.clear()
        bsr_degrade(image, 4, np.random.default_rng(0), variant)
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"image": np.zeros((8, 8, 3), np.float32)}, "image:"),
        ({"image": np.zeros((8, 8), np.uint8)}, "image:"),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, "image:"),
        ({"image": np.zeros((3, 8, 3), np.uint8)}, "image:"),
        ({"image": [[[0, 0, 0]]]}, "image:"),
        ({"scale": 1}, "scale:"),
        ({"scale": 4.0}, "scale:"),
        ({"scale": True}, "scale:"),
        ({"rng": None}, "rng:"),
        ({"rng": 7}, "rng:"),
        ({"variant": "medium"}, "variant:"),
        ({"variant": ["light"]}, "variant:"),
    ],
)
def test_names_the_bad_argument(changed: dict, name: str) -> None:
    arguments = {
        "image": np.zeros((8, 8, 3), np.uint8),
        "scale": 4,
        "rng": np.random.default_rng(0),
        "variant": "light",
    }
    with pytest.raises(ValueError, match=f"^{name}"):
        bsr_degrade(**(arguments | changed))
