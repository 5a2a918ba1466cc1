"""What lives during one call of the pipeline: conditions, reports, cancelling, lack of memory.

Nothing of it is kept in the pipeline, so that calls in several threads do not meet.

Shapes: N subjects, B pictures, K candidates of the prior, D CLIP embedding, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unclip.models.clip import TextEncoding
from unclip.pipeline.arguments import short
from unclip.pipeline.edits import Edit

TENSOR_INPUTS = ("x_t", "latents", "z_img", "z_txt", "x_low")  # what a callback may ask for
FACTS = ("stage", "num_steps")  # what it is told in any case


class Interrupted(RuntimeError):
    """A call was cancelled; the pipeline is as it was."""


@dataclass(frozen=True)
class Conditions:
    """What leads each of B pictures: texts, embeddings, seeds, noise and small pictures."""

    text: TextEncoding  # [B]
    negatives: dict[str, TextEncoding]  # by stage, [B] each
    seeds: list[int]  # [B]
    x_T: dict[str, Tensor] = field(default_factory=dict)  # by stage [B, ...]; the prior's [K, B, D]
    z_img: Tensor | None = None  # [B, D]
    x_low: Tensor | None = None  # [B, 3, S, S]
    edit: Edit | None = None  # of B pictures

    def select(self, rows: Sequence[int]) -> Conditions:
        """Those of some of the pictures."""
        index = torch.tensor(list(rows))
        return replace(
            self,
            text=self.text.select(index),
            negatives={stage: text.select(index) for stage, text in self.negatives.items()},
            seeds=[self.seeds[row] for row in rows],
            x_T={k: x[:, index] if k == "prior" else x[index] for k, x in self.x_T.items()},
            z_img=None if self.z_img is None else self.z_img[index],
            x_low=None if self.x_low is None else self.x_low[index],
            edit=None if self.edit is None else self.edit.select(rows),
        )

    def batches(self, max_batch_size: int | None) -> Iterator[Conditions]:
        """All of the pictures, so many at a time."""
        at_once = max_batch_size or len(self.seeds)
        if at_once >= len(self.seeds):
            yield self
            return
        for start in range(0, len(self.seeds), at_once):
            yield self.select(range(start, min(start + at_once, len(self.seeds))))


@dataclass(frozen=True)
class Report:
    """What is told about every step, and whether the call is to end.

    callback(pipeline, step, t, values): values has "stage", "num_steps", and those of
    TENSOR_INPUTS that are named in tensor_inputs and exist in the stage. An "x_t" (or "latents",
    the same) in what it returns takes the place of that one.
    """

    callback: Callable[..., Mapping[str, Any] | None] | None = None
    tensor_inputs: tuple[str, ...] = ("x_t",)
    interrupt: Any = None  # a threading.Event, or what has its is_set()

    def on_step(self, **known: Tensor | None) -> Callable[..., Mapping[str, Any] | None] | None:
        """What a stage calls after each step; known: tensors of the stage, beside x_t."""
        if self.callback is None and self.interrupt is None:
            return None

        def report(pipeline: Any, step: int, t: float, values: Mapping[str, Any]) -> Any:
            self.check()
            if self.callback is None:
                return None
            tensors = {**known, "x_t": values["x_t"], "latents": values["x_t"]}
            found = {name: tensors.get(name) for name in self.tensor_inputs}
            told = {name: tensor for name, tensor in found.items() if tensor is not None}
            told |= {name: values[name] for name in FACTS}
            changed = self.callback(pipeline, step, t, told)
            self.check()
            return self.replacement(changed, values["x_t"])

        return report

    def check(self) -> None:
        """Raise Interrupted where the call was cancelled."""
        if self.interrupt is not None and self.interrupt.is_set():
            raise Interrupted("the call was cancelled")

    def watched(self, indices: Iterable[int]) -> Iterator[int]:
        """Indices of steps that are told to nobody, for as long as the call is not cancelled."""
        for index in indices:
            self.check()
            yield index

    @staticmethod
    def replacement(changed: Any, x_t: Tensor) -> Mapping[str, Tensor] | None:
        """What a callback returned in place of x_t, as a stage reads it."""
        if not isinstance(changed, Mapping):
            return None
        unknown = set(changed) - {*TENSOR_INPUTS, *FACTS}
        if unknown:
            raise ValueError(f"callback_on_step_end: it returned {sorted(unknown)[0]!r}; give x_t")
        given = changed.get("x_t", changed.get("latents"))
        if given is None:
            return None
        if not isinstance(given, Tensor) or given.shape != x_t.shape:
            raise ValueError(
                f"callback_on_step_end: it returned {short(given)} in place of x_t; give a tensor "
                f"{list(x_t.shape)}"
            )
        return {"x_t": given}


def check_report(callback: Any, tensor_inputs: Any, interrupt: Any) -> Report:
    """The report of a call from its arguments.

    Raises:
        ValueError: for a bad one, by name.
    """
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end: give a function, not {type(callback).__name__}")
    names = [tensor_inputs] if isinstance(tensor_inputs, str) else tensor_inputs
    if not isinstance(names, list | tuple) or not set(names) <= set(TENSOR_INPUTS):
        raise ValueError(
            "callback_on_step_end_tensor_inputs: give names among " + ", ".join(TENSOR_INPUTS)
        )
    if interrupt is not None and not callable(getattr(interrupt, "is_set", None)):
        raise ValueError(f"interrupt: give a threading.Event, not {type(interrupt).__name__}")
    return Report(callback, tuple(names), interrupt)


def with_advice(draw: Callable[[], Tensor], stage: str, num_images: int, dtype: Any) -> Tensor:
    """What draw() returns; where memory does not suffice, an error that says what to change.

    Raises:
        torch.OutOfMemoryError: naming the stage and three settings with values.
    """
    try:
        return draw()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Raised out here because the first error holds on to the frames, and so to their tensors.
    fewer = f"max_batch_size={num_images // 2}" if num_images > 1 else "a smaller size"
    half = "dtype=torch.bfloat16" if dtype == torch.float32 else "a model of fewer parameters"
    raise torch.OutOfMemoryError(
        f"{stage}: no memory for {num_images} pictures at once in {str(dtype)[6:]}; give {fewer}, "
        f"{half}, or call enable_model_cpu_offload()"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def best_of(scores: Tensor, num_drawn: int, num_kept: int) -> list[int]:
    """The pictures to keep: of each subject's num_drawn in a row, the num_kept of highest score.

    Args:
        scores: [N num_drawn].

    Returns:
        Rows, subject after subject, the best of each first.
    """
    order = scores.reshape(-1, num_drawn).argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(len(order))[:, None] * num_drawn
    return (starts + order[:, :num_kept]).flatten().tolist()
