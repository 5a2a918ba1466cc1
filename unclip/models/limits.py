"""Which sizes of networks fit together: rules without tensors, so that a config is checked at once.

Each function raises ValueError, naming the argument.
"""

from __future__ import annotations

from collections.abc import Sequence

STEM_OF_NOISE = 2  # a larger stem cannot pass all the noise of a cell through its channels


def check_prior(normalization: str) -> None:
    """Refuse a space for diffusion that is not known."""
    if normalization not in ("statistics", "scale"):
        raise ValueError(f"normalization must be 'statistics' or 'scale', not {normalization!r}")


def check_decoder(
    size: int,
    stem: int,
    channels: Sequence[int],
    attention_levels: Sequence[bool],
    head_dim: int,
    context: int,
    prediction: str,
    norm_groups: int = 32,
    learned_variance: bool = False,
) -> None:
    """Refuse arguments that would fail late or give silently wrong attention."""
    check_prediction(prediction)
    if prediction == "x_0" and learned_variance:
        raise ValueError("learned_variance needs prediction 'eps' or 'v', not 'x_0'")
    check_positive(size=size, stem=stem, head_dim=head_dim, norm_groups=norm_groups)
    check_channels(channels, norm_groups)
    if len(attention_levels) != len(channels):
        raise ValueError(
            f"attention_levels has {len(attention_levels)} entries for {len(channels)} channels"
        )
    grid = size // stem
    if size % stem or grid % 2 ** (len(channels) - 1):
        raise ValueError(f"size {size} with stem {stem} cannot be halved {len(channels) - 1} times")
    for level, (width, attends) in enumerate(zip(channels, attention_levels, strict=True)):
        attends = attends or level == len(channels) - 1  # the middle block always does
        if attends and width % head_dim:
            raise ValueError(f"channels[{level}] = {width} is no multiple of head_dim {head_dim}")
        # diffusers pads the mask only when its length differs from the number of cells
        if attends and (grid // 2**level) ** 2 == context + 4:
            raise ValueError(f"context {context} + 4 equals the cells of level {level}: change it")


def check_upsampler(
    size: int,
    stem: int,
    channels: Sequence[int],
    prediction: str,
    norm_groups: int,
    shock_passes: int | None = None,
) -> None:
    """Refuse sizes that cannot be halved, and predictions that a stem or a filter cannot make."""
    check_prediction(prediction)
    check_positive(size=size, stem=stem, norm_groups=norm_groups)
    check_channels(channels, norm_groups)
    if stem > STEM_OF_NOISE and prediction != "x_0":
        raise ValueError(f"stem {stem} needs prediction 'x_0', not {prediction!r}")
    if shock_passes is None:
        return
    check_positive(shock_passes=shock_passes)
    if prediction != "x_0":
        raise ValueError(f"shock_passes {shock_passes} needs prediction 'x_0', not {prediction!r}")


def check_prediction(prediction: str) -> None:
    """Refuse a kind of prediction that is not known."""
    if prediction not in ("eps", "v", "x_0"):
        raise ValueError(f"prediction must be 'eps', 'v' or 'x_0', not {prediction!r}")


def check_channels(channels: Sequence[int], norm_groups: int) -> None:
    """Refuse levels without width, or none at all, and such as do not part into groups."""
    if not channels or any(width < 1 for width in channels):
        raise ValueError(f"channels must be positive numbers, one a level, not {list(channels)}")
    if any(width % norm_groups for width in channels):
        raise ValueError(f"norm_groups {norm_groups} must divide all channels {tuple(channels)}")


def check_positive(**sizes: int) -> None:
    """Refuse sizes below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
