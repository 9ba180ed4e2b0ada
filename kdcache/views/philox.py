"""Philox4x32-10: random words as a pure function of a counter and a key, the root of every view.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3 and
table 2; the known answers of the authors' Random123 library are in the tests.
"""

import numpy as np
from jaxtyping import UInt32

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(
    counter: UInt32[np.ndarray, "*shape 4"], key: tuple[int, int]
) -> UInt32[np.ndarray, "*shape 4"]:
    """Four uniform 32-bit words for every counter of four 32-bit words.

    Args:
        key: two words of 32 bits, the low one first (`split_seed`).
    """
    assert all(0 <= word < 2**32 for word in key), "a key is two words of 32 bits"
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two 32-bit words fits 64 bits; its halves are the words of the round.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (odd >> _HALF) ^ c1 ^ np.uint64(k0), (even >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = odd & _LOW, even & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) % 2**32, (k1 + _KEY_STEPS[1]) % 2**32
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def split_seed(seed: int) -> tuple[int, int]:
    """The key of a seed of 64 bits: its low and its high word."""
    assert 0 <= seed < 2**64, "a seed has 64 bits and no sign"
    return seed % 2**32, seed // 2**32
