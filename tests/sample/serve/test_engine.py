"""The engine: what it joins, what it lets go, and that a fault stays with its owner."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_sample.serve import engine as engines
from unclip_sample.serve import fields
from unclip_sample.serve.drawing import Easel
from unclip_sample.serve.engine import Engine, Task
from unclip_sample.serve.errors import ApiError

from .conftest import until


class Told:
    """What a task told, and an event for its end."""

    def __init__(self):
        self.kind, self.value, self.ended = None, None, threading.Event()

    def __call__(self, kind, value):
        self.kind, self.value = kind, value
        self.ended.set()

    def result(self):
        assert self.ended.wait(30)
        return self.value


@pytest.fixture
def engine(make_pipe):
    """An engine that works on a pipeline of its own."""
    engine = Engine(make_pipe())
    engine.start()
    yield engine
    engine.stop()


def generation(pipe, prompt, seed, **words):
    """What draws one picture of a caption."""
    words = {"size": "64x64", "prior_steps": 2, "steps": 2, **words}
    asked = fields.Generation(prompt=prompt, **words)
    (order,) = Easel(pipe, {}).orders(asked, {}, seed)
    return lambda: order.draw(lambda step: None)


def draw_together(engine, draws):
    """Hand tasks over at once; what each told."""
    told = [Told() for _ in draws]
    engine.submit([Task(draw, one) for draw, one in zip(draws, told, strict=True)])
    return [one.result() for one in told]


def test_pictures_of_any_kind_share_batches(engine, pipe):
    ran = []
    engine.watch.ran = lambda stage, rows, seconds: ran.append((stage, rows))
    asked = [("a cat", 1, {}), ("a far longer one", 2, {"steps": 5}), ("x", 3, {"guidance": 1})]
    drawn = draw_together(engine, [generation(engine.pipe, p, s, **w) for p, s, w in asked])
    for (picture,), (prompt, seed, words) in zip(drawn, asked, strict=True):
        (alone,) = generation(pipe, prompt, seed, **words)()
        difference = np.abs(np.asarray(picture.picture).astype(int) - np.asarray(alone.picture))
        assert difference.max() <= 1
    rows = [rows for stage, rows in ran if stage == "decoder"]
    # Each reads its caption alone; then two guided and one not, and the one of five steps.
    assert rows == [2, 2, 1, 5, 2, 2, 2]
    assert [rows for stage, rows in ran if stage == "prior"] == [2, 2, 2, 6]


def test_one_that_comes_later_joins(engine):
    ran = []
    engine.watch.ran = lambda stage, rows, seconds: ran.append((stage, rows))
    plain, second = engine._plain["decoder"], Told()
    task = Task(generation(engine.pipe, "a dog", 2), second)

    def decoder(*call):
        if len(ran) == 3:  # the prior's two steps, and one of the decoder's
            engine.submit([task])
        return plain(*call)

    engine._plain["decoder"] = decoder
    draw_together(engine, [generation(engine.pipe, "a cat", 1, steps=5)])
    second.result()
    # Two steps of the first; the second reads its caption; both together; the first to its end.
    assert [rows for stage, rows in ran if stage == "decoder"] == [2, 2, 2, 4, 2, 2]
    assert [stage for stage, _ in ran[4:6]] == ["prior", "prior"]


def test_a_batch_is_no_larger_than_pays(make_pipe):
    engine, ran = Engine(make_pipe(), max_rows={"decoder": 4}), []
    engine.watch.ran = lambda stage, rows, seconds: ran.append((stage, rows))
    engine.start()
    draw_together(engine, [generation(engine.pipe, "a cat", seed) for seed in range(5)])
    engine.stop()
    assert max(rows for stage, rows in ran if stage == "decoder") == 4


def test_a_fault_stays_with_its_owner(engine):
    plain = engine._plain["decoder"]

    def cannot_do_many(x_t, *rest):
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("not so many")
        return plain(x_t, *rest)

    engine._plain["decoder"] = cannot_do_many
    drawn = draw_together(engine, [generation(engine.pipe, "a cat", seed) for seed in range(3)])
    assert all(isinstance(pictures[0].picture, Image.Image) for pictures in drawn)

    def spoilt(x_t, t, z_img, *rest):
        output = plain(x_t, t, z_img, *rest)
        return output * torch.where(t == 999, 1.0, torch.nan)[:, None, None, None]

    engine._plain["decoder"] = spoilt
    draws = [generation(engine.pipe, "a cat", 1), generation(engine.pipe, "a dog", 2, steps=1)]
    failed, fine = draw_together(engine, draws)
    assert isinstance(failed, ApiError) and failed.status == 500 and "finite" in failed.message
    assert isinstance(fine[0].picture, Image.Image)


def test_errors_of_the_pipeline_become_those_of_the_api(engine):
    def refuse():
        raise ValueError("guidance_scale: give a number from 0 to 100, not 101")

    def mistake():
        raise KeyError("a secret")

    refused, failed = draw_together(engine, [refuse, mistake])
    assert refused.status == 400 and refused.param == "guidance"
    assert failed.status == 500 and "secret" not in failed.message
    out_of_memory = engines.error_of(torch.OutOfMemoryError("tensors"))
    assert out_of_memory.status == 503 and "tensors" not in out_of_memory.message


def test_what_is_given_up_before_its_turn_is_not_begun(make_pipe):
    engine = Engine(make_pipe(), max_running=1)
    engine.start()
    first, second = Told(), Told()
    began = []
    task = Task(lambda: began.append(1), second)
    engine.submit([Task(generation(engine.pipe, "a cat", 1, steps=100), first), task])
    engine.give_up([task])
    assert isinstance(first.result()[0].picture, Image.Image)
    until(lambda: not engine.running)
    engine.stop()
    assert not began and not second.ended.is_set()
    with pytest.raises(ApiError, match="shutting down"):
        engine.submit([task])


def test_the_networks_are_given_back(make_pipe):
    pipe = make_pipe()
    engine = Engine(pipe)
    engine.start()
    (drawn,) = generation(pipe, "a cat", 1)()  # in this thread, which is none of the engine's
    engine.stop()
    (again,) = generation(pipe, "a cat", 1)()
    assert drawn.picture.tobytes() == again.picture.tobytes()
