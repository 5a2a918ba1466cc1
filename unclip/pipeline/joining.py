"""Calls of one network that come from several calls of the pipeline, run as one batch.

A call is the arguments of a network's forward(): tensors, a TextEncoding, a Prefix or a Context,
which hold what was read of captions. Every row of a
batch has a timestep of its own, so that pictures need not be at the same step, nor take as many.

Shapes: B rows of a call.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from unclip.models.clip import TextEncoding
from unclip.models.decoder import Context
from unclip.models.prior_transformer import Prefix

Call = tuple[Any, ...]


def num_rows(call: Call) -> int:
    """B, the rows of what a network is called with."""
    return len(call[0])


def kind_of(call: Call) -> Hashable | None:
    """What calls must have in common to be joined; None where a call must run alone.

    What is read of captions is read by the first call about them, which runs alone; and so does
    a call that keeps anything else for the next step.
    """
    kinds = []
    for argument in call:
        if isinstance(argument, Prefix | Context):
            if not is_filled(argument) or getattr(argument, "reuse", 1) > 1:
                return None
            kinds.append(len(argument.keys_and_values or ()))
        elif isinstance(argument, TextEncoding):
            # Beside what was read the captions are not, and there need not be one for each row.
            kinds.append(tuple(shape_of(member) for member in argument))
        elif isinstance(argument, Tensor):
            kinds.append(shape_of(argument))
        elif argument is not None:
            return None
        else:
            kinds.append(None)
    return tuple(kinds)


def is_filled(read: Prefix | Context) -> bool:
    """Whether the captions have been read."""
    return (read.tokens if isinstance(read, Context) else read.bias) is not None


def shape_of(tensor: Tensor) -> Hashable:
    """All of a tensor's form but its rows."""
    return tensor.shape[1:], tensor.dtype, tensor.device


def joined(calls: Sequence[Call]) -> Call:
    """Calls of one kind as a single one, their rows in order."""
    if len(calls) == 1:
        return calls[0]
    return tuple(_joined_arguments(arguments) for arguments in zip(*calls, strict=True))


def split(output: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """What joined calls returned [sum of B, ...], for each of them."""
    return list(output.split([num_rows(call) for call in calls]))


def portions(call: Call, max_rows: int) -> list[Call]:
    """A call as several of at most max_rows rows each; whole where captions are kept with it."""
    rows = num_rows(call)
    if rows <= max_rows or any(not _can_be_parted(argument) for argument in call):
        return [call]
    starts = range(0, rows, max_rows)
    return [
        tuple(_rows_of(argument, slice(start, start + max_rows)) for argument in call)
        for start in starts
    ]


def _can_be_parted(argument: Any) -> bool:
    """A prefix cannot; nor a context that is to be filled, or keeps more than it has read."""
    if isinstance(argument, Context):
        return is_filled(argument) and argument.reuse == 1
    return not isinstance(argument, Prefix)


def _joined_arguments(arguments: Sequence[Any]) -> Any:
    first = arguments[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(arguments)
    return type(first).cat(arguments)


def _rows_of(argument: Any, rows: slice) -> Any:
    if isinstance(argument, TextEncoding | Context):
        return argument.select(rows)
    return None if argument is None else argument[rows]
