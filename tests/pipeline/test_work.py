"""What a call computes does not grow unnoticed: its arithmetic and its operations are counted.

Counts do not depend on the machine or its load, as seconds do. Where a change lowers one, lower the
number here; where one must rise, say why in the changelog.
"""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

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
    both = work_of(make_pipe(), num_images_per_prompt=2)
    for stage in STAGES[1:]:
        assert both[stage][0] == pytest.approx(2 * work[stage][0], rel=0.01)
        assert both[stage][1] <= work[stage][1] + 10


def test_without_guidance_the_decoder_does_half(make_pipe, work):
    alone = work_of(make_pipe(), guidance_scale=1.0)
    assert alone["decoder"][0] == pytest.approx(work["decoder"][0] / 2, rel=0.01)
