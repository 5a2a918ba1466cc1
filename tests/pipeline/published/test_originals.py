"""Checkpoints as their authors wrote them, held against what their published code says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unclip import LaionPrior, UnCLIPPipeline
from unclip.diffusion.noise import child_generators
from unclip.models.clip import TextEncoding
from unclip.pipeline.loading import ModelFileError
from unclip.pipeline.published import karlo_original, laion, packed_unet
from unclip.pipeline.published.parts import read_part
from unclip.pipeline.published.sources import read_encoder, read_prior
from unclip_train.config import ConfigError, PriorConfig
from unclip_train.prior import PriorStage
from unclip_train.weights import load_clip, load_network

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = {
    "prior": "prior-ckpt-step=01000000-of-01000000.ckpt",
    "decoder": "decoder-ckpt-step=01000000-of-01000000.ckpt",
    "super_resolution": "improved-sr-ckpt-step=1.2M.ckpt",
}
TINY = karlo_original.Sizes(head_dim=16, context=14, decoder=8, upsampler=32)


def shapes_of(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def seeded_weights(shapes, seed):
    """The weights of the golden outputs, drawn from names and shapes alone."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in sorted(shapes):
        noise = torch.randn(tuple(shapes[name]), generator=generator, dtype=torch.float64)
        divisor = noise[0].numel() ** 0.5 if noise.ndim > 1 else 10
        weights[name] = (noise / divisor if noise.ndim > 1 else 0.1 * noise).float()
    return weights


def write_originals(folder):
    """Tiny checkpoints in Karlo's own layout."""
    folder.mkdir()
    for part, file in FILES.items():
        weights = seeded_weights(shapes_of(f"karlo_original_tiny_{part}"), 11)
        torch.save({"state_dict": weights}, folder / file)
    torch.save((torch.linspace(-1, 1, 32), torch.linspace(0.5, 2, 32)), folder / "ViT_stats.th")
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return write_originals(tmp_path_factory.mktemp("original") / "karlo")


@pytest.fixture
def tiny_sizes(monkeypatch):
    monkeypatch.setattr(karlo_original, "SIZES", TINY)


def golden_text(golden):
    tokens = torch.ones(2, 14, dtype=torch.long)
    return TextEncoding(
        golden["input.z_txt"], golden["input.text_states"], golden["input.text_mask"], tokens
    )


@torch.no_grad()
def test_tiny_originals_give_the_outputs_of_the_published_code(originals, tiny_sizes):
    golden = load_file(GOLDEN / "karlo_original_tiny.safetensors")
    text, t = golden_text(golden), golden["input.t"]
    prior = karlo_original.read_prior(originals / FILES["prior"], originals / "ViT_stats.th")
    decoder = karlo_original.read_decoder(originals / FILES["decoder"], torch.float32)
    upsampler = karlo_original.read_upsampler(originals / FILES["super_resolution"], torch.float32)
    assert torch.equal(prior.transformer.clip_std[0], torch.linspace(0.5, 2, 32))
    x = torch.cat([golden["input.x_t_large"], golden["input.x_low_resized"]], dim=1)
    outputs = {
        "prior": prior(golden["input.z_t"], t, text),
        "decoder": decoder(golden["input.x_t"], t, golden["input.z_img"], text),
        "super_res_first": upsampler.unet(x, t).sample,
        "super_res_last": upsampler.unet_last(x, t).sample,
    }
    for name, output in outputs.items():
        assert (output - golden[f"output.{name}"]).abs().max() < 1e-5, name


def meta(shapes, prefix):
    return {
        name.removeprefix(prefix): torch.empty(shape, device="meta")
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }


def translated(pairs):
    return {name: list(tensor.shape) for name, tensor in pairs}


def network_shapes(network):
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def test_full_size_originals_fit(karlo_networks):
    path = Path("x.ckpt")
    prior = meta(shapes_of("karlo_original_prior"), "model.")
    own = network_shapes(karlo_networks["prior"].transformer)
    statistics = {name: own.pop(name) for name in ("clip_mean", "clip_std")}
    assert set(map(tuple, statistics.values())) == {(1, 768)}
    found = ((n, w) for _, n, w in karlo_original.prior_weights(path, prior))
    assert translated(found) == own
    assert sum(w.numel() for w in prior.values()) == pytest.approx(1022e6, rel=1e-3)
    decoder = meta(shapes_of("karlo_original_decoder"), "model.")
    projections = {n: w for n, w in decoder.items() if karlo_original.projection_name(n)}
    unet = {n: w for n, w in decoder.items() if n not in projections}
    assert packed_unet.shape_of(unet) == packed_unet.Shape(
        (320, 640, 960, 1280), 3, (False, True, True, True)
    )
    assert translated(packed_unet.unpacked_unet(unet, 64)) == network_shapes(
        karlo_networks["decoder"].unet
    )
    named = ((karlo_original.projection_name(n), w) for n, w in projections.items())
    assert translated(named) == network_shapes(karlo_networks["decoder"].text_proj)
    for prefix, network in (
        ("model_first_steps.", karlo_networks["upsampler"].unet),
        ("model_last_step.", karlo_networks["upsampler"].unet_last),
    ):
        weights = meta(shapes_of("karlo_original_super_resolution"), prefix)
        assert translated(packed_unet.unpacked_unet(weights, 64)) == network_shapes(network)


def packed_checkpoints(karlo, folder):
    """diffusers' tiny Karlo written in the original layout: the inverse, made by hand."""
    folder.mkdir()
    text = karlo.text
    prior, pieces = text.prior.state_dict(), {}
    names = {new: old for old, new in karlo_original.PRIOR.items()}
    blocks = {new: old for old, new in karlo_original.PRIOR_BLOCK.items()}
    for name, tensor in prior.items():
        layer, _, kind = name.rpartition(".")
        if name in names:
            pieces[names[name]] = tensor
        elif layer in names:
            pieces[f"{names[layer]}.{kind}"] = tensor
        elif name.startswith("transformer_blocks"):
            _, number, part = layer.split(".", 2)
            home = f"transformer.resblocks.{number}"
            if part in blocks:
                pieces[f"{home}.{blocks[part]}.{kind}"] = tensor
            elif part == "attn1.to_q":
                rows = [prior[f"{layer[:-1]}{letter}.{kind}"] for letter in "qkv"]
                pieces[f"{home}.attn.c_qkv.{kind}"] = packed(rows)
    torch.save({"state_dict": prefixed(pieces, "model.")}, folder / FILES["prior"])
    torch.save((prior["clip_mean"][0], prior["clip_std"][0]), folder / "ViT-L-14_stats.th")
    projection = {new: old for old, new in karlo_original.PROJECTION.items()}
    decoder = packed_network(text.decoder)
    for name, tensor in text.text_proj.state_dict().items():
        layer, _, kind = name.rpartition(".")
        own = projection.get(name) or f"{projection[layer]}.{kind}"
        decoder[own] = tensor
    torch.save({"state_dict": prefixed(decoder, "model.")}, folder / FILES["decoder"])
    both = prefixed(packed_network(text.super_res_first), "model_first_steps.")
    both |= prefixed(packed_network(text.super_res_last), "model_last_step.")
    torch.save({"state_dict": both}, folder / FILES["super_resolution"])
    return folder


def prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


def packed(rows):
    """Queries, keys and values side by side, head by head."""
    return torch.cat(
        [row[16 * h : 16 * (h + 1)] for h in range(len(rows[0]) // 16) for row in rows]
    )


def packed_network(unet):
    """A U-Net of diffusers in packed names."""
    attends = any("attentions" in name for name in unet.state_dict())
    shape = packed_unet.Shape(unet.config.block_out_channels, 1, (False, attends))
    homes = {new: old for old, new in packed_unet.places(shape).items()}
    ends = {new: old for old, new in packed_unet.ENDS.items()}
    parts = {new: old for old, new in (packed_unet.RESNET | packed_unet.ATTENTION).items()}
    state, found = unet.state_dict(), {}
    for name, tensor in state.items():
        layer, kind = name.rsplit(".", 1)
        if layer in ends:
            found[f"{ends[layer]}.{kind}"] = tensor
            continue
        home = next(new for new in homes if layer.startswith(f"{new}."))
        part = layer.removeprefix(f"{home}.")
        attention = "attentions" in home
        if part in parts:
            wide = attention and part != "group_norm" and kind == "weight"
            found[f"{homes[home]}.{parts[part]}.{kind}"] = tensor[..., None] if wide else tensor
        elif part in ("to_q", "add_k_proj"):
            old = "qkv" if part == "to_q" else "encoder_kv"
            rows = packed([state[f"{home}.{own}.{kind}"] for own in packed_unet.PACKED[old]])
            found[f"{homes[home]}.{old}.{kind}"] = rows[..., None] if kind == "weight" else rows
    return found


def test_the_original_layout_draws_what_diffusers_layout_draws(karlo, tiny_sizes, tmp_path):
    folder = packed_checkpoints(karlo, tmp_path / "karlo")
    original = UnCLIPPipeline.from_pretrained(folder, clip=karlo.text_folder)
    other = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    other.prior_scheduler.register_to_config(clip_sample_range=karlo_original.CLIP_RANGE)
    for pipe in (original, other):
        pipe.set_progress_bar_config(disable=True)
    for name in ("prior", "decoder", "upsampler_256"):
        ours, theirs = (pipe.components[name].state_dict() for pipe in (original, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    steps = {f"{stage}_num_inference_steps": 2 for stage in ("prior", "decoder", "upsampler_256")}
    a, b = (
        pipe("a red apple", seeds=3, output_type="pt", **steps).images for pipe in (original, other)
    )
    assert torch.equal(a, b)
    assert original.config.default_steps["decoder"] == 50


def test_the_original_layout_needs_a_clip_and_every_file(originals, tiny_sizes):
    with pytest.raises(ValueError, match="clip: .*openai/clip-vit-large-patch14"):
        UnCLIPPipeline.from_pretrained(originals)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("fault", ["code", "extra", "missing", "shape", "nan", "cut", "nothing"])
@pytest.mark.parametrize("part", FILES)
def test_faulty_originals(fault, part, tiny_sizes, tmp_path):
    path = tmp_path / FILES[part]
    weights = seeded_weights(shapes_of(f"karlo_original_tiny_{part}"), 11)
    key = max(weights, key=lambda name: weights[name].numel())
    canary = tmp_path / "canary"
    state = {
        "code": {**weights, key: Bomb(canary)},
        "extra": {**weights, "model.smuggled": torch.zeros(1)},
        "missing": {name: tensor for name, tensor in weights.items() if name != key},
        "shape": {**weights, key: weights[key][:1]},
        "nan": {**weights, key: weights[key] * torch.nan},
        "cut": weights,
        "nothing": {},
    }[fault]
    torch.save({"state_dict": state}, path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    statistics = tmp_path / "stats.th"
    torch.save((torch.zeros(32), torch.ones(32)), statistics)
    read = {
        "prior": lambda: karlo_original.read_prior(path, statistics),
        "decoder": lambda: karlo_original.read_decoder(path, torch.float32),
        "super_resolution": lambda: karlo_original.read_upsampler(path, torch.float32),
    }[part]
    with pytest.raises(ModelFileError) as error:
        read()
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not canary.exists()


# LAION


@pytest.fixture(scope="module")
def laion_file(tmp_path_factory):
    """A tiny checkpoint as DALLE2-pytorch's trainer writes it: a version object beside weights."""
    from packaging.version import Version

    golden = load_file(GOLDEN / "laion_prior_tiny.safetensors")
    shapes = shapes_of("laion_prior_tiny")
    net = {name: shape for name, shape in shapes.items() if name.startswith("net.")}
    weights = seeded_weights(net, 21)
    for name in weights:
        if name.endswith("rotary_emb.freqs"):
            weights[name] = 10000 ** (-torch.arange(0, 16, 2) / 16)
    for name in shapes:
        if name.startswith("noise_scheduler."):
            weights[name] = torch.zeros(shapes[name])
    weights["noise_scheduler.betas"] = golden["betas"]
    path = tmp_path_factory.mktemp("laion") / "latest.pth"
    torch.save({"model": weights, "version": Version("1.15.6"), "step": torch.tensor(3)}, path)
    return path


@torch.no_grad()
def test_laion_prior_gives_the_outputs_of_the_published_code(laion_file):
    golden = load_file(GOLDEN / "laion_prior_tiny.safetensors")
    found = read_prior(laion_file)
    prior, text = found["prior"], golden_text(golden)
    z_t, t = golden["input.z_t"], golden["input.t"]
    assert found["steps"] == 64
    assert (prior(z_t, t, text) - golden["output.cond"]).abs().max() < 1e-5
    null = prior(z_t, t, prior.unconditional(text))
    assert (null - golden["output.null"]).abs().max() < 1e-5
    guided = null + 3 * (prior(z_t, t, text) - null)
    assert (guided - golden["output.guided"]).abs().max() < 1e-5
    scheduler = found["prior_scheduler"]
    assert (scheduler.alphas_cumprod - golden["alphas_cumprod"]).abs().max() < 1e-5
    z = torch.nn.functional.normalize(torch.randn(3, 32), dim=1)
    assert prior.normalize(z).norm(dim=1).tolist() == pytest.approx([32**0.5] * 3)
    assert torch.allclose(prior.denormalize(prior.normalize(z)), z)


def test_the_full_size_of_laion_prior():
    with torch.device("meta"):
        prior = LaionPrior()
    shapes = shapes_of("laion_prior")
    net = {name.removeprefix("net."): s for name, s in shapes.items() if name.startswith("net.")}
    assert network_shapes(prior) == net
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    sizes = laion.sizes_of(Path("latest.pth"), weights)
    assert {name: prior.config[name] for name in sizes} == sizes


def test_laion_prior_refuses_what_it_does_not_know(laion_file, tmp_path):
    state = torch.load(laion_file, weights_only=False)["model"]
    for changes, word in (
        ({"net.smuggled": torch.zeros(1)}, "smuggled"),
        ({"other.weight": torch.zeros(1)}, "other.weight"),
        ({"net.learned_query": state["net.learned_query"] * torch.nan}, "finite"),
        ({"noise_scheduler.betas": torch.linspace(1e-4, 0.02, 1000)}, "cosine"),
    ):
        torch.save({**state, **changes}, tmp_path / "a.pth")
        with pytest.raises(ModelFileError, match=word):
            read_prior(tmp_path / "a.pth")
    torch.save(state, tmp_path / "a.pth")
    for setting in ({"sampling_clamp_l2norm": True}, {"beta_schedule": "linear"}, {"betas": 1}):
        (tmp_path / laion.CONFIG_NAME).write_text(json.dumps({"prior": setting}))
        with pytest.raises(ModelFileError, match=f"{laion.CONFIG_NAME}.*{next(iter(setting))}"):
            read_prior(tmp_path / "a.pth")


def test_a_laion_prior_serves_decoders_of_unit_embeddings_alone(karlo, laion_file, own_model):
    with pytest.raises(ValueError, match="prior: .*length 1"):
        UnCLIPPipeline.from_pretrained(karlo.text_folder, prior=laion_file)
    pipe = UnCLIPPipeline.from_pretrained(own_model, prior=laion_file)
    pipe.set_progress_bar_config(disable=True)
    z_img = pipe.sample_prior(pipe.encode(["a", "b"]), [1, 2], guidance_scale=2.0, steps=4)
    alone = pipe.sample_prior(pipe.encode(["b"]), [2], guidance_scale=2.0, steps=4)
    assert torch.allclose(z_img[1:], alone, atol=1e-5) and z_img.std() > 0
    assert pipe.config.default_steps["prior"] == 64


# Kandinsky


def test_kandinsky_prior(kandinsky_folder, karlo):
    found = read_prior(kandinsky_folder)
    state = karlo.text.prior.state_dict()
    assert all(torch.equal(state[n], w) for n, w in found["prior"].transformer.state_dict().items())
    assert found["prior_scheduler"].config.clip_sample_range == 10.0
    assert found["prior"].config.clip_range == 10.0
    encoder = read_encoder(kandinsky_folder)
    assert not encoder["normalize"] and hasattr(encoder["clip"], "vision_model")
    pipe = UnCLIPPipeline.from_pretrained(karlo.text_folder, prior=kandinsky_folder)
    assert pipe.prior_scheduler.config.clip_sample_range == 10.0


@pytest.mark.parametrize(("dim", "millions"), [(768, 1022), (1280, 1026)])
def test_full_sizes_of_kandinsky_priors(dim, millions):
    """2.1 has CLIP ViT-L/14 (768), 2.2 has ViT-bigG/14 (1280)."""
    from diffusers import PriorTransformer

    from unclip import Prior

    with torch.device("meta"):
        published = PriorTransformer(embedding_dim=dim)
        own = Prior(embedding_dim=dim)
    assert network_shapes(own.transformer) == network_shapes(published)
    assert sum(p.numel() for p in own.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_a_pickle_is_announced(laion_file, caplog):
    read_prior(laion_file)
    assert any("is pickled" in record.message for record in caplog.records)


# Training that begins from them


@pytest.mark.parametrize("name", ["prior", "decoder", "upsampler_256"])
def test_training_begins_from_karlos_files(name, originals, tiny_sizes):
    network = load_network(name, str(originals), {})
    known = read_part(originals, name)
    assert network.training and not known.training
    assert all(map(torch.equal, network.state_dict().values(), known.state_dict().values()))
    with pytest.raises(ConfigError, match="network.size|network.num_layers"):
        load_network(name, str(originals), {"num_layers" if name == "prior" else "size": 999})


@pytest.mark.parametrize("levels", [1, 2])
def test_training_begins_from_a_laion_prior(levels, laion_file, karlo):
    network = load_network("prior", str(laion_file), {"embedding_dim": 32})
    assert isinstance(network, LaionPrior) and network.training
    config = PriorConfig(drop_text=0.3, noise_levels=levels)
    stage = PriorStage(network, load_clip(str(karlo.text_folder)), config)
    z_img = torch.nn.functional.normalize(torch.randn(6, 32), dim=1)
    batch = {"z_img": z_img, "caption": [f"number {n}" for n in range(6)]}
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = stage.loss(network, batch, child_generators(list(range(6)), "test"))["loss"]
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0], losses


def test_training_begins_from_a_model_of_the_hub(karlo, monkeypatch):
    asked = []

    def download(name, **settings):
        asked.append(name)
        return str(karlo.text_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    network = load_network("decoder", "hub:someone/karlo", {})
    known = read_part(karlo.text_folder, "decoder")
    assert asked == ["someone/karlo"]
    assert all(map(torch.equal, network.state_dict().values(), known.state_dict().values()))
    clip = load_clip("hub:someone/karlo")
    assert clip.embedding_dim == 32 and asked == ["someone/karlo"] * 2
