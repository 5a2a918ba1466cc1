"""Sides of a comparison that work in turns, one of them perhaps in another environment."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

Work = Callable[[int], float]  # does its work so many times and tells the seconds that this took


class Worker:
    """Another process that builds what a spec says and then works when it is told to.

    Args:
        python: the interpreter of its environment.
        script: reads the spec as a line of JSON, answers with one that tells "parameters", then
            for each number that it reads works so many times and answers with "seconds".
        spec: what to build.

    Raises:
        RuntimeError: when it ends before it answers; its last words are quoted.
    """

    def __init__(self, python: str, script: Path, spec: dict):
        self.process = subprocess.Popen(
            [python, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.facts = self._ask(json.dumps(spec))

    def __call__(self, times: int) -> float:
        """Seconds that the work took."""
        self.answer = self._ask(str(times))
        return self.answer["seconds"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error) -> None:
        self.process.communicate()  # its input ends, and so does it

    def _ask(self, line: str) -> dict:
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            words = self.process.communicate()[1].strip().splitlines()[-1:]
            raise RuntimeError(f"{self.process.args[0]}: {' '.join(words) or 'it has ended'}")
        return json.loads(answer)


def timed(work: Callable[[], object]) -> Work:
    """Work of this process, as a side of a comparison."""

    def measure(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return time.perf_counter() - start

    return measure


def take_turns(sides: dict[str, Work], rounds: int, times: int) -> dict[str, list[float]]:
    """Seconds a piece of work of every side, A B A B ..., after one round that warms them up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, work in sides.items():
            took = work(times if number else 1) / times
            if number:
                seconds[name].append(took)
    return seconds


def compare(seconds: dict[str, list[float]], peer: str) -> dict[str, dict]:
    """Medians and least seconds of every side, and how many times as fast as the peer each is.

    median, least, largest: of the ratios within a round. best: of the least seconds of both, which
    other work on the machine disturbs less.
    """
    report = {
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "least_seconds": {name: min(found) for name, found in seconds.items()},
    }
    for name, found in seconds.items():
        if peer in seconds and name != peer:
            ratios = sorted(b / a for a, b in zip(found, seconds[peer], strict=True))
            report.setdefault("times_as_fast", {})[name] = {
                "median": statistics.median(ratios),
                "least": ratios[0],
                "largest": ratios[-1],
                "best": min(seconds[peer]) / min(found),
            }
    return report
