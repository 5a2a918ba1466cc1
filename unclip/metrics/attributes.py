"""Whether a picture has what its caption names: a background colour, a number, two sides.

The colour is read from pixels; number and sides are asked of a judge, an independent CLIP, through
embeddings of the whole picture or of its halves.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_pairs

# sRGB to CIE XYZ for the white point D65 (IEC 61966-2-1), and that white.
XYZ_OF_RGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
WHITE_XYZ = (0.9504700, 1.0, 1.0888300)

LEAST_SIDE = 128  # pixels a side that are enough: of larger pictures every n-th pixel is read
RING_SHARE = 1 / 32  # of the shorter side: how broad the border is, and how far "well outside" is
MAX_DEVIATION = 15.0  # Delta E*ab within which pixels are of one background
LEAST_OF_RING = 0.5  # share of the border that must be background
LEAST_OF_PICTURE = 0.01  # share of all pixels that must lie well outside of the drawing


def cielab(picture: Tensor) -> Tensor:
    """sRGB pixels [..., 3] uint8 to CIELAB [..., 3] float64: L* in 0..100, a*, b* (CIE 1976)."""
    rgb = picture.double() / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ linear.new_tensor(XYZ_OF_RGB).T
    ratio = xyz / linear.new_tensor(WHITE_XYZ)
    small = ratio <= (6 / 29) ** 3
    f = torch.where(small, ratio / (3 * (6 / 29) ** 2) + 4 / 29, ratio.clamp(min=1e-12) ** (1 / 3))
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def background_colour(picture: Tensor, palette: Mapping[str, tuple[int, int, int]]) -> str | None:
    """The name of the palette that is nearest, in CIELAB, to what surrounds the drawing.

    picture: [H, W, 3] uint8, 8 pixels a side or more. palette: sRGB in 0..255 by name. Looked at
    are the pixels that resemble the median of the border and whose neighbours do as well: so
    neither the drawing nor its soft outline counts. None where the border is not of one colour, or
    the drawing leaves nearly nothing of it.
    """
    _check_picture(picture)
    if not palette:
        raise ValueError("palette: give at least one named colour")
    step = max(1, min(picture.shape[:2]) // LEAST_SIDE)
    lab = cielab(picture[::step, ::step].cpu())  # [H, W, 3]
    width = max(1, round(min(lab.shape[:2]) * RING_SHARE))
    on_ring = torch.ones(lab.shape[:2], dtype=torch.bool)
    on_ring[width:-width, width:-width] = False
    median = lab[on_ring].median(dim=0).values
    alike = (lab - median).norm(dim=-1) <= MAX_DEVIATION  # [H, W]
    well_outside = _erode(alike, width)
    if alike[on_ring].double().mean() < LEAST_OF_RING:
        return None
    if well_outside.double().mean() < LEAST_OF_PICTURE:
        return None
    colour = lab[well_outside].median(dim=0).values
    colours = cielab(torch.tensor(list(palette.values()), dtype=torch.uint8))  # [P, 3]
    return list(palette)[int((colours - colour).norm(dim=1).argmin())]


def halves(x: Tensor, beside: bool) -> tuple[Tensor, Tensor]:
    """The left and right halves of pictures, or the upper and lower, each padded to a square.

    x: [N, 3, S, S] in [-1, 1]. beside: cut into left and right. Each half is [N, 3, S, S], centred
    on the median colour of the picture's border, so that a judge sees no stretched drawing.
    """
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != x.shape[3] or x.shape[3] < 4:
        raise ValueError(f"x: give square pictures [N, 3, S, S], not {tuple(x.shape)}")
    size = x.shape[3]
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], dim=-1)
    fill = border.median(dim=-1).values[..., None, None]  # [N, 3, 1, 1]
    cuts = x.tensor_split(2, dim=3 if beside else 2)
    squares = []
    for cut in cuts:
        square = fill.expand(len(x), 3, size, size).clone()
        start = (size - cut.shape[3 if beside else 2]) // 2
        square.narrow(3 if beside else 2, start, cut.shape[3 if beside else 2]).copy_(cut)
        squares.append(square)
    return squares[0], squares[1]


def sides_agree(
    z_first: Tensor, z_second: Tensor, z_txt_first: Tensor, z_txt_second: Tensor
) -> Tensor:
    """Whether the first half shows the first thing and the second the second, [N] bool.

    z_first, z_second: [N, D], a judge's embeddings of the halves (left and right, or upper and
    lower). z_txt_first, z_txt_second: [N, D], of the two things' names. True where
    cos(first, first) + cos(second, second) > cos(first, second) + cos(second, first). It asks for
    the order alone: whether both things are there is for a rank among captions to say.
    """
    names = ("z_first", "z_second", "z_txt_first", "z_txt_second")
    for name, z in zip(names[1:], (z_second, z_txt_first, z_txt_second), strict=True):
        check_pairs((names[0], name), z_first, z)
    first, second, txt_first, txt_second = (
        F.normalize(z.double(), dim=1) for z in (z_first, z_second, z_txt_first, z_txt_second)
    )
    return ((first - second) * (txt_first - txt_second)).sum(dim=1) > 0


def _erode(mask: Tensor, radius: int) -> Tensor:
    """True where everything within radius pixels (in rows and columns) is True, [H, W] bool."""
    outside = (~mask)[None, None].double()
    return F.max_pool2d(outside, 2 * radius + 1, stride=1, padding=radius)[0, 0] == 0


def _check_picture(picture: Tensor) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != torch.uint8:
        shape = tuple(picture.shape)
        raise ValueError(f"picture: give [H, W, 3] uint8, not {shape} of {picture.dtype}")
    if min(picture.shape[:2]) < 8:
        raise ValueError(f"picture: give 8 pixels a side or more, not {tuple(picture.shape[:2])}")
