"""Every stage learns: its tiny config overfits one batch, with the conditions it should see."""

import pytest
import torch

from unclip import CLIP
from unclip.diffusion.noise import child_generators
from unclip.models.shock import smooth, steepen
from unclip_train.checks import check_config
from unclip_train.cli import make_stage
from unclip_train.clip import augmented, moved
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
    assert changed.flatten(2).std(2).median() < 1e-3  # most are neither grained nor patched


def test_pictures_are_moved_as_told():
    x = torch.zeros(2, 3, 16, 16)
    x[:, :, 4:8, 8:12] = 1
    one, none = torch.ones(2), torch.zeros(2)
    assert torch.allclose(moved(x, one, none, torch.zeros(2, 2)), x, atol=1e-6)
    shifted = moved(x, one, none, torch.tensor([[0.5, 0.0], [0.0, -0.5]]))
    assert torch.allclose(shifted[0], x[0].roll(-4, dims=-1), atol=1e-6)
    assert torch.allclose(shifted[1], x[1].roll(4, dims=-2), atol=1e-6)
    turned = moved(x, one, torch.full((2,), torch.pi / 2), torch.zeros(2, 2))
    assert torch.allclose(turned, x.rot90(1, (-2, -1)), atol=1e-4)
    assert moved(x, 2 * one, none, torch.zeros(2, 2)).sum() == pytest.approx(
        float(x.sum()) / 4, rel=0.1
    )


def test_a_judge_is_saved_and_read_as_a_clip(tiny_config, tmp_path):
    stage, dataset = make_stage("clip", tiny_config("clip", name="judge"))
    network = stage.network.eval()
    stage.save(network, tmp_path / "judge")
    judge = CLIP.from_pretrained(tmp_path / "judge")
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(judge.encode_image(x), network.clip.encode_image(x))
    texts = ["red circle", "blue bar"]
    assert torch.equal(judge.encode_text(texts).z_txt, network.clip.encode_text(texts).z_txt)
    assert judge.encode_image(x).shape == (2, 32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model_type=rasnet", "network.vision.model_type"),
        ("hidden_size=null", "network.vision.hidden_size"),
    ],
)
def test_a_tower_that_cannot_be_built_is_named(change, named, tiny_config):
    config = tiny_config("clip", f"network.vision.{change}", name="judge")
    with pytest.raises(ConfigError, match=named):
        make_stage("clip", config)


def test_captions_have_their_own_embeddings(tiny_clip):
    clip = CLIP.from_pretrained(tiny_clip)
    text = clip.encode_text(["a red circle", "a blue circle", "a red square", ""])
    distances = torch.cdist(text.z_txt, text.z_txt) + torch.eye(4)
    assert distances.min() > 1e-3


def test_decoder_drops_conditions_independently(tiny_config, tiny_clip):
    """At 10 % and 50 % as configured, the network is told of no embeddings and empty captions."""
    stage, dataset = make_stage("decoder", tiny_config("decoder", f"clip={tiny_clip}"))
    empty = stage.clip.encode_text([""]).tokens[0]
    seen = {"z_img": [], "text": []}

    def spy(x_t, t, z_img, text, known, no_z_img):
        assert known is None
        seen["z_img"] += no_z_img.tolist()
        seen["text"] += (text.tokens == empty).all(1).tolist()
        return torch.zeros(len(x_t), 6, 16, 16)

    spy.parameters = stage.network.parameters
    batch = collate([dataset[position % 15] for position in range(500)])
    for start in (0, 500, 1000, 1500):
        stage.loss(spy, batch, child_generators(list(range(start, start + 500)), "drops"))
    no_z_img, no_text = torch.tensor(seen["z_img"]), torch.tensor(seen["text"])
    assert abs(no_z_img.float().mean() - 0.1) < 0.02
    assert abs(no_text.float().mean() - 0.5) < 0.03
    assert abs((no_z_img & no_text).float().mean() - 0.05) < 0.015


def test_an_upsampler_has_the_error_and_the_times_that_it_was_told(tiny_config):
    """Of gray in place of x_0 the absolute error is |x_0|; a mean of 3 asks for much noise."""
    words = ["network.prediction=x_0", "max_loss_weight=1", "loss_power=1"]
    words += ["timestep_mean=3.0", "timestep_std=0.5"]
    stage, dataset = make_stage("upsampler", tiny_config("upsampler", *words, name="upsampler_256"))
    times = []

    def gray(x_t, t, x_low, noise_level, steep):
        times.extend(t.tolist())
        return torch.zeros_like(x_t)

    gray.parameters = stage.network.parameters
    batch = collate([dataset[position] for position in range(50)])
    loss = stage.loss(gray, batch, child_generators(list(range(50)), "times"))["loss"]
    assert loss.item() == pytest.approx((batch["image"] / 127.5 - 1).abs().mean().item(), rel=1e-5)
    assert min(times) > 750 and 940 < sum(times) / 50 < 960  # 1000 sigmoid(3) = 953


def test_an_upsampler_begins_from_weights_without_a_readout(tiny_config, tmp_path):
    shape = ["network.stem=8", "network.prediction=x_0"]
    first = tiny_config("upsampler", *shape, name="upsampler_256")
    plain, _ = make_stage("upsampler", first)
    plain.save(plain.network, tmp_path / "plain")
    words = [*shape, "network.readout=64", f"init={tmp_path / 'plain'}"]
    config = tiny_config("upsampler", *words, name="upsampler_256")
    check_config("upsampler", config)
    stage, dataset = make_stage("upsampler", config)
    assert torch.equal(stage.network.unet.conv_in.weight, plain.network.unet.conv_in.weight)
    before, after, _ = overfit(stage, dataset, 40)
    assert after < 0.9 * before and stage.network.unet.conv_out.out.weight.abs().max() > 0
    stage.save(stage.network, tmp_path / "read")
    words[1:] = ["network.readout=32", f"init={tmp_path / 'read'}"]
    with pytest.raises(ConfigError, match=r"network.readout is 32, but .* have 64"):
        make_stage("upsampler", tiny_config("upsampler", *words, name="upsampler_256"))


def test_weights_that_are_not_told_of_noise_are_given_none(tiny_config, tmp_path):
    stage, _ = make_stage("upsampler", tiny_config("upsampler", name="upsampler_256"))
    stage.save(stage.network, tmp_path / "plain")
    words = [f"init={tmp_path / 'plain'}", "max_noise_level=100"]
    with pytest.raises(ConfigError, match="max_noise_level is 100, but the weights of init="):
        make_stage("upsampler", tiny_config("upsampler", *words, name="upsampler_256"))


def test_a_clip_begins_from_weights_of_its_own_sizes(tiny_config, tiny_clip):
    stage, _ = make_stage("clip", tiny_config("clip", f"init={tiny_clip}"))
    assert stage.network.clip.embedding_dim == 32
    for word in ("network.vision.patch_size=8", "network.projection_dim=64"):
        key = word.partition("=")[0]
        with pytest.raises(ConfigError, match=f"^{key} is .* but the weights of init="):
            make_stage("clip", tiny_config("clip", f"init={tiny_clip}", word))


def test_a_prior_begins_from_weights_of_fewer_layers(tiny_config, tiny_clip, tmp_path):
    first = tiny_config("prior", f"clip={tiny_clip}", "network.num_layers=2")
    shallow, _ = make_stage("prior", first)
    shallow.save(shallow.network, tmp_path / "shallow")
    words = ["network.num_layers=3", f"clip={tiny_clip}", f"init={tmp_path / 'shallow'}"]
    config = tiny_config("prior", *words)
    check_config("prior", config)
    stage, dataset = make_stage("prior", config)
    begun, known = (part.network.transformer.transformer_blocks for part in (stage, shallow))
    assert torch.equal(begun[0].ff.net[-1].weight, known[0].ff.net[-1].weight)
    before, after, _ = overfit(stage, dataset, 40)
    assert after < 0.9 * before and begun[2].ff.net[-1].weight.abs().max() > 0
    words[0] = "network.num_layers=1"
    with pytest.raises(ConfigError, match=r"network.num_layers is 1, but .* have 2"):
        check_config("prior", tiny_config("prior", *words))


def test_an_upsampler_with_a_shock_filter_learns_what_is_smooth(tiny_config, tmp_path):
    """It goes on from weights without one; its loss is 0 where the prediction is smooth(x_0)."""
    words = ["network.prediction=x_0", "network.stem=4"]
    plain, _ = make_stage("upsampler", tiny_config("upsampler", *words, name="upsampler_256"))
    plain.save(plain.network, tmp_path / "plain")
    words += ["network.shock_passes=2", f"init={tmp_path / 'plain'}"]
    config = tiny_config("upsampler", *words, name="upsampler_256")
    check_config("upsampler", config)
    stage, dataset = make_stage("upsampler", config)
    assert stage.network.config.shock_passes == 2
    batch = collate([dataset[position] for position in range(4)])
    x_0 = batch["image"] / 127.5 - 1

    def knows(x_t, t, x_low, noise_level, steep):
        assert not steep
        return smooth(x_0)

    knows.parameters = stage.network.parameters
    assert stage.loss(knows, batch, child_generators([1, 2, 3, 4], "t"))["loss"] < 1e-9
    before, after, _ = overfit(stage, dataset, 40)
    assert after < 0.9 * before
    given = torch.randn(1, 3, 32, 32), torch.tensor([900]), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        soft = stage.network(*given, steep=False)
        assert torch.equal(stage.network(*given), steepen(soft, 2))


def test_an_inpainting_decoder_begins_from_a_plain_one_and_learns(tiny_config, tiny_clip, tmp_path):
    """It keeps the plain one's weights, is told the picture beside the mask, and heeds it."""
    plain, _ = make_stage("decoder", tiny_config("decoder", f"clip={tiny_clip}"))
    plain.save(plain.network, tmp_path / "plain")
    words = (f"clip={tiny_clip}", f"init={tmp_path / 'plain'}", "network.inpainting=true")
    stage, dataset = make_stage("decoder", tiny_config("decoder", *words))
    assert stage.network.config.inpainting
    for name, weight in plain.network.state_dict().items():
        got = stage.network.state_dict()[name]
        assert torch.equal(got[:, :3] if name == "unet.conv_in.weight" else got, weight), name
    told = []

    def spy(x_t, t, z_img, text, known, no_z_img):
        told.append(known)
        return torch.zeros(len(x_t), 6, 16, 16)

    spy.parameters = stage.network.parameters
    batch = collate([dataset[position % 15] for position in range(64)])
    stage.loss(spy, batch, child_generators(list(range(64)), "masks"))
    picture, mask = told[0][:, :3], told[0][:, 3:]
    x_0 = batch["image"].float() / 127.5 - 1
    assert torch.equal(picture, x_0 * (1 - mask)) and {*mask.unique().tolist()} == {0.0, 1.0}
    assert 0.3 < mask.mean() < 0.7
    first, last, _ = overfit(stage, dataset, 24)
    assert last < 0.8 * first
    assert stage.network.unet.conv_in.weight[:, 3:].abs().max() > 1e-3


def test_masks_are_keyed_and_of_every_kind():
    masks = draw_masks(16, child_generators(list(range(400)), "masks"), "cpu")
    assert torch.equal(masks[7:8], draw_masks(16, child_generators([7], "masks"), "cpu"))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    whole = (masks.flatten(1).mean(1) == 1).float().mean().item()
    border = torch.cat([masks[..., 0, :], masks[..., -1, :], masks[..., 0], masks[..., -1]], -1)
    outside = (border.flatten(1).min(1).values == 1).float().mean().item() - whole
    assert 0.08 < whole < 0.2 and 0.08 < outside < 0.3


def test_prior_statistics_normalise_the_data(tiny_config, tiny_clip):
    stage, dataset = make_stage("prior", tiny_config("prior", f"clip={tiny_clip}"))
    batch = collate([dataset[position] for position in range(64)])
    z = stage.network.normalize(stage.clip.encode_image(batch["image"].float() / 127.5 - 1))
    assert z.mean(0).abs().max() < 1e-3
    assert (z.std(0) - 1).abs().max() < 1e-2
    assert torch.allclose(stage.network.normalize(stage.network.denormalize(z)), z, atol=1e-4)


@pytest.mark.parametrize("name", ["decoder", "upsampler_256"])
def test_preview_is_a_sheet_of_pictures(name, tiny_config, tiny_clip):
    stage_name = {"judge": "clip"}.get(name, name.split("_")[0])
    overrides = [f"clip={tiny_clip}"] if stage_name == "decoder" else []
    stage, _ = make_stage(stage_name, tiny_config(stage_name, *overrides, name=name))
    with torch.no_grad():
        sheet = stage.preview(stage.network.eval())
    assert sheet.size == ((8 * 16, 2 * 16) if stage_name == "decoder" else (8 * 16, 3 * 16))
