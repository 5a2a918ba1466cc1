"""From the data keys to a data set: every stage trains on any source; mistakes name the key."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from unclip_train.cli import main, make_stage
from unclip_train.clip import train_tokenizer
from unclip_train.config import ConfigError, load_config
from unclip_train.data.build import make_dataset, pin_data
from unclip_train.data.drawings import load_drawings, save_drawings
from unclip_train.data.embed import embed_source
from unclip_train.data.sources.opening import open_source
from unclip_train.engine import Engine


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory, picture_of):
    """Twelve pictures of 96 x 72."""
    folder = tmp_path_factory.mktemp("large")
    for number in range(12):
        (folder / f"{number}.jpg").write_bytes(picture_of(number, "JPEG", (96, 72)))
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def config_of(stage, folder, output, *more, name=None):
    words = [f"data.source={folder}", f"output={output}", "run.steps=2", *more]
    return load_config(stage, f"tiny/{name or stage}", words)


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "upsampler"])
def test_every_stage_trains_on_a_folder(stage, large_folder, tiny_clip, tmp_path):
    more = [f"clip={tiny_clip}"] if stage in ("prior", "decoder") else []
    name = "upsampler_256" if stage == "upsampler" else None
    config = config_of(stage, large_folder, tmp_path, *more, name=name)
    stage_made, dataset = make_stage(stage, config)
    Engine(stage_made, dataset, config).train()
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_run_on_pictures_resumes_exactly(large_folder, tmp_path):
    """4 steps = 1 + 3, over an epoch's end, whatever the number of processes that read."""

    def train(output, steps, workers):
        words = ("data.framing=random", "data.flip=0.5", "run.log_every=1")
        config = config_of("clip", large_folder, output, *words)
        config.run.steps, config.data.workers = steps, workers
        stage, dataset = make_stage("clip", config)
        pin_data(config.output, dataset)
        Engine(stage, dataset, config).train()
        lines = (output / "log.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        return losses, (output / "model" / "model.safetensors").read_bytes()

    straight = train(tmp_path / "straight", 4, 0)
    train(tmp_path / "twice", 1, 2)
    assert train(tmp_path / "twice", 4, 1) == straight


def test_the_tokenizer_of_a_new_clip_knows_the_sources_words(large_folder, tmp_path):
    stage, _ = make_stage("clip", config_of("clip", large_folder, tmp_path))
    tokenizer = stage.network.clip.tokenizer
    assert len(tokenizer("picture")["input_ids"]) == 3  # begin, the word, end
    assert len(tokenizer("xylophone")["input_ids"]) > 5


def test_cached_embeddings_train_as_fresh_ones_do(large_folder, tiny_clip, tmp_path):
    """The prior's loss from the cache is that from pictures, to the rounding of half precision."""
    embed_source(open_source(str(large_folder)), tiny_clip, tmp_path / "z", 5)
    losses, means = {}, {}
    for name, more in (("fresh", ()), ("cached", (f"data.embeddings={tmp_path / 'z'}",))):
        words = (f"clip={tiny_clip}", "data.size=16", "statistics_samples=12", *more)
        config = config_of("prior", large_folder, tmp_path / name, *words)
        stage, dataset = make_stage("prior", config)
        engine = Engine(stage, dataset, config)
        engine.train()
        losses[name] = json.loads((tmp_path / name / "log.jsonl").read_text())["loss"]
        means[name] = stage.network.transformer.clip_mean
        assert ("image" in dataset[0]) == (name == "fresh")

    assert losses["fresh"] == pytest.approx(losses["cached"], rel=0.02)
    assert torch.allclose(means["fresh"], means["cached"], atol=0.02)


def test_the_decoder_is_given_cached_embeddings(large_folder, tiny_clip, tmp_path, monkeypatch):
    embed_source(open_source(str(large_folder)), tiny_clip, tmp_path / "z")
    words = (f"clip={tiny_clip}", f"data.embeddings={tmp_path / 'z'}")
    config = config_of("decoder", large_folder, tmp_path / "run", *words)
    stage, dataset = make_stage("decoder", config)
    monkeypatch.setattr(
        stage.clip, "encode_image", lambda x: pytest.fail("CLIP's picture tower was run")
    )
    Engine(stage, dataset, config).train()


def test_a_run_refuses_a_source_that_has_changed(large_folder, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(large_folder, folder)
    config = config_of("clip", folder, tmp_path / "run")
    pin_data(config.output, make_dataset("clip", config))
    (folder / "3.txt").write_text("mended before anything was learned")
    pin_data(config.output, make_dataset("clip", config))
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    pin_data(config.output, make_dataset("clip", config))
    (folder / "3.txt").write_text("another caption")
    with pytest.raises(ConfigError, match=r"data\.source: it held 12 samples"):
        pin_data(config.output, make_dataset("clip", config))


@pytest.fixture
def own_drawings(drawings_folder, tmp_path):
    """The small drawings, and a function that lists another row among them."""
    folder = tmp_path / "drawings"
    shutil.copytree(drawings_folder, folder)

    def add(style: str) -> None:
        drawings = load_drawings(folder)
        path = drawings[0].path(16)
        other = folder / "16" / style / "more.png"
        other.parent.mkdir(exist_ok=True)
        shutil.copy(path, other)
        row = {"id": f"{style}/more", "concept": "more", "name": "more", "style": style}
        save_drawings(folder, [*drawings, replace(drawings[0], family=style, **row)])

    return folder, add


def test_a_run_refuses_drawings_that_have_changed(own_drawings, tmp_path):
    folder, add = own_drawings
    config = config_of("prior", folder, tmp_path / "run")

    def pin():
        pin_data(config.output, make_dataset("prior", config))

    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    pin()  # a run of a version that noted nothing
    drawings = load_drawings(folder)
    save_drawings(folder, [replace(d, file_name=f"64/{d.id}.png") for d in drawings])
    pin()  # another size was rendered
    add("twemoji")
    with pytest.raises(ConfigError, match=r"data\.source: it held 15 samples .* holds 16 now"):
        pin()


def test_a_clip_goes_on_with_the_tokenizer_it_began_with(own_drawings, tmp_path, capsys):
    """Its captions are of all drawings in the folder, whichever styles it is shown."""
    folder, add = own_drawings

    def train(steps: int) -> int:
        words = [f"data.source={folder}", "data.styles=[noto]", f"run.steps={steps}"]
        return main(["clip", "--config", "tiny/clip", f"output={tmp_path / 'run'}", *words])

    assert train(1) == train(2) == 0
    note = tmp_path / "run" / "data.json"
    facts = json.loads(note.read_text())
    add("twemoji")
    capsys.readouterr()
    assert train(3) == 2
    line = capsys.readouterr().err
    assert "data.source" in line and "another tokenizer" in line and "init=" in line
    note.write_text(json.dumps({k: v for k, v in facts.items() if k != "vocabulary"}))
    assert train(2) == 0  # an older version noted no tokenizer


def test_a_tokenizer_is_a_function_of_its_captions():
    """Pairs that are equally frequent are merged in the same order every time."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    captions = [" ".join(f"z{one}" for one in letters)]
    merges = {str(_merges_of(train_tokenizer(captions, 700))) for _ in range(5)}
    assert len(merges) == 1


def _merges_of(tokenizer) -> list:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def test_too_many_faults_stop_before_training(large_folder, tmp_path, capsys):
    folder = tmp_path / "pictures"
    shutil.copytree(large_folder, folder)
    (folder / "0.txt").unlink()
    config = config_of("clip", folder, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"1 of 12 samples are broken \(1 no caption\)"):
        make_dataset("clip", config)
    config.data.max_bad_share = 0.1
    assert len(make_dataset("clip", config)) == 11
    assert "left out: 1 no caption" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.framing=center"], "data.framing"),
        (["data.flip=1.5"], "data.flip"),
        (["data.flip=nan"], "data.flip"),
        (["data.size=0"], "data.size"),
        (["data.max_bad_share=-1"], "data.max_bad_share"),
        (["data.max_pixels=999999999"], "data.max_pixels"),
        (["data.shuffle_window=-5"], "data.shuffle_window"),
        (["data.caption_colum=x"], "caption_column"),
        (["data.streaming=true"], "data.streaming"),
        (["data.source=nowhere.parquet"], "data.source"),
        (["data.source={9..2}.tar"], "data.source"),
        (["data.source=a/{9..2}.tar"], "data.source"),
        (["data.source={"], "data.source"),
        (["data.source=s3://bucket/folder"], "data.source"),
        (["data.source=nowhere.tar"], "missing file"),
        (["data.embeddings=nowhere"], "data.embeddings"),
        (["data.embeddings=Z", "data.flip=0.5"], "data.flip"),
        (["data.embeddings=Z", "data.framing=random"], "data.framing"),
        (["data.embeddings=Z", "data.source=DRAWINGS"], "data.embeddings"),
        (["data.embeddings=Z", "data.source=OTHER"], "data.embeddings"),
        (["data.embeddings=Z", "clip=OTHERCLIP"], "data.embeddings"),
    ],
)
def test_mistakes_in_the_data_keys(words, line, mistakes, tmp_path, capsys):
    """R25: exit 2 and one line that names the key."""
    for name, path in mistakes.items():
        words = [word.replace(f"={name}", f"={path}") for word in words]
    common = [f"data.source={mistakes['PICTURES']}", f"clip={mistakes['CLIP']}"]
    capsys.readouterr()
    run = [*common, f"output={tmp_path}/run", "run.steps=1", *words]
    assert main(["prior", "--config", "tiny/prior", *run]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in err, err


@pytest.fixture(scope="module")
def mistakes(large_folder, pictures_folder, drawings_folder, tiny_clip, tmp_path_factory):
    """Folders that do not fit each other, by name."""
    from unclip import CLIP

    folder = tmp_path_factory.mktemp("mistakes")
    embed_source(open_source(str(large_folder)), tiny_clip, folder / "z")
    clip = CLIP.from_pretrained(tiny_clip)
    with torch.no_grad():
        clip.model.visual_projection.weight += 0.01
    clip.save_pretrained(folder / "clip")
    return {
        "PICTURES": large_folder,
        "CLIP": tiny_clip,
        "Z": folder / "z",
        "DRAWINGS": drawings_folder,
        "OTHERCLIP": folder / "clip",
        "OTHER": pictures_folder,
    }
