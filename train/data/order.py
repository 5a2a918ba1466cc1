"""Which sample stands at a position: a permutation in each epoch that needs no table.

Position p stands in epoch e = p div N at place p mod N, N samples. A permutation of 0 ... n-1 is
four rounds of a Feistel network on the next even power of two, walked until the number lies below n
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains", cycle walking).
"""

from collections.abc import Sequence

import numpy as np

ROUNDS = 4
_EPOCH_STREAM, _SUBSTITUTE_STREAM = 0, 3
_MASK = 2**64 - 1


class Permutation:
    """A bijection of 0 ... size-1 that depends on its key alone."""

    def __init__(self, size: int, key: tuple[int, ...]):
        self.size = size
        self.half = max(1, -(-(size - 1).bit_length() // 2))  # bits of each half
        seeds = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
        self.keys = [int(seed) for seed in seeds]

    def __getitem__(self, place: int) -> int:
        place = self._encipher(place)
        while place >= self.size:  # less than 4 times on average
            place = self._encipher(place)
        return place

    def _encipher(self, place: int) -> int:
        mask = (1 << self.half) - 1
        left, right = place >> self.half, place & mask
        for key in self.keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        return left << self.half | right


def _mixed(x: int) -> int:
    """The finaliser of splitmix64: every bit of x moves every bit of the result."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def substitute_place(seed: int, position: int, attempt: int, size: int) -> int:
    """A place among `size` where a substitute for a broken sample is looked for."""
    key = (seed, _SUBSTITUTE_STREAM, position, attempt)
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] % size)


class SampleOrder:
    """order[position], for any position >= 0, is the number of a sample; each once an epoch.

    Args:
        num_samples: N.
        seed: of the run.
        window: 0 shuffles all; w shuffles within runs of w neighbours, so that reading stays near
            one place; the last run is shorter.
        in_order: whether the runs follow one another as they lie (a stream), or are shuffled too.
    """

    def __init__(self, num_samples: int, seed: int, window: int = 0, in_order: bool = False):
        self.num_samples, self.seed = num_samples, seed
        self.window = min(window or num_samples, num_samples)
        self.in_order = in_order
        self._kept: dict[tuple[int, ...], Permutation] = {}

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.num_samples)
        run, inside = divmod(place, self.window)
        whole_runs = self.num_samples // self.window
        if run < whole_runs and not self.in_order:
            run = self._permutation(whole_runs, epoch)[run]
        size = min(self.window, self.num_samples - run * self.window)
        return run * self.window + self._permutation(size, epoch, run)[inside]

    def substitute(self, position: int, attempt: int) -> int:
        """Another sample for one that is broken, near to it where reading must stay near."""
        first = self[position] // self.window * self.window
        size = min(self.window, self.num_samples - first)
        return first + substitute_place(self.seed, position, attempt, size)

    def _permutation(self, size: int, *key: int) -> Permutation:
        if key not in self._kept:
            if len(self._kept) > 8:
                self._kept.clear()
            self._kept[key] = Permutation(size, (self.seed, _EPOCH_STREAM, *key))
        return self._kept[key]


class ChosenOrder:
    """order[position] is the number of one of the samples that were chosen, by an order of them."""

    def __init__(self, order: SampleOrder, chosen: Sequence[int]):
        self.order, self.chosen = order, np.asarray(chosen, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> int:
        return int(self.chosen[self.order[position]])

    def substitute(self, position: int, attempt: int) -> int:
        """See SampleOrder."""
        return int(self.chosen[self.order.substitute(position, attempt)])


class StreamOrder:
    """order[position] is the number of one of the samples that were chosen of a stream.

    Those of one window of the stream, few or many, are shuffled among each other; the windows
    follow one another as they lie.

    Args:
        chosen: numbers of samples, ascending.
        seed: of the run.
        window: samples of the whole stream that are kept at a time.
    """

    ROOM = 16  # samples at least among which a substitute is looked for

    def __init__(self, chosen: Sequence[int], seed: int, window: int):
        self.chosen, self.seed = np.asarray(chosen, dtype=np.int64), seed
        firsts = np.flatnonzero(np.diff(self.chosen // window, prepend=-1))
        self.bounds = np.append(firsts, len(self.chosen))  # of the windows, among the chosen
        self._kept = ((-1, -1), Permutation(1, (0,)))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, len(self.chosen))
        number, first, end = self._window_at(place)
        if self._kept[0] != (epoch, number):
            key = (self.seed, _EPOCH_STREAM, epoch, number)
            self._kept = ((epoch, number), Permutation(end - first, key))
        return int(self.chosen[first + self._kept[1][place - first]])

    def substitute(self, position: int, attempt: int) -> int:
        """Another sample for one that is broken, of the same window unless that holds few."""
        _, first, end = self._window_at(position % len(self.chosen))
        first = max(0, min(first, len(self.chosen) - self.ROOM))
        size = max(end, min(first + self.ROOM, len(self.chosen))) - first
        return int(self.chosen[first + substitute_place(self.seed, position, attempt, size)])

    def _window_at(self, place: int) -> tuple[int, int, int]:
        """The number of the window that holds a place of an epoch, and its first place and end."""
        number = int(np.searchsorted(self.bounds, place, side="right")) - 1
        return number, int(self.bounds[number]), int(self.bounds[number + 1])
