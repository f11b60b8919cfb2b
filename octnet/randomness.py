"""Randomness as a function of (seed, epoch, index or step): the same in any process, and after any interruption.

Everything comes from `SeedSequence` and the raw words of PCG64, which NumPy keeps stable across versions (NEP 19).
"""

import numpy as np

from octnet.options import UserError

ORDER, SAMPLE, STEP, SHAPES = range(4)  # one stream a purpose


def _sequence(purpose: int, seed: int, first: int, second: int) -> np.random.SeedSequence:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number from 0 to {2**32 - 1}")
    return np.random.SeedSequence([purpose, seed, first, second])


def random_words(purpose: int, seed: int, first: int, second: int, count: int) -> np.ndarray:
    """Return `count` random uint64 words of a purpose's stream at (seed, first, second)."""
    return np.asarray(np.random.PCG64(_sequence(purpose, seed, first, second)).random_raw(count))


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the order of an epoch's images: a permutation of 0 to n - 1, int64 (n,)."""
    return np.argsort(random_words(ORDER, seed, epoch, 0, n), kind="stable")


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return the 32-bit seed of all random augmentation of image `index` in `epoch`."""
    return int(_sequence(SAMPLE, seed, epoch, index).generate_state(1)[0])


def step_seed(seed: int, epoch: int, step: int) -> int:
    """Return the 32-bit seed of what is random once a step (mixup), for NumPy's global generator."""
    return int(_sequence(STEP, seed, epoch, step).generate_state(1)[0])
