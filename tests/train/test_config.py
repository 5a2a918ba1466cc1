"""Configs: what is shipped is valid; what is wrong is named."""

import pytest

from unclip import Decoder, Prior, Upsampler
from unclip_train.config import (
    SCHEMAS,
    ConfigError,
    config_path,
    load_config,
    save_config,
)
from unclip_train.networks import build_network

SHIPPED = sorted(
    f"{path.parent.name}/{path.stem}"
    for path in config_path("tiny/clip").parents[1].glob("*/*.yaml")
)


def stage_of(name: str) -> str:
    stem = name.split("/")[-1].split("_")[0]
    return {"judge": "clip"}.get(stem, stem)


def test_every_family_has_every_stage():
    stages = {"clip", "prior", "decoder", "upsampler_256", "upsampler_1024"}
    for family in ("emoji", "dalle2", "tiny"):
        assert stages <= {name.split("/")[1] for name in SHIPPED if name.startswith(family)}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_is_valid_and_builds(name):
    import torch

    config = load_config(stage_of(name), name)
    classes = {"prior": Prior, "decoder": Decoder, "upsampler": Upsampler}
    if stage_of(name) in classes:
        with torch.device("meta"):
            network = build_network(classes[stage_of(name)], config.network)
        assert sum(parameter.numel() for parameter in network.parameters()) > 10_000


@pytest.mark.parametrize(
    ("name", "millions"),
    [("prior", 1230), ("decoder", 3565), ("upsampler_256", 692), ("upsampler_1024", 267)],
)
def test_paper_sizes(name, millions):
    """The dalle2 configs have the sizes of table 3, counted by its formulas to 5 %.

    The prior is without a vocabulary, since it reads CLIP's states; the upsamplers are without
    scale and shift, as in Karlo. The table itself says 1 B, 3.5 B, 700 M and 300 M.
    """
    import torch

    config = load_config(stage_of(name), f"dalle2/{name}")
    classes = {"prior": Prior, "decoder": Decoder, "upsampler": Upsampler}
    extra = {} if stage_of(name) == "upsampler" else {"embedding_dim": 1024}
    with torch.device("meta"):
        network = build_network(classes[stage_of(name)], config.network, **extra)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(1e6 * millions, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run.stepz=3"], ["stepz", "steps"]),
        (["optimizer.lrr=1"], ["lrr", "lr"]),
        (["optimizer.lr=nan"], ["optimizer.lr"]),
        (["optimizer.lr=fast"], ["optimizer.lr"]),
        (["run.steps=-5"], ["run.steps"]),
        (["run.batch_size=0"], ["run.batch_size"]),
        (["run.precision=fp8"], ["run.precision", "bf16"]),
        (["optimizer.decay=exponential"], ["optimizer.decay", "cosine"]),
        (["drop_text=1.5"], ["drop_text"]),
        (["data.plain_share=-0.1"], ["data.plain_share"]),
        (["steps"], ["key=value"]),
        (["output=${oc.env:HF_TOKEN}"], ["secrets"]),
    ],
)
def test_mistakes_are_named(overrides, words):
    with pytest.raises(ConfigError) as error:
        load_config("decoder", "tiny/decoder", overrides)
    line = str(error.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_unknown_network_argument_names_the_nearest():
    with pytest.raises(ConfigError, match="channles.*channels"):
        build_network(Decoder, {"channles": [32]})


def test_network_arguments_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="head_dim"):
        build_network(Decoder, {"channels": [32, 96], "attention_levels": [False, True]})
    with pytest.raises(ConfigError, match="stem"):
        build_network(Upsampler, {"stem": 4})


def test_missing_file_lists_the_installed_ones():
    with pytest.raises(ConfigError, match="emoji/decoder"):
        load_config("decoder", "nowhere.yaml")


def test_saved_config_loads_again(tmp_path):
    config = load_config("decoder", "emoji/decoder", ["run.steps=7"])
    save_config(config, tmp_path / "run.yaml")
    assert load_config("decoder", tmp_path / "run.yaml") == config


def test_schemas_cover_the_stages():
    assert set(SCHEMAS) == {"clip", "prior", "decoder", "upsampler", "assemble"}


def test_icons_fit_each_other():
    """Sizes that no other family has: 32 pixels, and then 128."""
    import torch

    clip, prior, decoder, upsampler = (
        load_config(stage_of(name), f"icons/{name}")
        for name in ("clip", "prior", "decoder", "upsampler_256")
    )
    text, width = clip.network["text"], clip.network["projection_dim"]
    assert text["hidden_size"] == width  # the prior asks for it
    seen = {"embedding_dim": width, "context": text["max_position_embeddings"]}
    with torch.device("meta"):
        build_network(Prior, prior.network, **seen)
        drawn = build_network(Decoder, decoder.network, size=decoder.data.size, **seen)
        enlarged = build_network(Upsampler, upsampler.network)
    assert 4 * drawn.config.size == enlarged.config.size == upsampler.data.size == 128
    assert decoder.network["z_img_scale"] == pytest.approx(width**0.5, abs=1e-3)
