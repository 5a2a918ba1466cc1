"""R25, R28: a bad configuration is refused at once, by its key, before torch is imported."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip_train.config import SCHEMAS, ConfigError, key_names, load_config
from unclip_train.networks import check_network, check_towers

# Whatever lies in the folders is JSON alone: there is no weight that could be read.
CLIP = {"model_type": "clip", "projection_dim": 32, "text_config": {"vocab_size": 600}}
CLIP["text_config"] |= {"hidden_size": 32, "max_position_embeddings": 24}
WIDE = CLIP | {"projection_dim": 64}
RESNET = CLIP | {"vision_config": {"model_type": "resnet", "image_size": 16}}
DECODER = {"_class_name": "Decoder", "size": 16, "embedding_dim": 32, "channels": [32, 32]}
DECODER |= {"inpainting": False}
UPSAMPLER = {"_class_name": "Upsampler", "size": 64, "noise_conditioning": False}
FILES = {
    "clip/config.json": CLIP,
    "wide/config.json": WIDE,
    "resnet/config.json": RESNET,
    "decoder/config.json": DECODER,
    "upsampler/config.json": UPSAMPLER,
    "pictures/0.txt": "a caption",
    "embeddings/embeddings.json": {
        "version": 1, "num_samples": 1, "shard_size": 4, "dim": 48, "names": "", "clip": ""
    },
}  # fmt: skip

# stage, words, what the line must hold: the key, and the hint or the reason
BAD = [
    ("decoder", "run.stepz=3", "run.stepz", "run.steps"),
    ("decoder", "optimizer.lrr=1", "optimizer.lrr", "optimizer.lr"),
    ("decoder", "dat.size=16", "dat", "data"),
    ("prior", "drop_txt=0.1", "drop_txt", "drop_text"),
    ("prior", "noise_level=4", "noise_level", "noise_levels"),
    ("upsampler", "degradatoin=blur", "degradatoin", "degradation"),
    ("upsampler", "degradation=blurr", "degradation", "blur_noise"),
    ("upsampler", "loss_power=3", "loss_power", "between"),
    ("clip", "vocabsize=600", "vocabsize", "vocab_size"),
    ("decoder", "optimizer.lr=fast", "optimizer.lr", "fast"),
    ("decoder", "run.steps=many", "run.steps", "many"),
    ("decoder", "data.shared_only=7.5", "data.shared_only", "7.5"),
    ("decoder", "optimizer.lr=nan", "optimizer.lr", "between"),
    ("decoder", "optimizer.lr=inf", "optimizer.lr", "between"),
    ("decoder", "optimizer.weight_decay=-1", "optimizer.weight_decay", "between"),
    ("decoder", "run.steps=-5", "run.steps", "between"),
    ("decoder", "run.batch_size=0", "run.batch_size", "between"),
    ("decoder", "run.batch_size=8 run.gradient_accumulation=3", "run.batch_size", "multiple"),
    ("decoder", "run.precision=fp8", "run.precision", "bf16"),
    ("decoder", "optimizer.decay=exponential", "optimizer.decay", "cosine"),
    ("decoder", "drop_text=1.5", "drop_text", "between"),
    ("decoder", "data.framing=center data.source={tmp}/pictures", "data.framing", "centre"),
    ("decoder", "data.styles=[notto]", "data.styles", "noto"),
    ("decoder", "data.source={tmp}/nowhere", "data.source", "unclip-data"),
    ("decoder", "data.validation=a data.validation_share=0.1", "data.validation", "one of them"),
    ("decoder", "data.validation={tmp}/pictures", "data.validation", "held out"),
    ("decoder", "data.source={tmp}/pictures data.validation={tmp}/nowhere", "data.validation",
     "no folder"),
    ("decoder", "data.source={tmp}/pictures data.validation={tmp}/drawings", "data.validation",
     "holds drawings"),
    ("decoder", "distill.teacher={tmp}/decoder z_img_noise=0.4", "z_img_noise", "leave it at 0"),
    ("decoder", "distill.teacher={tmp}/decoder drop_z_img=0.5", "drop_z_img", "leave it at 0.1"),
    ("decoder", "distill.teacher={tmp}/decoder min_snr_gamma=5", "min_snr_gamma", "leave it at 0"),
    ("decoder", "distill.teacher={tmp}/decoder timestep_std=1", "timestep_std", "leave it at 0"),
    ("decoder", "lora.rank=2 init={tmp}/decoder network.inpainting=true", "network.inpainting",
     "have False"),
    ("decoder", "network.chanels=[32]", "network.chanels", "network.channels"),
    ("decoder", "network.channels=wide", "network.channels", "Invalid value"),
    ("decoder", "network.channels=[a,b]", "network.channels", "wrong kind"),
    ("decoder", "network.num_blocks=0", "network.num_blocks", "at least 1"),
    ("decoder", "network.dropout=2", "network.dropout", "between"),
    ("decoder", "init={tmp}/decoder network.dropout=2", "network.dropout", "between"),
    ("decoder", "network.head_dim=20", "network.channels[1]", "head_dim 20"),
    ("decoder", "network.prediction=x", "network.prediction", "'eps', 'v' or 'x_0'"),
    ("decoder", "network.prediction=x_0 network.learned_variance=true", "network.learned_variance",
     "'eps' or 'v'"),
    ("decoder", "network.attention_levels=[true]", "network.attention_levels", "2 channels"),
    ("decoder", "network.text_encoder={{width: 32, layers: 2}}", "encoder.layers", "num_layers"),
    ("decoder", "data.size=18 network.stem=4", "network.size", "stem 4"),
    ("clip", "data.size=48", "data.size", "no drawing of 48 pixels"),
    ("decoder", "network.embedding_dim=48", "network.embedding_dim", "32 follows"),
    ("decoder", "clip={tmp}/wide init={tmp}/decoder", "clip", "64 numbers"),
    ("decoder", "init={tmp}/decoder data.size=64", "data.size", "data.size=16"),
    ("upsampler", "init={tmp}/decoder", "init", "holds a Decoder"),
    ("prior", "analogies=2", "analogies", "between"),
    ("prior", "analogies=0.1 data.source={tmp}/pictures", "analogies", "drawings"),
    ("prior", "clip={tmp}/nowhere", "clip", "no trained network"),
    ("prior", "clip={tmp}/wide", "clip", "32 and 64"),
    ("prior", "data.source={tmp}/pictures data.embeddings={tmp}/embeddings",
     "data.embeddings", "48 numbers"),
    ("prior", "network.normalization=unit", "network.normalization", "'scale'"),
    ("upsampler", "data.size=256", "network.size", "network.size=256"),
    ("upsampler", "network.stem=4", "network.stem", "x_0"),
    ("upsampler", "data.crop=14", "data.crop", "multiple of 4"),
    ("upsampler", "network.channels=[32,32,32,32,32,32]", "data.crop", "multiple of 32"),
    ("upsampler", "max_noise_level=100", "max_noise_level", "noise_conditioning=true"),
    ("upsampler", "init={tmp}/upsampler max_noise_level=100", "max_noise_level", "leave it at 0"),
    ("clip", "init={tmp}/clip network.text.hidden_size=64", "network.text.hidden_size", "have 32"),
    ("clip", "init={tmp}/clip network.projection_dim=64", "network.projection_dim", "have 32"),
    ("clip", "init={tmp}/clip vocab_size=514", "vocab_size", "vocab_size=600"),
    ("clip", "init={tmp}/resnet", "network.vision.model_type", "have resnet"),
    ("clip", "network.text.hidden_sise=32", "network.text.hidden_sise", "hidden_size"),
    ("clip", "network.text.num_attention_heads=5", "network.text.hidden_size", "no multiple"),
    ("clip", "network.vision.patch_size=5", "network.vision.image_size", "no multiple"),
    ("clip", "network.vision.model_type=rasnet", "network.vision.model_type", "resnet"),
    ("clip", "data.source={tmp}/pictures data.embeddings={tmp}/embeddings",
     "data.embeddings", "leave it out"),
    ("clip", "output=${{oc.env:HF_TOKEN}}", "secrets", "saved"),
    ("clip", "output=${{oc.env:MY_API_KEY}}", "secrets", "saved"),
]  # fmt: skip

SCRIPT = """
import contextlib, io, json, sys, time
from unclip_train.cli import main
told = []
for words in json.load(sys.stdin):
    began, lines = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stderr(lines):
        code = main(words)
    told.append((code, lines.getvalue(), time.perf_counter() - began))
print(json.dumps({"told": told, "heavy": sorted({"torch", "diffusers"} & set(sys.modules))}))
"""


@pytest.fixture
def folders(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "pictures" / "0.png").write_bytes(b"")
    row = {"concept": "c", "family": "noto", "style": "noto"}
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    for size in (16, 64, 256):  # those of the tiny configs
        rendered = tmp_path / "drawings" / str(size) / "noto"
        rendered.mkdir(parents=True)
        (rendered / "c.png").write_bytes(b"")
    return tmp_path


def test_bad_configs_are_refused_by_their_key(folders):
    """All of them in one process, so that none of them may have imported torch."""
    commands = []
    for stage, words, *_ in BAD:
        base = [f"data.source={folders}/drawings", f"output={folders}/run"]
        base += [f"clip={folders}/clip"] if stage in ("prior", "decoder") else []
        config = f"tiny/{stage}_256" if stage == "upsampler" else f"tiny/{stage}"
        given = words.format(tmp=folders).split(" ") if "{{" not in words else [words.format()]
        commands.append([stage, "--config", config, *base, *given])
    began = time.perf_counter()
    env = {**os.environ, "HF_TOKEN": "hf_secret", "MY_API_KEY": "sk_secret"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT], input=json.dumps(commands), text=True,
        capture_output=True, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    seconds = []
    for (_, words, *wanted), (code, line, taken) in zip(BAD, found["told"], strict=True):
        assert code == 2 and line.count("\n") == 1, (words, code, line)
        assert all(part in line for part in wanted), (words, line)
        assert "secret" not in line.replace("secrets", "")
        seconds.append(taken)
    assert found["heavy"] == []
    assert max(seconds) < 3
    print(
        f"R25: {len(BAD)}/{len(BAD)} refused, {max(seconds):.2f} s at most, "
        f"{time.perf_counter() - began:.1f} s for all with a start of Python"
    )


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 8)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "output: !!python/object/apply:os.system ['touch pwned']",
        "output: !!python/name:os.system",
        "output: *nothing",
        "output: [",
        "output: a\noutput: b",
        "run: {steps: 1",
        "\x00",
        "- a list",
        "output: ${oc.env:SECRET_KEY}",
        "output: ${nothing.here}",
        "output: ${output}",
    ],
)
def test_hostile_files_are_refused_within_a_second(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    began = time.perf_counter()
    with pytest.raises(ConfigError) as error:
        load_config("clip", path)
    assert time.perf_counter() - began < 1
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "pwned").exists()


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["nan", "1e400", "${run}", "${oc.env:HOME}", "{1..3}", "'", "[", "&a *a"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=6), inner, max_size=3),
    ),
    max_leaves=6,
)
STAGES = ("clip", "prior", "decoder", "upsampler", "assemble")


def check_fuzz(stage: str, name: str, value, as_word: bool, folder) -> None:
    """A key with any value, in the file or as a word: a config, or a ConfigError of one line."""
    began, words, tree = time.perf_counter(), [], {}
    if as_word:
        words = [f"{name}={value}"]
    else:
        for key in reversed(name.split(".")):
            tree = {key: tree or value}
    path = folder / "fuzz.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8", "surrogatepass")
    try:
        config = load_config(stage, path, words)
        if hasattr(config, "network"):
            check_towers(config.network) if stage == "clip" else check_network(
                stage, config.network
            )
    except ConfigError as error:
        assert "\n" not in str(error)
    assert time.perf_counter() - began < 5


def test_a_word_of_control_characters_is_told_in_one_line(tmp_path):
    check_fuzz("clip", "\n", "\x1f", True, tmp_path)


@pytest.mark.parametrize(
    "examples", [100, pytest.param(2000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_any_config_is_a_config_or_a_named_fault(examples, tmp_path):
    """R28: no value of any key, nor any key, ends in another error."""

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(st.data())
    def fuzz(data):
        stage = data.draw(st.sampled_from(STAGES))
        known = sorted(key_names(SCHEMAS[stage]))
        more = [f"network.{name}" for name in ("channels", "text", "text.hidden_size", "stem")]
        name = data.draw(st.one_of(st.sampled_from(known + more), st.text(max_size=12)))
        check_fuzz(stage, name, data.draw(VALUES), data.draw(st.booleans()), tmp_path)

    fuzz()
