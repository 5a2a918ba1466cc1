"""The engine: one thread that draws the pictures of all clients, their network calls in batches.

A task is an ordinary call of the pipeline in a greenlet of its own. Where it would run a network,
it hands the call to the engine instead and rests. When every task rests, the call whose turn it is
is run together with all that can join it, and those tasks go on. So pictures join a batch whenever
they come, and leave it whenever they are ready or given up, whatever they are made of; and each is
what it would be if it were drawn alone, to the rounding of a batch.

The decoder's turn is the last, since it gains most by company: what is about to end ends first, and
what has just come catches up. Among calls of one stage it is the oldest task's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from greenlet import greenlet

from unclip.pipeline import joining
from unclip.pipeline.arguments import STAGES
from unclip_sample.serve.errors import ApiError, error_of

# Rows that a network is given at once. A picture has one; two with guidance; the prior two or four.
# What pays on two cores: `python benchmarks/serving.py stages`.
ROWS_ON_CPU = {"prior": 64, "decoder": 32, "upsampler_256": 4, "upsampler_1024": 1}
ROWS_ELSEWHERE = {"prior": 256, "decoder": 64, "upsampler_256": 16, "upsampler_1024": 4}

TURNS = ("upsampler_1024", "upsampler_256", "prior", "decoder")

logger = logging.getLogger("unclip.serve")


class Waiting(NamedTuple):
    """A network call that a task rests on."""

    stage: str
    call: joining.Call

    @property
    def kind(self) -> Any:
        """What must be equal to be run together; None where it must be run alone."""
        kind = joining.kind_of(self.call)
        return None if kind is None else (self.stage, kind)

    @property
    def turn(self) -> tuple[int, bool]:
        """The least goes first. A prior's first call, which runs alone, comes before the others."""
        return TURNS.index(self.stage), self.kind is not None


@dataclass(eq=False)
class Task:
    """One call of the pipeline for a client.

    draw: given nothing, returns what the client is told in the end. tell: takes ("done", result) or
    ("failed", ApiError), in the engine's thread. num_pictures: what it counts in the queue.
    """

    draw: Callable[[], Any]
    tell: Callable[[str, Any], None]
    num_pictures: int = 1
    given_up: bool = False
    started: float = 0.0
    waits_for: Waiting | None = field(default=None, repr=False)
    thread: greenlet | None = field(default=None, repr=False)


class QueueFull(ApiError):
    """No more pictures are taken for now."""


@dataclass
class Watch:
    """What is told of the engine's work; the server counts it."""

    ran: Callable[[str, int, float], None] = lambda stage, rows, seconds: None
    ended: Callable[[Task, str, float], None] = lambda task, how, seconds: None


class Engine:
    """Draws tasks in the order in which they came, up to max_running at once.

    max_waiting: pictures that may wait beside those; more are refused.
    """

    def __init__(
        self,
        pipe: Any,
        max_rows: Mapping[str, int] | None = None,
        max_running: int = 8,
        max_waiting: int = 100,
        watch: Watch | None = None,
    ):
        self.pipe = pipe
        usual = ROWS_ON_CPU if pipe.device.type == "cpu" else ROWS_ELSEWHERE
        self.max_rows = {**usual, **(max_rows or {})}
        self.max_running, self.max_waiting = max_running, max_waiting
        self.watch = watch or Watch()
        self.running: list[Task] = []
        self._seconds_a_picture = 3.0  # a first guess for Retry-After
        self._last_done = 0.0
        self._queue: deque[Task] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._plain: dict[str, Callable] = {}
        self._thread = threading.Thread(target=self._work, name="unclip-engine", daemon=True)

    # --- for the server, from any thread ------------------------------------------------------

    def start(self) -> None:
        """Take over the networks and begin to work."""
        for stage in STAGES:
            network = getattr(self.pipe, stage, None)
            if network is not None:
                self._plain[stage] = network.forward
                network.forward = self._resting(stage, network.forward)
        self._thread.start()

    def stop(self) -> None:
        """Give everything up and give the networks back."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        for stage in self._plain:
            getattr(self.pipe, stage).forward = self._plain[stage]

    @property
    def is_alive(self) -> bool:
        """Whether pictures are being drawn."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Pictures that wait for their turn."""
        with self._wake:
            return self._count_waiting()

    def check_room(self, num_pictures: int = 1) -> None:
        """Refuse pictures that would have to wait behind too many others.

        Raises:
            QueueFull: with the seconds after which to ask again.
        """
        with self._wake:
            self._check_room(num_pictures)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take the tasks of one request, all or none.

        Raises:
            QueueFull: with the seconds after which to ask again.
        """
        with self._wake:
            self._check_room(sum(task.num_pictures for task in tasks))
            self._queue.extend(tasks)
            self._wake.notify()

    def give_up(self, tasks: Sequence[Task]) -> None:
        """Stop working for a client: at the next step, at once where it was not begun."""
        with self._wake:
            for task in tasks:
                task.given_up = True
            self._wake.notify()

    def _count_waiting(self) -> int:
        return sum(task.num_pictures for task in self._queue if not task.given_up)

    def _check_room(self, num_pictures: int) -> None:
        waiting = self._count_waiting()
        if self._stopping:
            raise ApiError(503, "The server is shutting down.", kind="server_error")
        if waiting and waiting + num_pictures > self.max_waiting:
            seconds = max(1, round(waiting * self._seconds_a_picture))
            raise QueueFull(
                429,
                f"The queue is full: {waiting} pictures are waiting. Ask again in {seconds} s.",
                kind="requests",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )

    # --- the engine's own thread --------------------------------------------------------------

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # for good: a task may not switch it while others rest
        self._hub = greenlet.getcurrent()
        while self._next():
            self._drop_given_up()
            self._start_new()
            if self.running:
                self._run_a_batch()
        for task in [*self.running, *self._queue]:
            task.given_up = True
        self._drop_given_up()

    def _next(self) -> bool:
        """Wait until there is something to do; False when the engine stops."""
        with self._wake:
            while not (self.running or self._queue or self._stopping):
                self._wake.wait()
            return not self._stopping

    def _drop_given_up(self) -> None:
        for task in [task for task in self.running if task.given_up]:
            task.thread.throw()  # GreenletExit where it rests
            self._leave(task, "given_up")
        with self._wake:
            self._queue = deque(task for task in self._queue if not task.given_up)

    def _start_new(self) -> None:
        while len(self.running) < self.max_running:
            with self._wake:
                if not self._queue:
                    return
                task = self._queue.popleft()
            task.started = time.monotonic()
            task.thread = greenlet(lambda task=task: self._draw(task), parent=self._hub)
            self.running.append(task)
            self._go_on(task)

    def _draw(self, task: Task) -> None:
        """The body of a task's greenlet."""
        try:
            result = task.draw()
        except Exception as error:
            task.tell("failed", error_of(error))
            self._leave(task, "failed")
        else:
            task.tell("done", result)
            self._leave(task, "done")

    def _go_on(self, task: Task, *result: Any) -> None:
        """Let a task run until it rests on its next network call, or ends."""
        task.waits_for = task.thread.switch(*result)

    def _leave(self, task: Task, how: str) -> None:
        if task in self.running:
            self.running.remove(task)
        now = time.monotonic()
        if how == "done":
            of_one = (now - max(self._last_done, task.started)) / task.num_pictures
            self._seconds_a_picture += 0.1 * (of_one - self._seconds_a_picture)
            self._last_done = now
        self.watch.ended(task, how, now - task.started)

    def _resting(self, stage: str, plain: Callable) -> Callable:
        """A forward() that has the engine run the network, where a task of the engine calls it."""

        def forward(*call: Any) -> Any:
            hub = greenlet.getcurrent().parent
            return plain(*call) if hub is None else hub.switch(Waiting(stage, call))

        return forward

    def _run_a_batch(self) -> None:
        """Run the call whose turn it is with all that can join it, and let those tasks go on."""
        together = self._together()
        calls = [task.waits_for.call for task in together]
        stage = together[0].waits_for.stage
        start = time.monotonic()
        try:
            outputs = joining.split(self._run(stage, joining.joined(calls)), calls)
        except Exception as error:
            self._run_each(together, error)
            return
        finally:
            rows = sum(map(joining.num_rows, calls))
            self.watch.ran(stage, rows, time.monotonic() - start)
        for task, output in zip(together, outputs, strict=True):
            self._go_on(task, output)

    def _together(self) -> list[Task]:
        """The task whose turn it is, and those that join it, up to the rows that pay."""
        first = min(self.running, key=lambda task: task.waits_for.turn)
        kind, stage = first.waits_for.kind, first.waits_for.stage
        together, rows = [first], joining.num_rows(first.waits_for.call)
        for task in self.running if kind is not None else []:
            more = joining.num_rows(task.waits_for.call)
            fits = task is not first and rows + more <= self.max_rows[stage]
            if fits and task.waits_for.kind == kind:
                together.append(task)
                rows += more
        return together

    def _run(self, stage: str, call: joining.Call) -> Any:
        """What a network makes of a call, in portions of the rows that pay."""
        portions = joining.portions(call, self.max_rows[stage])
        outputs = [self._plain[stage](*portion) for portion in portions]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run_each(self, tasks: Sequence[Task], error: Exception) -> None:
        """After a batch that failed: each by itself, so that a fault stays with its owner."""
        for task in tasks:
            stage, call = task.waits_for
            try:
                output = error if len(tasks) == 1 else self._run(stage, call)
            except Exception as own:
                output = own
            if isinstance(output, Exception):
                task.waits_for = task.thread.throw(output)
            else:
                self._go_on(task, output)
