"""A parser of words that helps with mistakes, and the kinds of values that words can have."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from typing import NoReturn

# Those of unclip.diffusion.samplers, which cannot be asked before torch is there.
SAMPLERS = (
    *("ddpm", "analytic", "ddim", "dpm++", "dpm++sde", "dpm++s"),
    *("unipc", "deis", "euler", "euler-a", "heun", "sa"),
)


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong on one line, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Name the argument and leave."""
        hint = self.suggestion(message)
        line = " ".join(f"{message.removeprefix('argument ')}{hint}".split())
        self.exit(2, f"{self.prog}: {line}\n")

    def suggestion(self, message: str) -> str:
        """The option or the choice that is nearest to an unknown one."""
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            near = nearest(unknown[1], list(self._option_string_actions))
        elif choice:
            near = nearest(choice[1], re.findall(r"[^\s',]+", choice[2]))
        else:
            near = None
        return f" (did you mean {near}?)" if near else ""


def nearest(word: str, words: list[str]) -> str | None:
    """The one of the words that is most like a misspelt one, None where none is."""
    return next(iter(difflib.get_close_matches(word, words, 1, 0.6)), None)


def count(text: str) -> int:
    """A whole number from 1 to 100000."""
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"give a whole number from 1 to 100000, not {text!r}")
    return int(text)


def whole(text: str, low: int, high: int) -> int:
    """A whole number from low to high."""
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"give a whole number from {low} to {high}, not {text!r}")
    return value


def side(text: str) -> int:
    """Pixels a side of a picture; which of them a model draws, the model says."""
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) % 8 or not 8 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"give a multiple of 8 from 8 to 4096, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 to 2^62, which leaves room for the seeds after it."""
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) > 2**62:
        raise argparse.ArgumentTypeError(f"give a whole number from 0 to 2^62, not {text!r}")
    return int(text)


def number(text: str, low: float, high: float) -> float:
    """A number from low to high."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"give a number from {low:g} to {high:g}, not {text!r}")
    return value


def scale(text: str) -> float:
    """A guidance scale."""
    return number(text, 0, 100)


def share(text: str) -> float:
    """A number from 0 to 1."""
    return number(text, 0, 1)


def percentile(text: str) -> float:
    """A share of values, of which at least half lie below."""
    return number(text, 0.5, 1)


def interval(text: str) -> tuple[float, float]:
    """Two timesteps LOW,HIGH."""
    parts = [number(part, 0, 1000) for part in text.split(",")]
    if len(parts) != 2 or parts[0] > parts[1]:
        raise argparse.ArgumentTypeError(f"give LOW,HIGH timesteps, not {text!r}")
    return parts[0], parts[1]


def steps(text: str) -> int | str:
    """A number of steps or the name of a list."""
    if re.fullmatch("[0-9]{1,4}", text) and 1 <= int(text) <= 1000:
        return int(text)
    if re.fullmatch(r"fast27|ddim[1-9][0-9]{0,3}", text):
        return text
    raise argparse.ArgumentTypeError(f"give a number from 1 to 1000, fast27 or ddimN, not {text!r}")


def step_pair(text: str) -> tuple[int | str, int | str]:
    """Steps of both upsamplers: A for both, or A,B."""
    parts = [steps(part) for part in text.split(",", 1)]
    return parts[0], parts[-1]


def sampler(text: str) -> str:
    """The name of a sampler."""
    if text not in SAMPLERS:
        near = nearest(text, list(SAMPLERS))
        hint = f" (did you mean {near}?)" if near else ""
        raise argparse.ArgumentTypeError(f"give one of {', '.join(SAMPLERS)}, not {text!r}{hint}")
    return text


def sampler_pair(text: str) -> tuple[str, str]:
    """Samplers of both upsamplers: A for both, or A,B."""
    parts = [sampler(part) for part in text.split(",", 1)]
    return parts[0], parts[-1]
