"""What a call computes does not grow unnoticed: its arithmetic and its operations are counted.

Counts do not depend on the machine or its load, as seconds do. Where a change lowers one, lower the
number here; where one must rise, say why in the changelog.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from unclip.pipeline import stages
from unclip.pipeline.arguments import STAGES

# Of one picture of 1024 pixels by the tiny pipeline, guided in the decoder, at its default steps:
# FLOPs (matrix products, convolutions, attention) and calls of operations within the networks.
WORK = {
    "prior": (1_548_288, 205),
    "decoder": (1_771_307_008, 619),
    "upsampler_256": (472_444_928, 276),
    "upsampler_1024": (1_422_663_168, 140),
}


class OperationCounter(TorchDispatchMode):
    """Counts operations that compute or copy; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def work_of(pipe, **arguments):
    """FLOPs and operations of each stage's network in one call of the pipeline."""
    found = {stage: [0, 0] for stage in STAGES}

    def counted(stage, forward):
        def run(*args, **kwargs):
            with FlopCounterMode(display=False) as flops, OperationCounter() as operations:
                output = forward(*args, **kwargs)
            found[stage][0] += flops.get_total_flops()
            found[stage][1] += operations.count
            return output

        return run

    for stage in STAGES:
        network = pipe.components[stage]
        network.forward = counted(stage, network.forward)
    pipe("a red apple", seeds=1, output_type="pt", **arguments)
    return {stage: tuple(counts) for stage, counts in found.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_work_does_not_grow(work, stage):
    for now, known, what in zip(work[stage], WORK[stage], ("FLOPs", "operations"), strict=True):
        assert now <= known, f"{stage}: {now:,} {what} where {known:,} sufficed"
        assert now > 0.95 * known, f"{stage}: {now:,} {what}, so few: lower the number here"


@pytest.fixture(scope="module")
def work(make_pipe):
    return work_of(make_pipe())


def test_work_is_that_of_a_picture(make_pipe, work):
    """Two pictures cost twice the arithmetic of one, and hardly another operation."""
    both = work_of(make_pipe(), num_images_per_prompt=2, max_batch_size=2)
    for stage in STAGES[1:]:
        assert both[stage][0] == pytest.approx(2 * work[stage][0], rel=0.01)
        assert both[stage][1] <= work[stage][1] + 10


def test_without_guidance_the_decoder_does_half(make_pipe, work):
    alone = work_of(make_pipe(), guidance_scale=1.0)
    assert alone["decoder"][0] == pytest.approx(work["decoder"][0] / 2, rel=0.01)


@pytest.mark.parametrize("device, expected", [("cpu", [256, 16, 1]), ("cuda", [1024, 64, 4])])
def test_a_cpu_draws_fewer_pixels_at_a_time(device, expected):
    network = SimpleNamespace(modules=list, device=torch.device(device))
    assert [stages.pictures_at_once(network, side) for side in (64, 256, 1024)] == expected


def test_large_pictures_are_drawn_a_few_at_a_time(make_pipe, monkeypatch):
    """What a call needs of memory does not grow with the number of its pictures."""
    pipe, batches = make_pipe(), {stage: [] for stage in STAGES}
    for stage, seen in batches.items():
        pipe.components[stage].register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(len(inputs[0]))
        )
    monkeypatch.setattr(stages, "PIXELS_AT_ONCE_ON_CPU", 3 * 256**2)
    settings = {"size": 256, "guidance_scale": 1.0, "num_prior_candidates": 1, "output_type": "pt"}
    exact = pipe("a red apple", num_images_per_prompt=5, seeds=1, **settings).images
    assert batches == {
        "prior": [5] * 3,
        "decoder": [5] * 3,
        "upsampler_256": [3] * 2 + [2] * 2,
        "upsampler_1024": [],
    }
    every = pipe("a red apple", num_images_per_prompt=5, seeds=1, max_batch_size=5, **settings)
    assert batches["upsampler_256"][4:] == [5] * 2
    assert torch.allclose(every.images, exact, atol=1e-4)
