"""Inception's path: what happens to a picture before the network, and a stand-in network."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_sample.inception import (
    NUM_CLASSES,
    NUM_FEATURES,
    features_and_probabilities,
    inception_viewer,
    load_inception,
    pixels_of,
    square,
    view,
)
from unclip_sample.request import RequestError


def stand_in(pixels):
    """A network of the real one's form: features [B, 6], mean and spread of colours; 3 logits."""
    assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
    x = pixels.float().flatten(2) / 255
    return torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1), 9 * x.mean(dim=2)


def test_the_middle_is_kept_and_never_squeezed():
    wide = Image.new("RGB", (90, 30), "blue")
    wide.paste("red", (30, 0, 60, 30))
    assert square(wide, 30).getcolors() == [(900, (255, 0, 0))]
    high = wide.transpose(Image.Transpose.ROTATE_90)
    assert square(high, 30).getcolors() == [(900, (255, 0, 0))]
    small = square(Image.effect_noise((301, 200), 90).convert("RGB"), 50)
    assert small.size == (50, 50)


def test_scaling_is_pillows_bicubic_and_a_fitting_picture_stays_as_it_is():
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    assert square(picture, 64).tobytes() == picture.tobytes()
    direct = picture.resize((20, 20), Image.Resampling.BICUBIC)
    assert square(picture, 20).tobytes() == direct.tobytes()
    stripes = Image.fromarray(np.tile([[0, 255]], (64, 32)).astype(np.uint8)).convert("RGB")
    grey = np.asarray(square(stripes, 8))
    assert abs(grey.astype(int) - 127).max() < 9  # antialiased: no stripe survives


def test_transparency_lies_over_white_and_pictures_stand_upright():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert square(clear, 8).getcolors() == [(64, (255, 255, 255))]
    assert pixels_of(square(clear, 8)).shape == (1, 3, 8, 8)


def test_a_view_is_features_and_logits_of_the_prepared_picture():
    picture = Image.effect_noise((40, 30), 60)
    row = view(stand_in, picture, 16)
    features, logits = stand_in(pixels_of(square(picture, 16)))
    assert row.shape == (1, 9) and row.dtype == torch.float32
    torch.testing.assert_close(row, torch.cat([features, logits], dim=1))


def test_views_come_apart_into_features_and_probabilities():
    z = torch.randn(5, NUM_FEATURES + NUM_CLASSES)
    features, probabilities = features_and_probabilities(z)
    assert torch.equal(features, z[:, :2048]) and probabilities.shape == (5, 1008)
    torch.testing.assert_close(probabilities, z[:, 2048:].double().softmax(dim=1))


# Loading


@pytest.fixture
def library(monkeypatch):
    """A stand-in for torch-fidelity whose network has one weight; how it was asked for."""
    asked = []

    class Network(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            asked.append((features_list, feature_extractor_weights_path))
            self.scale = torch.nn.Parameter(torch.zeros(1))
            self.load_state_dict(torch.load(feature_extractor_weights_path))

        def forward(self, pixels):
            return tuple(self.scale * part for part in stand_in(pixels))

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_the_network_is_asked_for_what_the_metrics_need(library, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"scale": torch.tensor([2.0])}, path)
    extractor = load_inception(path)
    assert library == [(["2048", "logits_unbiased"], str(path))]
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    for found, expected in zip(extractor(pixels), stand_in(pixels), strict=True):
        torch.testing.assert_close(found, 2 * expected)
    viewer = inception_viewer(path, 8)
    assert viewer.name.startswith("inception-") and viewer.name.endswith("-8")
    torch.save({"scale": torch.tensor([3.0])}, path)
    assert inception_viewer(path, 8).name != viewer.name != inception_viewer(path, 9).name


def test_weights_that_would_run_code_are_refused(library, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "weights.pth"
    torch.save({"scale": Hostile()}, path)
    with pytest.raises(RequestError, match="^--inception: .* holds no such weights") as refusal:
        load_inception(path)
    assert not (tmp_path / "ran").exists() and library == []
    assert "\n" not in str(refusal.value)
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(RequestError, match="^--inception: .* holds no such weights"):
        load_inception(path)


def test_an_extra_that_is_missing_is_named(monkeypatch, tmp_path):
    with pytest.raises(RequestError, match="^--inception: .*nothing.pth does not exist"):
        inception_viewer(tmp_path / "nothing.pth", 256)
    (tmp_path / "weights.pth").touch()
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(RequestError, match=r"is missing; pip install 'unclip\[eval\]'$"):
        load_inception(tmp_path / "weights.pth")


REAL_LIBRARY = """
import sys
from unittest.mock import MagicMock
import importlib.util
if importlib.util.find_spec("torch_fidelity") is None:
    print("absent"); sys.exit()
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms",
             "torchvision.transforms.functional"):
    sys.modules[name] = MagicMock()  # of no use to Inception, and not of every build of torch
import torch
from pathlib import Path
import torch_fidelity.feature_extractor_inceptionv3 as library
from unclip_sample.inception import load_inception
torch.manual_seed(0)
weights = Path(sys.argv[1])
states = {}
class Bare(library.FeatureExtractorInceptionV3):
    def load_state_dict(self, state, *rest):
        states.update(self.state_dict()); return self
torch.save({}, weights)
Bare("bare", ["2048"], str(weights))
torch.save(states, weights)
extractor = load_inception(weights)
with torch.no_grad():
    features, logits = extractor(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
print(tuple(features.shape), tuple(logits.shape), bool(torch.isfinite(features).all()))
"""


@pytest.mark.slow
def test_the_real_library_gives_2048_features_and_1008_classes(tmp_path):
    """Random weights of the real network's shapes; torchvision, which it imports, stood in for."""
    command = [sys.executable, "-c", REAL_LIBRARY, str(tmp_path / "weights.pth")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "absent":
        pytest.skip("torch-fidelity is not installed: pip install 'unclip[eval]'")
    assert done.stdout.strip() == "(2, 2048) (2, 1008) True"
