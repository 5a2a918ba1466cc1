"""The order of samples: each once an epoch, another in every epoch, known at any position."""

import numpy as np
import pytest

from unclip_train.data.order import Permutation, SampleOrder, StreamOrder


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_a_permutation_is_a_bijection(size):
    permutation = Permutation(size, (1, 2))
    assert sorted(permutation[place] for place in range(size)) == list(range(size))


def test_a_permutation_of_a_large_set_needs_no_table():
    permutation = Permutation(10**12, (0,))
    values = {permutation[place] for place in range(1000)}
    assert len(values) == 1000 and max(values) < 10**12
    assert 0.45 < np.mean(list(values)) / 10**12 < 0.55


@pytest.mark.parametrize(("window", "in_order"), [(0, False), (7, False), (7, True), (500, False)])
def test_each_sample_once_an_epoch(window, in_order):
    order = SampleOrder(100, seed=3, window=window, in_order=in_order)
    epochs = [[order[position] for position in range(100 * e, 100 * e + 100)] for e in range(3)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order[150] == epochs[1][50]  # whatever was asked before
    assert epochs[0] != [SampleOrder(100, 4, window, in_order)[p] for p in range(100)]


def test_windows_keep_reading_near_one_place():
    order = SampleOrder(100, seed=0, window=10)
    runs = [{order[position] // 10 for position in range(10 * r, 10 * r + 10)} for r in range(10)]
    assert all(len(run) == 1 for run in runs)
    assert [run.pop() for run in runs] != list(range(10))
    stream = SampleOrder(100, seed=0, window=10, in_order=True)
    assert [stream[position] // 10 for position in range(100)] == sorted(list(range(10)) * 10)


def test_every_place_sees_every_sample():
    """Over 1,600 epochs of 16 samples the counts are uniform, by chi-squared."""
    order = SampleOrder(16, seed=1)
    counts = np.zeros((16, 16))
    for epoch in range(1600):
        for place in range(16):
            counts[place, order[16 * epoch + place]] += 1
    statistic = ((counts - 100) ** 2 / 100).sum()
    assert statistic < 297  # 99.9th percentile with 15 * 15 degrees of freedom


def test_substitutes_are_known_and_near():
    order = SampleOrder(100, seed=0, window=10)
    for position in range(50):
        other = order.substitute(position, 1)
        assert other // 10 == order[position] // 10
        assert other == SampleOrder(100, 0, 10).substitute(position, 1)
    assert len({order.substitute(5, attempt) for attempt in range(1, 30)}) > 5


def test_the_chosen_of_a_stream_are_read_window_by_window():
    chosen = [2, 3, 5, 9, 30, 31, 32, 33, 34, 35, 38, 39, 71]
    order = StreamOrder(chosen, seed=3, window=10)
    epochs = [[order[position] for position in range(13 * e, 13 * e + 13)] for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == chosen
        assert [number // 10 for number in epoch] == [number // 10 for number in chosen]
    assert len({str(epoch) for epoch in epochs}) == 4
    assert order[20] == epochs[1][7]  # whatever was asked before
    whole, plain = StreamOrder(range(100), 3, 10), SampleOrder(100, 3, 10, in_order=True)
    assert [whole[position] for position in range(250)] == [plain[p] for p in range(250)]


def test_the_chosen_of_a_stream_have_substitutes_even_where_a_window_holds_one():
    chosen = [*range(20), 35, *range(40, 60)]
    order = StreamOrder(chosen, seed=0, window=20)
    assert {order.substitute(5, attempt) for attempt in range(40)} <= set(range(20))
    others = {order.substitute(20, attempt) for attempt in range(40)}
    assert order[20] == 35 and len(others) > 5 and others <= {35, *range(40, 60)}
    last = StreamOrder([1, 2, 3, 90], seed=0, window=20)
    assert {last.substitute(3, attempt) for attempt in range(40)} == {1, 2, 3, 90}
