"""Numbers by what they are drawn for: even, unlike each other, and nothing is remembered."""

import numpy as np
import torch

from raysys.ctr.retrievers.draws import mixed as mixed_numpy
from raysys.layers.draws import mixed, uniform


def test_words_are_those_of_the_numpy_twin() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-(2**63), 2**63, (2, 50)), np.arange(7)
    wanted = mixed_numpy(3, a[:, :, None], b)
    got = mixed(3, torch.from_numpy(a)[:, :, None], torch.from_numpy(b))
    assert (got.numpy().view(np.uint64) == wanted).all()


def test_uniform_numbers_are_even_and_independent_of_their_neighbours() -> None:
    draw, place = torch.arange(300), torch.arange(300)
    numbers = uniform(mixed(1, draw[:, None], place))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = np.histogram(numbers.numpy(), 20, (0, 1))[0]
    # 90,000 numbers: a bin holds 4,500 and strays by 65.
    assert abs(counts - 4500).max() < 5 * 65
    for other in (uniform(mixed(2, draw[:, None], place)), numbers.T, numbers.roll(1, 0)):
        assert (
            abs(float(torch.corrcoef(torch.stack([numbers.ravel(), other.ravel()]))[0, 1])) < 0.02
        )
    assert torch.equal(uniform(mixed(1, draw[7], place)), numbers[7])
