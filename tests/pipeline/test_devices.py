"""Every operation on a device of its own: nothing of the CPU's mixes with what lies there.

No accelerator is needed. Elsewhere stands for one: its tensors are the CPU's, with real values, but
they say that they lie on "cuda" or "mps", and an operation on tensors of two devices raises, as do
float64 on "mps", numpy() and noise from the CPU's generator. The same is drawn as on the CPU.
"""

import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

RED = Image.new("RGB", (64, 64), "red")
MASK = torch.arange(64)[:, None].expand(64, 64) > 30
SMALL = {"size": 64, "output_type": "pt", "seeds": 1}
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)  # by the CPU's numbers is allowed


class There(torch.Tensor):
    """A tensor that lies on the other device."""


class Elsewhere(TorchFunctionMode):
    """Calls of torch as they would be with another device; used: the dtypes of what lay there."""

    def __init__(self, kind: str):
        super().__init__()
        self.device = torch.device(kind)
        self.used: set[torch.dtype] = set()

    def is_here(self, device) -> bool:
        return torch.device(device).type == self.device.type

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # made anew at every look
            return self.device if isinstance(args[0], There) else torch.device("cpu")
        args, there = self.destination(func, args, kwargs)
        if there and "generator" in kwargs and func is not torch.Tensor.to:
            raise AssertionError(f"{func}: a generator of the CPU cannot draw on {self.device}")
        if func is torch.Tensor.numpy and isinstance(args[0], There):
            raise TypeError(f"{func}: cannot convert what lies on {self.device}")
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        return tree_map(lambda x: self.placed(x, func, there), found)

    def destination(self, func, args, kwargs) -> tuple[tuple, bool]:
        """Arguments without a device, and whether the result lies there."""
        if func is torch.Tensor.cpu:
            return args, False
        there = self.agreed(func, (args, kwargs))
        if "device" in kwargs:
            device = kwargs.pop("device")
            there = there if device is None else self.is_here(device)
        if func is torch.Tensor.to:
            for value in (*args[1:], kwargs.get("other")):
                if isinstance(value, torch.device | str):
                    there = self.is_here(value)
                elif isinstance(value, torch.Tensor):
                    there = isinstance(value, There)
            args = tuple(value for value in args if not isinstance(value, torch.device | str))
        return args, there

    def agreed(self, func, values) -> bool:
        """Whether the tensors lie there, which they must all do; single numbers may be anywhere."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
        if func in INDEXING:
            tensors = tensors[:1]
        there = any(isinstance(tensor, There) for tensor in tensors)
        mixed = [x for x in tensors if x.ndim and not isinstance(x, There)]
        if there and mixed and func is not torch.Tensor.to:
            raise AssertionError(f"{func}: tensors of {self.device} and of the CPU")
        return there

    def placed(self, x, func, there: bool):
        if not isinstance(x, torch.Tensor):
            return x
        if there:
            self.used.add(x.dtype)
            if self.device.type == "mps" and x.dtype == torch.float64:
                raise TypeError(f"{func}: MPS has no float64")
        return x.as_subclass(There if there else torch.Tensor)


def moved(pipe):
    """The pipeline, its weights said to lie elsewhere."""
    for network in pipe.networks():
        for module in network.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    there = weight.detach().as_subclass(There)
                    module._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.as_subclass(There)
    return pipe


CALLS = {
    "call": lambda p: p("a", prior_guidance_scale=2.0, **SMALL | {"size": 1024}),
    "best of": lambda p: p("a", best_of=3, **SMALL),
    "vary": lambda p: p.vary(RED, eta=0.5, **SMALL | {"size": 256}),
    "interpolate": lambda p: p.interpolate(["a", RED], num_frames=3, **SMALL),
    "text diff": lambda p: p.text_diff(RED, "b", "a", num_frames=2, **SMALL),
    "mix": lambda p: p.mix(["a", RED], **SMALL),
    "ablate": lambda p: p.ablate("a", "caption", **SMALL),
    "CLIP guidance": lambda p: p.ablate("a", clip_guidance_scale=2.0, **SMALL),
    "inpaint": lambda p: p.inpaint(RED, MASK, "a", **SMALL),
    "outpaint": lambda p: p.outpaint(RED, "a", **SMALL),
    "image to image": lambda p: p.image_to_image(RED, "a", **SMALL),
    "upscale": lambda p: p.upscale(RED, 256, tile_size=128, tile_overlap=64, seeds=1),
    "analytic": lambda p: (
        p.measure_score_norms(["a"], num_timesteps=3),
        p("a", stages={"prior": {"scheduler": "analytic"}}, **SMALL),
    )[1],
}
GUIDED = {"guidance_rescale": 0.5, "guidance_interval": (100, 900), "guidance_scale": 3.0}
SAMPLERS = (
    "ddim",
    "dpm++",
    "dpm++sde",
    "dpm++s",
    "unipc",
    "deis",
    "euler",
    "euler-a",
    "heun",
    "sa",
)


def drawn(call, pipe):
    """The pictures of a call as one tensor."""
    images = call(pipe).images
    if isinstance(images, torch.Tensor):
        return images
    return torch.stack(
        [torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8) for x in images]
    )


@pytest.mark.parametrize("kind", ["mps", pytest.param("cuda", marks=pytest.mark.slow)])
def test_nothing_mixes_with_the_cpu(make_pipe, kind):
    exact, pipe = make_pipe(), moved(make_pipe())
    for name, call in CALLS.items():
        torch.manual_seed(0)
        with Elsewhere(kind) as mode:
            assert pipe.device.type == kind
            found = drawn(call, pipe)
        assert type(found) is torch.Tensor and torch.float32 in mode.used, name
        # Equal but for rounding: sums may be taken in another order for another kind of tensor.
        difference = (found.float() - drawn(call, exact).float()).abs()
        assert difference.mean() <= 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_stay_on_the_device(make_pipe, sampler):
    pipe = moved(make_pipe())
    stage = {"scheduler": sampler, **GUIDED}
    if sampler in ("ddim", "dpm++"):
        stage["dynamic_threshold"] = 0.9
    with Elsewhere("mps"):
        images = pipe("a", stages={"decoder": stage}, **SMALL).images
    assert torch.isfinite(images).all()


def test_half_precision_where_the_stages_are(make_pipe):
    """On an accelerator the decoder computes in bf16, CLIP and the prior in float32."""
    pipe = moved(make_pipe().to(torch.bfloat16))
    with Elsewhere("cuda") as mode:
        images = pipe("a", **SMALL).images
    assert {torch.bfloat16, torch.float32} <= mode.used and images.dtype == torch.float32


def test_the_stand_in_finds_what_it_is_for():
    with Elsewhere("mps") as mode:
        there = torch.ones(2, device="mps")
        assert there.device == mode.device and (there + 1).device == mode.device
        assert (
            there.cpu().device.type == "cpu" and there.to("cpu", torch.float64).dtype.itemsize == 8
        )
        for wrong in (
            lambda: there + torch.ones(2),
            lambda: torch.cat([there, torch.ones(2)]),
            lambda: there.double(),
            lambda: there.numpy(),
            lambda: torch.randn(2, generator=torch.Generator(), device="mps"),
        ):
            with pytest.raises((AssertionError, TypeError)):
                wrong()
