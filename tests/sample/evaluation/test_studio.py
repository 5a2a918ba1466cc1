"""Pictures are drawn once, by one process or several, and depend on what they should."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unclip_sample.evaluation.studio import Processes, Sample, Studio
from unclip_sample.png import read_png

APPLE = Sample("an apple", 7)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_a_picture_is_that_of_the_pipeline(studio, loaded):
    (drawn,) = studio.draw([APPLE])
    output = loaded("an apple", seeds=[7], size=64)
    assert (drawn.pixels == np.asarray(output.images[0])).all()
    assert torch.equal(drawn.z_img, output.image_embeds[0])
    record = read_png(studio.folder / drawn.path)
    assert record["prompt"] == "an apple" and record["seed"] == 7
    assert record["model_hash"] == studio.digest and record["guidance"]["decoder"] == 2.0


def test_without_a_caption_z_img_has_its_own_guidance(studio, loaded, monkeypatch):
    own = loaded.config.default_guidance
    scales = {**own, "decoder": 5.0, "image": 1.0}
    config = type(loaded.config)({**loaded.config, "default_guidance": scales})
    monkeypatch.setattr(loaded, "_internal_dict", config)
    wordless = Sample("", 0, "z_img", z_img=torch.zeros(32))
    assert studio.resolved(wordless).guidance == 1.0
    assert studio.resolved(replace(wordless, guidance=2.0)).guidance == 2.0
    assert studio.resolved(APPLE).guidance == 5.0


def test_candidates_are_the_models(studio, loaded, monkeypatch):
    config = type(loaded.config)({**loaded.config, "default_candidates": 3})
    monkeypatch.setattr(loaded, "_internal_dict", config)
    assert studio.resolved(APPLE).num_candidates == 3
    assert studio.resolved(replace(APPLE, num_candidates=2)).num_candidates == 2


def test_an_interval_of_the_model_makes_other_pictures(studio, loaded, monkeypatch):
    name = studio.key(studio.resolved(APPLE))
    config = type(loaded.config)({**loaded.config, "default_guidance_interval": [0, 900]})
    monkeypatch.setattr(loaded, "_internal_dict", config)
    assert studio.key(studio.resolved(APPLE)) != name


def test_only_what_is_missing_is_drawn(studio):
    samples = [APPLE, Sample("a pear", 8), APPLE]
    first = studio.draw(samples)
    assert studio.num_drawn == 2 and (first[0].pixels == first[2].pixels).all()
    before = files(studio.folder)
    studio.path(studio.resolved(APPLE)).unlink()
    again = studio.draw(samples)
    after = files(studio.folder)
    assert studio.num_drawn == 3 and after.keys() == before.keys()
    assert sum(after[path] != before[path] for path in before) == 1
    for one, other in zip(first, again, strict=True):
        assert (one.pixels == other.pixels).all() and torch.equal(one.z_img, other.z_img)


def test_the_key_names_all_that_a_picture_depends_on(studio):
    plain = studio.key(studio.resolved(APPLE))
    changes = {"caption": "a pear", "seed": 8, "condition": "caption", "prior_seed": 3}
    changes |= {"guidance": 5.0, "steps": 2, "sampler": "ddim", "num_candidates": 1}
    keys = {studio.key(studio.resolved(replace(APPLE, **{n: v}))) for n, v in changes.items()}
    assert len(keys | {plain}) == len(changes) + 1
    z = [Sample("", 0, "z_img", z_img=torch.full((32,), value)) for value in (0.1, 0.2)]
    assert studio.key(z[0]) != studio.key(z[1])
    named = replace(APPLE, guidance=2.0, steps=3, sampler="ddpm", prior_seed=7, num_candidates=2)
    assert studio.key(studio.resolved(named)) == plain  # the model's own settings, said aloud


def test_conditions_reach_the_decoder(studio, loaded):
    text = loaded.encode(["an apple"]).z_txt[0]
    z = {"z_txt": text, "caption": loaded.decoder.null_z_img(1)[0].detach()}
    for condition, expected in z.items():
        (drawn,) = studio.draw([replace(APPLE, condition=condition)])
        assert torch.allclose(drawn.z_img, expected.float(), atol=1e-6)
    given = torch.linspace(-1, 1, 32)
    (drawn,) = studio.draw([replace(APPLE, condition="z_img", z_img=given)])
    assert torch.equal(drawn.z_img, given)
    seed = studio.draw([replace(APPLE, prior_seed=1), replace(APPLE, seed=8, prior_seed=1)])
    assert torch.equal(seed[0].z_img, seed[1].z_img)
    assert (seed[0].pixels != seed[1].pixels).any()


def test_batches_hold_one_setting_each(studio):
    studio.batch_size = 8
    samples = [replace(APPLE, guidance=g, sampler=s) for g in (1.0, 2.0) for s in ("ddim", "ddpm")]
    drawn = studio.draw(samples)
    assert len({d.path for d in drawn}) == 4
    for sample, one in zip(samples, drawn, strict=True):
        record = read_png(studio.folder / one.path)
        assert record["guidance"]["decoder"] == sample.guidance
        assert record["sampler"]["decoder"] == sample.sampler


class Together(Processes):
    """The second of two processes, which waits for the first by letting it draw."""

    def wait(self):
        self.counted = self.studio.num_drawn
        self.first()


def test_processes_share_the_drawing(studio, loaded):
    samples = [Sample("an apple", seed) for seed in range(5)]
    second = Together(1, 2)
    other = Studio(loaded, "tiny", studio.digest, studio.folder, 64, 1, second, quiet=True)
    studio.processes = Processes(0, 2)
    second.studio = other
    second.first = lambda: studio._draw_missing(
        [(studio.path(s), s) for s in map(studio.resolved, samples)][0::2], ""
    )
    drawn = other.draw(samples)
    assert (second.counted, other.num_drawn, studio.num_drawn) == (2, 2, 3)
    alone = loaded("an apple", seeds=[3], size=64).images[0]
    assert (drawn[3].pixels == np.asarray(alone)).all()


def test_a_damaged_picture_is_named(studio):
    (drawn,) = studio.draw([APPLE])
    path = studio.folder / drawn.path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=path.name):
        studio.draw([APPLE])
