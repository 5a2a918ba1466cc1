"""What a run is told of held-out samples: the same samples, noise and figures every time."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

from unclip.diffusion.noise import child_generators
from unclip_train.cli import make_stage
from unclip_train.config import DataConfig, load_config
from unclip_train.data.build import make_dataset, make_held_out, reading_of, set_aside
from unclip_train.data.loader import collate
from unclip_train.data.sources.leave_out import bad_list
from unclip_train.data.sources.opening import Reading, open_source
from unclip_train.data.sources.records import Fault
from unclip_train.validation import HeldOut, mean_by_timestep, psnr, spread_timesteps

STAGES = ("clip", "prior", "decoder", "upsampler_256")


def stage_for(name, tiny_config, tiny_clip, *overrides):
    stage_name = name.split("_")[0]
    if stage_name in ("prior", "decoder"):
        overrides = (f"clip={tiny_clip}", *overrides)
    config = tiny_config(stage_name, *overrides, name=name)
    stage, dataset = make_stage(stage_name, config)
    stage.network.eval()
    return stage, dataset, config


@torch.no_grad()
def figures(stage, dataset, num_samples=12, batch_size=4):
    return stage.validate(stage.network, HeldOut(dataset, num_samples, batch_size))


@pytest.mark.parametrize("name", STAGES)
def test_figures_are_the_same_whatever_the_batches(name, tiny_config, tiny_clip):
    stage, dataset, _ = stage_for(name, tiny_config, tiny_clip)
    once, again = figures(stage, dataset), figures(stage, dataset)
    assert once == again and all(map(math.isfinite, once.values()))
    other = figures(stage, dataset, batch_size=12)
    assert other == pytest.approx(once, rel=1e-3, abs=1e-4)
    if name != "clip":
        buckets = [key for key in once if key.startswith("loss_t")]
        assert len(buckets) == 5 and {"loss_t0-199", "loss_t800-999"} <= set(buckets)


def test_cosines_of_a_prior_that_knows_the_answer_and_of_one_that_does_not(tiny_config, tiny_clip):
    stage, dataset, _ = stage_for("prior", tiny_config, tiny_clip)
    z_img = {}
    for batch in HeldOut(dataset, 12, 4):
        text = stage.clip.encode_text(batch["caption"])
        x = batch["image"].float() / 127.5 - 1
        z_img |= {
            z.sum().item(): z_0
            for z, z_0 in zip(text.z_txt, stage.clip.encode_image(x), strict=True)
        }

    def knows(z_t, t, text, prefix=None):
        known = [z_img[z.sum().item()] for z in text.z_txt]
        return stage.network.normalize(torch.stack(known))

    def guesses(z_t, t, text, prefix=None):
        return stage.network.normalize(torch.stack(list(z_img.values())).mean(0).expand_as(z_t))

    found = {}
    for name, forward in (("knows", knows), ("guesses", guesses)):
        stage.network.forward = forward
        found[name] = figures(stage, dataset)
    assert found["knows"]["cosine_image"] == pytest.approx(1.0, abs=1e-3)
    assert found["knows"]["loss"] < 1e-6 < found["guesses"]["loss"]
    assert found["knows"]["cosine_text"] == pytest.approx(found["knows"]["cosine_truth"], abs=1e-3)
    gap = {name: f["cosine_image"] - f["cosine_shuffled"] for name, f in found.items()}
    assert gap["knows"] > 0.05 and abs(gap["guesses"]) < 0.02


def test_recall_counts_the_right_ones(tiny_config, tiny_clip):
    stage, dataset, _ = stage_for("clip", tiny_config, tiny_clip)
    rows = torch.eye(4)[[0, 1, 2, 3]]

    def network(x, captions):
        return rows, rows[[0, 1, 3, 2]], torch.tensor(10.0)  # two of four captions are exchanged

    network.parameters = stage.network.parameters
    found = stage.validate(network, HeldOut(dataset, 4, 4))
    assert found["recall_image"] == found["recall_text"] == 0.5


def test_timesteps_are_spread_evenly_and_belong_to_positions():
    batch = {"position": list(range(1000))}
    t = spread_timesteps(1000, batch, torch.device("cpu"))
    assert torch.histc(t.float(), 10, 0, 1000).sub(100).abs().max() <= 1
    assert t[37] == spread_timesteps(1000, {"position": [37]}, torch.device("cpu"))[0]
    means = mean_by_timestep([(t, t.float())], 1000)
    assert means["loss_t0-199"] == pytest.approx(99.5, abs=0.6)
    assert means["loss"] == pytest.approx(499.5, abs=1)


def test_psnr():
    x = torch.zeros(2, 3, 8, 8)
    y = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.02)])
    assert torch.allclose(psnr(x, y), torch.tensor([20.0, 40.0]), atol=1e-4)


def test_a_share_of_pictures_is_set_aside_by_their_names(pictures_folder, tmp_path, tiny_clip):
    words = [f"data.source={pictures_folder}", f"output={tmp_path}", f"clip={tiny_clip}"]

    def names(dataset):
        return {dataset[position]["id"] for position in range(len(dataset))}

    for stage in ("prior", "decoder"):
        config = load_config(stage, f"tiny/{stage}", [*words, "data.validation_share=0.3"])
        learned, held_out = make_dataset(stage, config), make_held_out(stage, config)
        assert not names(learned) & names(held_out)
        assert len(names(learned) | names(held_out)) == len(learned) + len(held_out) == 20
        assert {name.split("/")[-1] for name in names(held_out)} == {
            f"{n:05d}.png" for n in range(20) if set_aside(f"{n:05d}.png", 0.3)
        }
    words = [w for w in words if not w.startswith("clip")] + ["data.size=16", "data.crop=8"]
    config = load_config("upsampler", "tiny/upsampler_256", [*words, "data.validation_share=0.3"])
    assert names(make_held_out("upsampler", config)) == names(held_out)
    assert make_held_out("upsampler", load_config("upsampler", "tiny/upsampler_256", words)) is None
    shares = sum(set_aside(str(n), 0.1) for n in range(10_000)) / 10_000
    assert shares == pytest.approx(0.1, abs=0.01)


def test_another_source_may_be_measured_on(pictures_folder, drawings_folder, tmp_path):
    words = [f"data.source={pictures_folder}", f"data.validation={pictures_folder}"]
    config = load_config("clip", "tiny/clip", [*words, f"output={tmp_path}"])
    assert len(make_held_out("clip", config)) == len(make_dataset("clip", config)) == 20
    config = load_config("clip", "tiny/clip", [f"data.source={drawings_folder}"])
    held_out = make_held_out("clip", config)
    assert {held_out[position]["id"] for position in range(4)} == {"noto/black-ring"}


def test_a_share_is_set_aside_by_whole_paths(pictures_folder, tmp_path):
    """Scenes whose pictures have one name, as cameras and converters give them."""
    for number, path in enumerate(sorted(pictures_folder.glob("*.png"))):
        folder = tmp_path / "scenes" / f"scene{number:03d}"
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "photo.png")
        (folder / "photo.txt").write_text(f"scene {number}")
    words = [f"data.source={tmp_path / 'scenes'}", "data.validation_share=0.3"]
    config = load_config("clip", "tiny/clip", [*words, f"output={tmp_path}"])
    learned, held_out = make_dataset("clip", config), make_held_out("clip", config)
    assert len(learned) + len(held_out) == 20 and 2 <= len(held_out) <= 10


def test_what_names_samples_of_the_source_says_nothing_of_the_other(pictures_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pictures_folder, other)
    (other / "00000.txt").write_text("another caption")
    bad = tmp_path / "bad.json"
    source = open_source(str(pictures_folder))
    bad.write_text(json.dumps(bad_list(source, {3: Fault("broken picture", "00003.png")})))
    words = [f"data.source={pictures_folder}", f"data.validation={other}"]
    words += [f"data.leave_out={bad}", f"output={tmp_path}"]
    config = load_config("clip", "tiny/clip", words)
    assert len(make_dataset("clip", config)) == 19 and len(make_held_out("clip", config)) == 20


def test_how_another_source_is_read(pictures_folder):
    reading = {"subset": "full", "revision": "v1", "split": "test", "caption_column": "words"}
    hub = {"source": "hub:owner/name", "streaming": True, **reading}
    data = DataConfig(validation="hub:owner/other", **hub)
    assert reading_of(data, data.source).subset == "full"
    assert reading_of(data, data.validation) == Reading(
        split="test", caption_column="words", streaming=True
    )
    data = DataConfig(validation=str(pictures_folder), **hub)
    assert not reading_of(data, data.validation).streaming
    data = DataConfig(source=str(pictures_folder), validation="hub:owner/other", **reading)
    assert reading_of(data, data.validation) == Reading(**reading)


@pytest.mark.parametrize("levels", [1, 4])
def test_noise_levels_in_one_pass_are_the_plain_loop(levels, tiny_config, tiny_clip):
    """Loss and gradients equal those of the levels one by one over the whole sequence."""
    stage, dataset, _ = stage_for("prior", tiny_config, tiny_clip, f"noise_levels={levels}")
    stage.network.train()
    batch = collate([dataset[position] for position in range(6)])
    seen = []

    def spy(z_t, t, text, prefix=None):
        seen.append((z_t, t, text))
        return type(stage.network).forward(stage.network, z_t, t, text, prefix)

    spy.parameters = stage.network.parameters
    loss = stage.loss(spy, batch, child_generators(list(range(6)), "levels"))["loss"]
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in stage.network.named_parameters() if p.requires_grad}
    (z_t, t, text), x = seen[0], batch["image"].float() / 127.5 - 1
    assert len(set(t.tolist())) > levels and t.shape == (6 * levels,)
    stage.network.zero_grad()
    z_0 = stage.network.normalize(stage.clip.encode_image(x)).detach()
    plain = [
        F.mse_loss(stage.network(z_t[rows], t[rows], text), z_0)
        for rows in torch.arange(6 * levels).split(6)
    ]
    plain = torch.stack(plain).mean()
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, parameter in stage.network.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6), name
