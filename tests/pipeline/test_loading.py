"""A model's folder: what is saved comes back, and nothing that is wrong is loaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from unclip import CLIP, Decoder, UnCLIPPipeline
from unclip.diffusion.schedulers import make_scheduler
from unclip.pipeline import folder as folders
from unclip.pipeline.folder import check_folder, embedded_folder, model_hash
from unclip.pipeline.loading import (
    REMARKS,
    SCHEDULERS,
    ModelFileError,
    read_network,
    read_scheduler,
    scheduler_settings,
)
from unclip.pipeline.saving import write_scheduler
from unclip.pipeline.schedulers import thresholded

DECODER_INDEX = "decoder/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def spoilt(model_folder, tmp_path):
    """A copy of the model's folder for a test to spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "spoilt"))


def picture(pipe):
    return pipe("a red apple", seeds=7, size=256, output_type="pt").images


def weights(pipe):
    """Every weight of a pipeline in order."""
    return list(state(pipe).values())


def state(pipe):
    """Every weight of a pipeline by name."""
    networks = {n: c for n, c in pipe.components.items() if isinstance(c, torch.nn.Module)}
    return {f"{n}.{k}": v for n, c in networks.items() for k, v in c.state_dict().items()}


# What is saved comes back


def test_round_trip_is_exact(pipe, model_folder):
    again = UnCLIPPipeline.from_pretrained(model_folder)
    before, after = state(pipe), state(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(picture(pipe), picture(again))
    for key in ("image_mean", "image_std", "normalize", "default_steps", "default_guidance"):
        assert again.config[key] == pipe.config[key] or key in ("image_mean", "image_std")
    assert again.config.image_mean == pytest.approx([0.5, 0.4, 0.3])
    for name, component in pipe.components.items():
        if name.endswith("scheduler"):
            public = {k: v for k, v in component.config.items() if k[0] != "_"}
            loaded = {k: v for k, v in again.components[name].config.items() if k[0] != "_"}
            assert public == loaded
    assert not any(network.training for network in (again.clip, again.prior, again.decoder))


def test_a_clip_with_a_resnet_comes_back(make_pipe, make_resnet_clip, tmp_path):
    pipe = make_pipe(clip=make_resnet_clip())
    pipe.save_pretrained(tmp_path / "model")
    again = UnCLIPPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(picture(pipe), picture(again))
    x = [torch.rand(1, 3, 40, 40) * 2 - 1]
    assert torch.equal(pipe.encode_images(x), again.encode_images(x))
    assert [*pipe.clip.buffers()] and all(
        torch.equal(a, b) for a, b in zip(pipe.clip.buffers(), again.clip.buffers(), strict=True)
    )


def test_what_older_transformers_wrote_of_a_clip_is_read(make_pipe, make_resnet_clip, tmp_path):
    make_pipe(clip=make_resnet_clip()).save_pretrained(tmp_path / "model")
    path = tmp_path / "model/clip/config.json"
    config = json.loads(path.read_text())
    for section in ("text_config", "vision_config"):
        config[section]["output_attentions"] = False
    path.write_text(json.dumps(config))
    UnCLIPPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("section", "changes", "word"),
    [
        ("vision_config", {"model_type": "timm_wrapper"}, "resnet"),
        ("vision_config", {"image_size": None}, "image_size"),
        ("vision_config", {"auto_map": {"a": "b"}}, "auto_map"),
        ("text_config", {"model_type": "bert"}, "clip_text_model"),
        ("", {"model_type": "clip"}, "VisionTextDualEncoderModel"),
        ("", {"model_type": "llava"}, "no CLIP"),
    ],
)
def test_faulty_towers(section, changes, word, make_pipe, make_resnet_clip, tmp_path):
    make_pipe(clip=make_resnet_clip()).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "clip" / "config.json"
    config = json.loads(path.read_text())
    edit(path, **({section: {**config[section], **changes}} if section else changes))
    good, text = refused(tmp_path / "model", str(path), word)
    assert good, text


def test_a_fresh_process_draws_the_same(pipe, model_folder):
    script = """
import sys, torch
from unclip import UnCLIPPipeline
pipe = UnCLIPPipeline.from_pretrained(sys.argv[1])
print(pipe("a red apple", seeds=7, size=256).images[0].tobytes().hex()[:4000])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(model_folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "prior" not in done.stderr  # no progress bar in a pipe
    image = pipe("a red apple", seeds=7, size=256).images[0]
    assert done.stdout.strip() == image.tobytes().hex()[:4000]


def test_loading_leaves_the_process_generator_alone(model_folder):
    before = torch.get_rng_state()
    UnCLIPPipeline.from_pretrained(model_folder)
    assert torch.equal(before, torch.get_rng_state())


def test_stored_in_half_precision(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert pipe.decoder.dtype == torch.float32
    again = UnCLIPPipeline.from_pretrained(tmp_path / "half")
    exact, rough = state(pipe), state(again)
    assert {tensor.dtype for tensor in rough.values()} == {torch.float32}
    assert all(torch.equal(exact[key].bfloat16().float(), rough[key]) for key in exact)
    half = UnCLIPPipeline.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert half.decoder.dtype == torch.bfloat16 and half.prior.dtype == torch.float32
    sizes = [p.stat().st_size for p in (tmp_path / "half").rglob("*.safetensors")]
    assert sum(sizes) < 0.6 * sum(tensor.nbytes for tensor in exact.values())


def test_weights_come_in_shards_of_the_size_asked_for(model_folder):
    shards = list(model_folder.rglob("*.safetensors"))
    large = [path for path in shards if path.stat().st_size > 120_000]
    assert len(shards) > 10 and all(len(load_file(path)) == 1 for path in large)
    assert len({path.stat().st_mode for path in model_folder.rglob("*.*")}) == 1


def test_folders_of_stages_are_folders_of_their_own(pipe, model_folder):
    decoder = Decoder.from_pretrained(model_folder / "decoder")
    assert torch.equal(decoder.unet.conv_in.weight, pipe.decoder.unet.conv_in.weight)
    clip = CLIP.from_pretrained(model_folder / "clip")
    assert torch.equal(clip.image_std, pipe.text_and_image_encoder().image_std)
    assert torch.equal(clip.encode_text(["a dog"]).z_txt, pipe.encode(["a dog"]).z_txt)


def test_stages_are_joined_from_the_folders_that_training_writes(pipe, tmp_path):
    pipe.text_and_image_encoder().save_pretrained(tmp_path / "clip")
    names = ("prior", "decoder", "upsampler_256", "upsampler_1024")
    for name in names:
        pipe.components[name].save_pretrained(tmp_path / name, max_shard_size="100KB")
    joined = UnCLIPPipeline.from_stages(
        **{name: tmp_path / name for name in ("clip", *names)},
        default_steps=dict(pipe.config.default_steps),
        default_guidance=2,
    )
    assert all(torch.equal(a, b) for a, b in zip(*map(weights, (pipe, joined)), strict=True))
    # that library's loader leaves weights where they lie in memory, which rounds sums otherwise
    assert (picture(pipe) - picture(joined)).abs().mean() < 1e-4


def test_parts_that_are_absent_stay_absent(make_pipe, tmp_path):
    make_pipe(prior=None, upsampler_1024=None).save_pretrained(tmp_path / "small")
    again = UnCLIPPipeline.from_pretrained(str(tmp_path / "small"))
    assert again.prior is None and again.upsampler_1024_scheduler is None
    assert again.upsampler_256 is not None


def test_settings_of_every_sampler_come_back(own_pipe, tmp_path):
    for stage in own_pipe.config.default_steps:
        own_pipe.use_sampler(stage, "dpm++")
    own_pipe.save_pretrained(tmp_path / "solver")
    again = UnCLIPPipeline.from_pretrained(tmp_path / "solver")
    config = again.prior_scheduler.config
    assert (config.clip_sample, config.clip_sample_range) == (True, 5.0)
    assert torch.equal(picture(own_pipe), picture(again))


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_schedulers_made_from_another_one_s_config_come_back(cls, pipe, tmp_path):
    """diffusers' from_config() keeps what the class does not know."""
    bounded = thresholded(make_scheduler("ddim", "cosine", "eps"), 0.9)
    for number, own in enumerate((pipe.decoder_scheduler, pipe.prior_scheduler, bounded)):
        scheduler = cls.from_config(own.config)
        folder = tmp_path / str(number)
        write_scheduler(scheduler, folder)
        again = read_scheduler(folder, cls.__name__, tmp_path)
        for key in scheduler_settings(cls) - REMARKS:
            assert again.config.get(key) == scheduler.config.get(key), key


def test_a_scheduler_made_from_another_one_s_config_is_saved_with_the_model(own_pipe, tmp_path):
    own = own_pipe.decoder_scheduler
    solver = diffusers.EulerDiscreteScheduler.from_config(thresholded(own, 0.9).config)
    own_pipe.use_sampler("decoder", solver)
    own_pipe.save_pretrained(tmp_path / "model")
    assert torch.equal(
        picture(own_pipe), picture(UnCLIPPipeline.from_pretrained(tmp_path / "model"))
    )


def test_a_scheduler_that_could_not_be_read_again_is_not_saved(own_pipe, tmp_path):
    own = own_pipe.decoder_scheduler.config
    own_pipe.use_sampler("decoder", diffusers.LMSDiscreteScheduler.from_config(own))
    with pytest.raises(ValueError, match=r"^decoder_scheduler: LMSDiscreteScheduler .*'decoder'"):
        own_pipe.save_pretrained(tmp_path / "some" / "model")
    assert list(tmp_path.iterdir()) == []


def test_old_settings_of_a_foreign_clip_are_left_out(own_pipe, tmp_path):
    own_pipe.clip.config.text_config.bad_words_ids = None
    own_pipe.save_pretrained(tmp_path / "foreign")
    assert "bad_words_ids" not in (tmp_path / "foreign/clip/config.json").read_text()
    UnCLIPPipeline.from_pretrained(tmp_path / "foreign")


def test_a_saved_folder_does_not_depend_on_what_was_drawn(make_pipe, tmp_path):
    digests = []
    for number in range(2):
        pipe = make_pipe()
        for _ in range(number):
            pipe("a red apple", size=64)
        pipe.save_pretrained(tmp_path / str(number))
        digests.append(model_hash(tmp_path / str(number)))
    assert digests[0] == digests[1] and len(digests[0]) == 16


def test_the_hash_tells_weights_and_settings(model_folder, spoilt):
    assert model_hash(spoilt) == model_hash(model_folder)
    (spoilt / "README.md").write_text("a card")
    assert model_hash(spoilt) == model_hash(model_folder)
    path = next((spoilt / "prior").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert model_hash(spoilt) != model_hash(model_folder)


# Nothing is overwritten unasked, nothing is half written


def test_a_folder_is_replaced_only_where_it_is_a_model_and_asked_for(pipe, spoilt, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite"):
        pipe.save_pretrained(spoilt)
    (spoilt / "stale.txt").write_text("old")
    pipe.save_pretrained(spoilt, overwrite=True)
    assert not (spoilt / "stale.txt").exists()
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary/day.txt").write_text("dear diary")
    with pytest.raises(FileExistsError, match="no model"):
        pipe.save_pretrained(tmp_path / "diary", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diary", "spoilt"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, "bfloat16", "auto"])
def test_nothing_is_saved_in_what_networks_cannot_be_in(pipe, dtype, tmp_path):
    with pytest.raises(ValueError, match="^dtype: .*give"):
        pipe.save_pretrained(tmp_path / "model", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_offloaded_weights_are_saved_once_they_are_back(own_pipe, tmp_path):
    before = state(own_pipe)
    own_pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="^clip: its weights are offloaded; call remove_all_hooks"):
        own_pipe.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    own_pipe.remove_all_hooks()
    own_pipe.save_pretrained(tmp_path / "model")
    after = state(UnCLIPPipeline.from_pretrained(tmp_path / "model"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_nothing_that_is_not_finite_is_saved(own_pipe, tmp_path):
    own_pipe.decoder.unet.conv_in.bias.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="decoder: unet.conv_in.bias"):
        own_pipe.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# What is wrong is named and not loaded


def edit(path: Path, **changes):
    """Change keys of a JSON file; those changed to None are removed."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def refused(folder, file, *words):
    """Whether loading fails with one line that names the file and has the words."""
    with pytest.raises((ModelFileError, OSError)) as error:
        UnCLIPPipeline.from_pretrained(folder)
    text = str(error.value)
    return "\n" not in text and file in text and all(word in text for word in words), text


def shard(folder, name):
    """The last file of a network's weights."""
    return sorted((folder / name).glob("*.safetensors"))[-1]


@pytest.mark.parametrize("name", ["clip", "prior", "decoder", "upsampler_256", "upsampler_1024"])
@pytest.mark.parametrize("fault", ["cut", "empty", "gone", "text", "key", "extra", "shape", "nan"])
def test_faulty_weights(spoilt, name, fault):
    path = shard(spoilt, name)
    tensors = load_file(path)
    key = max(tensors, key=lambda k: tensors[k].numel())
    word = key
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        word = "damaged"
    elif fault == "empty":
        path.write_bytes(b"")
        word = "damaged"
    elif fault == "text":
        path.write_bytes(b"\xff" * 100)
        word = "damaged"
    elif fault == "gone":
        path.unlink()
        word = "missing"
    else:
        changed = {
            "key": {k: v for k, v in tensors.items() if k != key},
            "extra": {**tensors, "smuggled": torch.zeros(1)},
            "shape": {**tensors, key: tensors[key][:1].clone()},
            "nan": {**tensors, key: tensors[key] * torch.nan},
        }[fault]
        save_file(changed, path)
        word = "smuggled" if fault == "extra" else key
    file = f"/{name}" if fault == "key" else str(path)
    good, text = refused(spoilt, file, word)
    assert good, text


CONFIGS = {
    "unknown setting": ("decoder/config.json", {"chanels": [32, 32]}, "chanels"),
    "unknown setting of clip": ("clip/config.json", {"auto_map": {"a": "b"}}, "auto_map"),
    "another class": ("prior/config.json", {"_class_name": "Decoder"}, "Prior"),
    "values that fail": ("decoder/config.json", {"head_dim": 0}, "config.json"),
    "values of a wrong type": ("upsampler_256/config.json", {"channels": "wide"}, "config.json"),
    "a choice that is none": ("decoder/config.json", {"prediction": "x"}, "prediction"),
    "another size": ("upsampler_256/config.json", {"channels": [32, 16]}, "shape"),
    "unknown scheduler setting": ("prior_scheduler/scheduler_config.json", {"beta": 1}, "beta"),
    "a scheduler that fails": (
        "prior_scheduler/scheduler_config.json",
        {"beta_schedule": "x"},
        "scheduler_config.json",
    ),
    "a foreign class": ("model_index.json", {"decoder": ["subprocess", "Popen"]}, "Popen"),
    "a foreign module": ("model_index.json", {"prior": ["evil", "Prior"]}, "evil"),
    "a class that is unsafe": ("model_index.json", {"prior_scheduler": ["os", "system"]}, "os"),
    "a path": ("model_index.json", {"clip": "../clip"}, "clip"),
    "another component": ("model_index.json", {"safety_checker": ["a", "B"]}, "safety_checker"),
    "another pipeline": ("model_index.json", {"_class_name": "X"}, "UnCLIPPipeline"),
    "a part without its scheduler": ("model_index.json", {"prior": [None, None]}, "prior"),
    "a decoder that is absent": ("model_index.json", {"decoder": [None, None]}, "decoder"),
    "a part not named": ("model_index.json", {"decoder": None}, "decoder"),
    "a foreign tokenizer": ("clip/tokenizer_config.json", {"tokenizer_class": "T"}, "CLIPTok"),
    "code of a tokenizer": ("clip/tokenizer_config.json", {"auto_map": {}}, "CLIPTokenizer"),
    "a broken tokenizer": ("clip/tokenizer.json", {"model": None}, "tokenizer.json"),
    "a shard elsewhere": (DECODER_INDEX, {"weight_map": {"a": "../../x.safetensors"}}, "../../x"),
    "a shard that is pickled": (DECODER_INDEX, {"weight_map": {"a": "pytorch_model.bin"}}, ".bin"),
    "no shards": (DECODER_INDEX, {"weight_map": None}, "weight_map"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_faulty_configs(spoilt, fault):
    file, changes, word = CONFIGS[fault]
    edit(spoilt / file, **changes)
    good, text = refused(spoilt, "upsampler_256" if fault == "another size" else file, word)
    assert good, text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000, b" " * (17 << 20)]
)
@pytest.mark.parametrize("file", ["model_index.json", "decoder/config.json", "clip/tokenizer.json"])
def test_files_that_hold_no_json(spoilt, file, content):
    (spoilt / file).write_bytes(content)
    good, text = refused(spoilt, file)
    assert good, text


@pytest.mark.parametrize(
    "file",
    [
        "decoder/config.json",
        "clip/tokenizer.json",
        "clip/tokenizer_config.json",
        "decoder_scheduler/scheduler_config.json",
    ],
)
def test_files_that_are_missing(spoilt, file):
    (spoilt / file).unlink()
    good, text = refused(spoilt, file, "missing")
    assert good, text


def test_links_out_of_the_folder_are_not_followed(spoilt, model_folder):
    shutil.rmtree(spoilt / "decoder")
    (spoilt / "decoder").symlink_to(model_folder / "decoder")
    good, text = refused(spoilt, "decoder/config.json", "leads out")
    assert good, text


def test_pickles_are_not_read(spoilt):
    for path in (spoilt / "prior").glob("*.safetensors*"):
        path.unlink()
    torch.save({}, spoilt / "prior/diffusion_pytorch_model.bin")
    good, text = refused(spoilt, "prior/diffusion_pytorch_model.safetensors", "pickle")
    assert good, text


def test_weights_both_whole_and_in_shards_are_refused(spoilt):
    save_file({"a": torch.zeros(1)}, spoilt / "prior/diffusion_pytorch_model.safetensors")
    good, text = refused(spoilt, "prior", "both")
    assert good, text


def test_a_weight_in_another_shard_than_the_index_says(spoilt):
    first, *_, last = sorted((spoilt / "decoder").glob("*.safetensors"))
    key = next(iter(load_file(first)))
    save_file({**load_file(last), key: load_file(first)[key]}, last)
    good, text = refused(spoilt, str(last), key)
    assert good, text


def test_a_network_alone_is_read_as_strictly(spoilt):
    read_network(Decoder, spoilt / "decoder", torch.float32)
    edit(spoilt / "decoder/config.json", chanels=3)
    with pytest.raises(ModelFileError, match="chanels"):
        read_network(Decoder, spoilt / "decoder", torch.float32)


def test_folders_without_a_model(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no model in"):
        check_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        UnCLIPPipeline.from_pretrained(tmp_path / "absent")
    monkeypatch.setattr(folders, "EMBEDDED", "not-there")
    with pytest.raises(FileNotFoundError, match="no embedded model"):
        embedded_folder()
    with pytest.raises(ValueError, match="dtype"):
        UnCLIPPipeline.from_pretrained(tmp_path, dtype=torch.int8)
