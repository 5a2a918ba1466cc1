"""Every stage learns: its tiny config overfits one batch, with the conditions it should see."""

import pytest
import torch

from unclip import CLIP
from unclip.diffusion.noise import child_generators
from unclip_train.cli import make_stage
from unclip_train.clip import augmented, bent, tinted
from unclip_train.config import ConfigError
from unclip_train.data.loader import collate
from unclip_train.draws import draw_masks
from unclip_train.optimizer import make_optimizer


def overfit(stage, dataset, steps: int, positions=range(8)) -> tuple[float, float, dict]:
    """Mean loss over the first and the last tenth of steps on one batch with fixed draws."""
    from unclip_train.config import OptimizerConfig

    batch = collate([dataset[position] for position in positions])
    optimizer = make_optimizer(stage.network.train(), OptimizerConfig(lr=3e-3))
    losses = []
    for step in range(steps):
        generators = child_generators(list(range(step % 4 * 8, step % 4 * 8 + 8)), "overfit")
        parts = stage.loss(stage.network, batch, generators)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["loss"].item())
    tenth = max(4, steps // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth, parts


@pytest.mark.parametrize(
    ("name", "steps", "ratio"),
    [
        ("clip", 60, 0.5),
        ("judge", 60, 0.6),
        ("prior", 80, 0.3),
        ("decoder", 120, 0.4),
        ("upsampler_256", 80, 0.5),
        ("upsampler_1024", 60, 0.7),
    ],
)
def test_overfits_one_batch(name, steps, ratio, tiny_config, tiny_clip):
    stage_name = {"judge": "clip"}.get(name, name.split("_")[0])
    overrides = [f"clip={tiny_clip}"] if stage_name in ("prior", "decoder") else []
    config = tiny_config(stage_name, *overrides, name=name)
    stage, dataset = make_stage(stage_name, config)
    first, last, _ = overfit(stage, dataset, steps)
    assert last < ratio * first, f"{name}: {first:.4f} -> {last:.4f}"


def test_held_out_drawings_are_in_no_batch(tiny_config, tiny_clip):
    for name in ("clip", "prior", "decoder"):
        overrides = [] if name == "clip" else [f"clip={tiny_clip}"]
        _, dataset = make_stage(name, tiny_config(name, *overrides))
        seen = {dataset[position]["id"] for position in range(4 * len(dataset))}
        assert len(seen) == 15 and "noto/black-ring" not in seen
    _, dataset = make_stage("upsampler", tiny_config("upsampler", name="upsampler_256"))
    assert "noto/black-ring" not in {drawing.id for drawing in dataset.drawings}


def test_augmentation_is_keyed_small_and_keeps_a_flat_picture_flat():
    x = torch.rand(4, 3, 16, 16) * 2 - 1

    def make(seeds):
        return augmented(x, child_generators(seeds, "augment"))

    once, again = make([1, 2, 3, 4]), make([1, 2, 3, 4])
    assert torch.equal(once, again) and once.abs().max() <= 1
    assert torch.equal(make([1, 2, 9, 9])[:2], once[:2])  # a picture's draws are its own
    assert not torch.equal(once, x)
    flat = torch.full((64, 3, 16, 16), 0.5)
    changed = augmented(flat, child_generators(list(range(64)), "augment"))
    assert (changed.flatten(2).median(2).values - 0.5).abs().max() < 0.25
    assert changed.flatten(2).std(2).quantile(0.25) < 1e-3  # a third: neither grained nor patched


def bent_by(x, scale=1.0, angle=0.0, stretch=1.0, slant=0.0, shift=(0.0, 0.0)):
    told = [torch.full((len(x),), value) for value in (scale, angle, stretch, slant)]
    return bent(x, *told, torch.tensor(shift).expand(len(x), 2))


def test_pictures_are_bent_as_told():
    x = torch.zeros(2, 3, 16, 16)
    x[:, :, 4:8, 8:12] = 1
    assert torch.allclose(bent_by(x), x, atol=1e-6)
    assert torch.allclose(bent_by(x, shift=(0.5, 0.0)), x.roll(-4, dims=-1), atol=1e-6)
    assert torch.allclose(bent_by(x, shift=(0.0, -0.5)), x.roll(4, dims=-2), atol=1e-6)
    assert torch.allclose(bent_by(x, angle=torch.pi / 2), x.rot90(1, (-2, -1)), atol=1e-4)
    assert bent_by(x, scale=2.0).sum() == pytest.approx(float(x.sum()) / 4, rel=0.1)
    narrow = bent_by(x, stretch=2.0)  # half as wide, twice as high
    assert narrow.sum() == pytest.approx(float(x.sum()), rel=0.1)
    assert (narrow > 0.5).any(dim=-1).sum() == 2 * 3 * 8 and (narrow > 0.5).any(dim=-2).sum() == 12
    centre = (narrow > 0.5).float().mean((0, 1)).nonzero().float().mean(0)
    assert centre.tolist() == [3.5, 8.5]  # twice as far up, half as far right, as that of x
    column = bent_by(x[..., 8:9].expand_as(x) * 1.0, slant=0.5)
    assert torch.allclose(column, x[..., 8:9].expand_as(x), atol=1e-5)  # rows slide along
    assert not torch.allclose(bent_by(x, slant=0.5), x, atol=0.5)


def test_tinting_moves_hues_and_leaves_grey_grey():
    x = torch.rand(2, 3, 4, 4)
    even = torch.ones(2, 3)
    assert torch.allclose(tinted(x, even, torch.zeros(2, 3, 2)), x)
    mixing = torch.zeros(2, 3, 2)
    mixing[:, 0, 0] = 0.25  # of the channel before red, round the circle: blue
    changed = tinted(x, even, mixing)
    assert torch.allclose(changed[:, 0], 0.75 * x[:, 0] + 0.25 * x[:, 2])
    assert torch.equal(changed[:, 1:], x[:, 1:])
    grey = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(tinted(grey, 0.9 * even, torch.rand(2, 3, 2)), 0.9 * grey, atol=1e-6)
