"""--dry-run: all is tried, nothing is trained and nothing written."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from unclip_train.cli import main, make_stage
from unclip_train.data.loader import collate
from unclip_train.dry_run import blank_stage, kept_bytes
from unclip_train.validation import generators_of


def dry(capsys, name, drawings_folder, output, *more):
    """Exit status, the configuration that was printed, and the lines below it."""
    words = [name.split("_")[0], "--config", f"tiny/{name}", f"data.source={drawings_folder}"]
    code = main([*words, f"output={output}", *more, "--dry-run"])
    captured = capsys.readouterr()
    lines = [line[2:] for line in captured.out.splitlines() if line.startswith("# ")]
    return code, captured, lines


@pytest.mark.parametrize("name", ["clip", "prior", "decoder", "upsampler_256"])
def test_everything_is_tried(name, capsys, drawings_folder, tmp_path, tiny_clip):
    more = [f"clip={tiny_clip}"] if name in ("prior", "decoder") else []
    code, captured, lines = dry(capsys, name, drawings_folder, tmp_path / "run", *more)
    assert code == 0, captured.err
    assert OmegaConf.create(captured.out).run.steps == 60  # the report is comments of YAML
    text = "\n".join(lines)
    assert "15 samples" in text and "8 read, 0 broken" in text and "image [8, 3, 16, 16]" in text
    assert "parameters: 0." in text and "activations" in text
    assert not (tmp_path / "run").exists()


def test_weights_to_begin_from_are_read(capsys, drawings_folder, tmp_path, tiny_clip):
    code, captured, lines = dry(
        capsys, "clip", drawings_folder, tmp_path / "run", f"init={tiny_clip}"
    )
    assert code == 0, captured.err
    assert "activations" in lines[-1]


def test_a_teacher_must_be_there(capsys, drawings_folder, tmp_path, tiny_clip):
    words = [f"clip={tiny_clip}", f"distill.teacher={tmp_path / 'nowhere'}"]
    code, captured, _ = dry(capsys, "decoder", drawings_folder, tmp_path / "run", *words)
    assert code == 2 and "distill.teacher: cannot read" in captured.err


def test_activations_are_counted_as_a_forward_pass_keeps_them(tiny_config, tiny_clip):
    config = tiny_config("decoder", f"clip={tiny_clip}")
    stage, dataset = make_stage("decoder", config)
    batch = collate([dataset[position] for position in range(4)])
    counted = kept_bytes(blank_stage("decoder", config, dataset, batch), batch, config)
    storages = {}
    weights = {p.data_ptr() for p in stage.network.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            storages[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        stage.loss(stage.network, batch, generators_of(batch))
    real = sum(x.untyped_storage().nbytes() for x in storages.values())
    assert counted == pytest.approx(real, rel=0.1)


def test_sizes_of_neighbours_must_fit(capsys, drawings_folder, tmp_path, tiny_clip):
    model = tmp_path / "decoder" / "model"
    model.mkdir(parents=True)
    for size, fits in ((16, True), (32, False)):
        (model / "config.json").write_text(json.dumps({"_class_name": "Decoder", "size": size}))
        output = tmp_path / "upsampler_256"
        code, captured, lines = dry(capsys, "upsampler_256", drawings_folder, output)
        if fits:
            assert code == 0 and "sizes: decoder 16 -> upsampler_256 64" in lines
        else:
            assert code == 2 and captured.err.count("\n") == 1
            assert "data.size 64" in captured.err and "draws 32 pixels" in captured.err


def test_what_does_not_fit_into_memory_is_said(capsys, drawings_folder, tmp_path):
    more = ["run.batch_size=100000000"]
    code, _, lines = dry(capsys, "upsampler_256", drawings_folder, tmp_path / "run", *more)
    assert code == 0 and "run.gradient_accumulation" in lines[-1]


def test_a_broken_picture_is_told(capsys, tmp_path, pictures_folder):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for number in range(20):
        (folder / f"{number:05d}.png").write_bytes(b"no picture")
    code, captured, _ = dry(capsys, "clip", folder, tmp_path / "run")
    assert code != 0 and "data.source" in captured.err and captured.err.count("\n") == 1
