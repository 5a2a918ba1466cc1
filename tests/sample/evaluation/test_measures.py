"""Numbers of a report against hand computation, and against judges whose verdict is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from unclip.metrics.frechet import frechet_distance
from unclip_sample.evaluation import cascade, embeddings, pairs, prior_sweep, sweeps, variety
from unclip_sample.evaluation.bench import Bench, finding, mean_by, with_interval
from unclip_sample.evaluation.embeddings import write_on
from unclip_sample.evaluation.studio import Sample
from unclip_sample.evaluation.words import SIZES


class Oracle:
    """A judge that knows every real picture, and sees nothing in others."""

    def __init__(self, pictures: dict[bytes, str], wrong: bool = False):
        self.known, self.wrong = pictures, wrong
        self.captions: list[str] = sorted(set(pictures.values()))
        self.digest, self.independent, self.logit_scale = "0", True, 100.0

    def see(self, pictures):
        names = [self.known.get(picture.tobytes()) for picture in pictures]
        return torch.stack([self.vector(name) for name in names])

    def read(self, captions):
        return torch.stack([self.vector(caption) for caption in captions])

    def vector(self, name):
        z = torch.full((len(self.captions) + 1,), 1e-3)
        place = self.captions.index(name) if name in self.captions else len(self.captions)
        z[place] = 1.0
        return torch.nn.functional.normalize(z, dim=0)


@pytest.fixture
def knowing(studio, source):
    """A bench whose judge knows the real pictures of all examples."""
    known = {e.pixels().tobytes(): e.caption for e in source.everything}
    return Bench(studio, Oracle(known), source, 0, dict.fromkeys(SIZES, 4))


def row_of(table, name):
    (row,) = [row for row in table.rows if row[0] == name]
    return {column.name: cell for column, cell in zip(table.columns, row, strict=True)}


def test_real_pictures_are_found_and_noise_is_not(knowing):
    section = pairs.pairs(knowing, "heldout")
    real, drawn = (
        row_of(section.tables[0], name) for name in ("real (the ceiling)", "drawn by the model")
    )
    assert real["pictures"] == drawn["pictures"] == 4
    assert real["R@1"]["value"] == real["R@1"]["high"] == 1.0 and 0.3 < real["R@1"]["low"] < 0.6
    assert real["style right"]["value"] == 1.0 and real["CLIP score"]["value"] > 0.99
    assert drawn["R@1"]["value"] == 0.0 and drawn["style right"]["value"] == 0.0
    assert drawn["CMMD"] > real["CMMD"]
    assert len(section.records) == 4 and section.records[0]["values"]["R@1"] == 0.0


def test_the_row_between_asks_no_prior(bench, source, monkeypatch):
    asked = []
    draw = Bench.draw
    monkeypatch.setattr(
        Bench, "draw", lambda b, s, label: asked.append((label, s)) or draw(b, s, label)
    )
    section = pairs.pairs(bench, "seen")
    examples = bench.choose("seen", "seen")
    (drawn,) = [samples for label, samples in asked if label == "seen, real z_img"]
    z_img = torch.stack([sample.z_img for sample in drawn])
    assert torch.equal(z_img, bench.own_z_img([e.pixels() for e in examples]))
    assert {sample.condition for sample in drawn} == {"z_img"}
    assert [row[0] for row in section.tables[0].rows] == list(pairs.KINDS.values())


def test_recall_against_a_loop(bench, source):
    examples = source.groups["seen"][:6]
    pixels = [example.pixels() for example in examples]
    z = bench.judge.see(pixels)
    said = bench.verdicts(z, examples)
    for i, (example, rivals) in enumerate(
        zip(examples, bench.plain_distractors(examples), strict=True)
    ):
        own = float(z[i] @ bench.judge.read([example.caption])[0])
        better = sum(float(z[i] @ row) >= own for row in bench.judge.read(rivals))
        assert said["R@1"][i] == (better < 1) and said["R@5"][i] == (better < 5)
        assert float(said["CLIP score"][i]) == pytest.approx(own, abs=1e-6)
        assert all(caption.endswith(f"{example.style} style") for caption in rivals)


def test_compositions_of_real_pictures_have_their_colours(bench):
    section = pairs.compositions(bench)
    titles = [table.title for table in section.tables]
    assert titles == [
        "A coloured background",
        "Two things side by side",
        "Two or three of a thing",
    ]
    real = row_of(section.tables[0], "real (the ceiling)")
    assert real["colour right"]["value"] == 1.0
    drawn = row_of(section.tables[0], "drawn by the model")
    assert drawn["colour right"]["value"] < 1.0  # noise has no background
    assert len(section.records) == 6 and "order right" in section.records[2]["values"]


def test_a_prior_by_steps_and_samplers(bench, small, monkeypatch):
    """Nearness and spread of embeddings turned away from the real ones by a known angle."""
    examples = variety.concepts(bench, "prior")
    z_real = F.normalize(bench.own_z_img([e.pixels() for e in examples]), dim=-1)
    across = F.normalize(torch.randn(z_real.shape, generator=torch.Generator().manual_seed(0)))
    across = F.normalize(across - (across * z_real).sum(-1, keepdim=True) * z_real)
    asked = []

    def sample_prior(text, seeds, steps, scheduler, **settings):
        """Half of all z_img are turned away from the real one, the further the more steps."""
        asked.append((type(scheduler).__name__, steps, settings["num_candidates"], tuple(seeds)))
        rows = torch.arange(len(seeds)) // 2
        turned = torch.arange(len(seeds)) % 2 * steps / 10
        return torch.cos(turned)[:, None] * z_real[rows] + torch.sin(turned)[:, None] * across[rows]

    monkeypatch.setattr(bench.studio.pipeline, "sample_prior", sample_prior)
    section = prior_sweep.prior(bench)
    rows = {(row[0], row[1]): [cell["value"] for cell in row[2:]] for row in section.tables[0].rows}
    for (_, steps), (nearness, spread) in rows.items():
        assert nearness == pytest.approx((1 + np.cos(steps / 10)) / 2, abs=1e-5)
        assert spread == pytest.approx(1 - np.cos(steps / 10), abs=1e-5)
    assert [*rows] == [("ddpm", 2), ("ddpm", 3), ("unipc", 2), ("unipc", 3)]
    assert {ask[:3] for ask in asked} == {
        (name, steps, 1)
        for name in ("DDPMScheduler", "UniPCMultistepScheduler")
        for steps in (2, 3)
    }
    assert len({ask[3] for ask in asked}) == 2  # all samplers and steps are given the same seeds
    assert "ddpm 3, unipc 3" in section.notes[0]
    assert [len(plot.series) for plot in section.plots] == [2, 2]


def test_guidance_from_one_z_img_and_from_many(bench, small):
    section = sweeps.guidance(bench)
    rows = {(row[0], row[1]): row[2:] for row in section.tables[0].rows}
    assert len(rows) == 4
    names = [tuple(sweeps.MODES.values())[i] for i in (0, 1)]
    drawn = {
        mode: [
            bench.draw(
                [
                    bench.sample(
                        e.caption,
                        k,
                        prior_seed=bench.seed_of(e.caption, 0) if i == 0 else None,
                        guidance=3.0,
                    )
                    for k in range(2)
                ],
                "",
            )
            for e in bench.choose("seen", "guidance")
        ]
        for i, mode in enumerate(names)
    }
    assert torch.equal(drawn[names[0]][0][0].z_img, drawn[names[0]][0][1].z_img)
    assert not torch.equal(drawn[names[1]][0][0].z_img, drawn[names[1]][0][1].z_img)
    for mode in names:
        distances = []
        for row in drawn[mode]:
            a, b = bench.judge.see([d.pixels for d in row])
            distances.append(1 - float(a @ b))
        assert rows[mode, 3.0][2]["value"] == pytest.approx(np.mean(distances), abs=1e-6)
    assert len(section.findings) == 3 and len(section.plots) == 4


def test_ablation_ends_with_real_pictures_and_true_embeddings(bench):
    section = embeddings.ablation(bench)
    names = [row[0] for row in section.tables[0].rows]
    assert names == [*embeddings.CONDITIONS.values(), "real pictures"]
    examples = bench.choose("seen", "ablation")
    own = bench.own_z_img([e.pixels() for e in examples])
    samples = [
        bench.sample(e.caption, condition="z_img", z_img=z)
        for e, z in zip(examples, own, strict=True)
    ]
    before = bench.studio.num_drawn
    drawn = bench.draw(samples, "")
    assert bench.studio.num_drawn == before  # the section drew these
    assert torch.equal(torch.stack([d.z_img for d in drawn]), own)


def test_all_components_give_the_whole_picture(bench, small):
    section = embeddings.components(bench)
    *_, whole = section.tables[0].rows
    assert whole[0] == "all" and whole[1] == 1.0
    assert whole[2]["value"] == pytest.approx(1.0, abs=1e-6)
    shares = [row[1] for row in section.tables[0].rows]
    assert shares == sorted(shares) and shares[0] < 1.0
    cosines = [row[2]["value"] for row in section.tables[0].rows]
    assert cosines == sorted(cosines)


def test_a_word_is_written_across_the_middle_and_nowhere_else():
    white = np.full((64, 64, 3), 255, np.uint8)
    written = write_on(white, "pizza")
    changed = (written != white).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert changed.sum() > 100 and 18 < rows.min() and rows.max() < 46
    assert columns.min() < 16 and columns.max() > 48
    assert (write_on(white, "hedgehog with a hat") != white).any(axis=2)[:, 0].sum() < 64
    assert (write_on(white, "apple") != written).any()
    assert (white == 255).all()  # the picture given is left alone


def test_lettering_knows_thing_and_word():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.1, 0.6]])
    thing, word = embeddings._thing_and_word(p)
    assert thing.tolist() == pytest.approx([0.7, 0.5, 0.6])
    assert word.tolist() == pytest.approx([0.2, 0.4, 0.3])  # the next one's name is written


def test_findings_follow_the_interval():
    high, low = torch.linspace(1, 2, 20), torch.linspace(0, 1, 20)
    assert finding("p", "h", high, low).verdict == "confirmed"
    assert finding("p", "h", low, high).verdict == "contradicted"
    mixed = torch.tensor([1.0, -1.0] * 10)
    assert finding("p", "h", mixed, -mixed).verdict == "undecided"
    assert "+1.000 (+1.000 to +1.000)" in finding("p", "h", high, low).here


def test_means_are_over_captions():
    assert mean_by(torch.tensor([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [2.0, 6.0]
    cell = with_interval([1.0, 1.0, 4.0])
    assert cell["value"] == 2.0 and 1.0 <= cell["low"] < 2.0 < cell["high"] <= 4.0
    assert with_interval([]) is None


def test_seeds_belong_to_captions(bench):
    assert bench.sample("a pear") == Sample("a pear", bench.seed_of("a pear", 0))
    assert bench.sample("a pear").seed != bench.sample("a pear", 1).seed


def test_fid_needs_an_extractor_and_enough_pictures(bench, source):
    pixels = [example.pixels() for example in source.groups["seen"]]
    assert bench.fid(pixels) is None
    bench.extract = lambda image: torch.from_numpy(np.asarray(image).mean(axis=(0, 1))[None])
    assert bench.fid(pixels) == pytest.approx(0, abs=1e-6)  # all that training may have seen
    darker = [picture // 2 for picture in pixels]
    means = [torch.from_numpy(np.stack(p)).double().mean(dim=(1, 2)) for p in (pixels, darker)]
    assert bench.fid(darker) == pytest.approx(frechet_distance(*means), rel=1e-6)
    assert bench.fid(pixels[:3]) is None  # three pictures for three features


def test_sizes_of_a_cascade_keep_their_colours_or_are_told_not_to(bench, monkeypatch):
    monkeypatch.setattr(cascade, "sides_of", lambda bench: [64, 256])
    section = cascade.cascade(bench)
    (table,) = section.tables  # of 64-pixel drawings there are no edges of 256 to compare with
    (row,) = table.rows
    small, large = (
        np.stack([np.asarray(Image.open(bench.studio.folder / path)) for path in paths])
        for _, paths in section.galleries[0].rows
    )
    assert small.shape[1:] == (64, 64, 3) and large.shape[1:] == (256, 256, 3)
    shift = np.abs(small.mean(axis=(1, 2)) - large.mean(axis=(1, 2))).max(axis=1)
    assert row[0] == "64 to 256"
    assert row[1]["value"] == pytest.approx(shift.mean()) and row[2] == pytest.approx(shift.max())


def test_edges_of_real_pictures_are_as_sharp_as_themselves():
    real = torch.randint(0, 256, (3, 128, 128, 3), dtype=torch.uint8)
    table = cascade.edges({"drawn": real, "darker": real // 2}, real)
    assert [row[1]["value"] for row in table.rows] == pytest.approx([1.0] * 6)
    assert table.rows[0][0] == "32 to 64"
    assert [column.name for column in table.columns][1:] == ["drawn / real", "darker / real"]
    assert all(row[2]["value"] == pytest.approx(0.5, abs=0.01) for row in table.rows)


def test_real_pictures_are_enlarged_as_the_pipeline_does(bench, source):
    examples = source.groups["seen"][:2]
    (name, large), *more = cascade.enlarged(bench, examples, [64, 256]).items()
    assert name == "real of 64" and large.shape == (2, 256, 256, 3) and not more
    alone = bench.studio.pipeline.upscale(
        Image.fromarray(examples[1].pixels()), size=256, seeds=bench.seed_of(examples[1].caption, 0)
    )
    difference = np.asarray(alone.images[0]).astype(int) - large[1].numpy()
    assert np.abs(difference).max() <= 1  # sums of a batch may be rounded otherwise
