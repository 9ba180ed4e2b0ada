"""Philox must be the published one, word for word."""

import numpy as np
import pytest

from kdcache.views import philox4x32, split_seed

# Counter, key, answer: kat_vectors of Random123, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    pytest.param(
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        id="zeros",
    ),
    pytest.param(
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        id="ones",
    ),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="digits of pi",
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_answers_come_out(counter, key, answer):
    assert tuple(philox4x32(np.array(counter, np.uint32), key)) == answer


def slow_philox(counter, key):
    """The paper's rounds in Python's integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def test_vectorised_words_are_those_of_plain_integers():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (5, 40, 4), np.uint32)
    key = (0xDEADBEEF, 0x01234567)
    words = philox4x32(counters, key)
    assert words.dtype == np.uint32
    slow = [[slow_philox(map(int, counter), key) for counter in row] for row in counters]
    np.testing.assert_array_equal(words, slow)


def test_a_seed_is_split_low_word_first():
    assert split_seed(0x0123456789ABCDEF) == (0x89ABCDEF, 0x01234567)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_our_own_bug(seed):
    with pytest.raises(AssertionError, match="64 bits"):
        split_seed(seed)
