"""A student learns to do in few steps what a guided teacher does in many."""

import pytest
import torch

from unclip.diffusion.noise import child_generators
from unclip_train.cli import make_stage
from unclip_train.config import ConfigError, OptimizerConfig, load_config
from unclip_train.data.loader import collate
from unclip_train.identity import config_hash
from unclip_train.optimizer import make_optimizer
from unclip_train.weights import load_network

PLAIN = ["network.learned_variance=false", "network.text_encoder=null"]


@pytest.fixture(scope="module", params=["v", "x_0"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def teacher(kind, drawings_folder, tiny_clip, tmp_path_factory):
    """A tiny decoder, random but for its last layer, which begins at nothing."""
    folder = tmp_path_factory.mktemp("teacher")
    words = [f"data.source={drawings_folder}", f"clip={tiny_clip}", f"output={folder}", *PLAIN]
    words += [f"network.prediction={kind}"]
    stage, _ = make_stage("decoder", load_config("decoder", "tiny/decoder", words))
    torch.nn.init.normal_(stage.network.unet.conv_out.weight, std=0.02)
    stage.save(stage.network, folder / "model")
    return folder / "model"


def student(tiny_config, tiny_clip, teacher, *words):
    """A stage beside the teacher, and its data."""
    prediction = load_network("decoder", str(teacher), {}).config.prediction
    words = [f"network.prediction={prediction}", *words]
    words = [f"clip={tiny_clip}", f"distill.teacher={teacher}", *PLAIN, *words]
    return make_stage("decoder", tiny_config("decoder", *words))


def first_batch(dataset):
    return collate([dataset[position] for position in range(8)])


def loss_of(stage, batch, seed=0):
    generators = child_generators(list(range(seed, seed + 8)), "distill")
    return stage.loss(stage.network, batch, generators)["loss"]


def test_a_teacher_has_nothing_to_learn_from_its_own_single_step(tiny_config, tiny_clip, teacher):
    words = [f"init={teacher}", "distill.substeps=1", "distill.steps=1", "drop_text=0"]
    losses = []
    for guidance in (1, 4):
        told = [*words, f"distill.guidance={guidance}"]
        stage, dataset = student(tiny_config, tiny_clip, teacher, *told)
        losses.append(float(loss_of(stage, first_batch(dataset)).detach()))
    assert losses[0] < 1e-9 < 1e-7 < losses[1]


@pytest.mark.parametrize("kind", ["v"], indirect=True)  # each takes seconds
def test_a_student_learns_and_the_teacher_stays(tiny_config, tiny_clip, teacher):
    words = ["distill.steps=2", "distill.substeps=3", "distill.guidance=2"]
    stage, dataset = student(tiny_config, tiny_clip, teacher, *words)
    before = {name: p.clone() for name, p in stage.teacher.named_parameters()}
    batch = first_batch(dataset)
    optimizer = make_optimizer(stage.network.train(), OptimizerConfig(lr=3e-3))
    losses = []
    for step in range(30):
        loss = loss_of(stage, batch, seed=8 * (step % 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4]), losses
    for name, parameter in stage.teacher.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name]), name
    figures = stage.validate(stage.network.eval(), [batch])
    assert list(figures) == ["loss/step_0", "loss/step_1"]
    assert figures == stage.validate(stage.network, [batch])
    assert stage.preview(stage.network).size == (8 * 16, 2 * 16)


def test_what_cannot_be_distilled_is_refused(tiny_config, tiny_clip, teacher, tmp_path):
    def refused(*words, match):
        with pytest.raises(ConfigError, match=match):
            student(tiny_config, tiny_clip, teacher, *words)

    refused("distill.substeps=400", match="^distill.substeps: 400 .* 249 do")
    refused(f"distill.teacher={tmp_path}", match="^distill.teacher: cannot read")
    refused("network.prediction=eps", match="^network: distillation is of decoders with prediction")
    with pytest.raises(ConfigError, match="distill.guidance"):
        tiny_config("decoder", "distill.guidance=-1")


def test_a_run_without_a_teacher_is_the_run_it_was(tiny_config, tiny_clip):
    plain = tiny_config("decoder", f"clip={tiny_clip}")
    other = tiny_config("decoder", f"clip={tiny_clip}", "distill.steps=2")
    taught = tiny_config("decoder", f"clip={tiny_clip}", "distill.teacher=x")
    assert config_hash(plain) == config_hash(other) != config_hash(taught)
