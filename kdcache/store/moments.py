"""Mean and variance of an array's dimensions, the same to the last bit however it was made.

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979, eq. 2.1.
"""

import numpy as np

from kdcache.shapes import Float


class Moments:
    """Population mean and variance of rows that arrive in chunks; the order of chunks matters."""

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._mean = np.zeros(dim)
        self._squares = np.zeros(dim)

    def add(self, values: Float[np.ndarray, "R D"]) -> None:
        count = len(values)
        if count == 0:
            return
        exact = values.astype(np.float64)
        mean = exact.sum(axis=0) / count
        squares = np.square(exact - mean).sum(axis=0)
        step = mean - self._mean
        total = self._count + count
        self._squares += squares + np.square(step) * (self._count * count / total)
        self._mean += step * (count / total)
        self._count = total

    def arrays(self) -> dict[str, Float[np.ndarray, " D"]]:
        """`mean` and `variance`, in the units of the values."""
        return {"mean": self._mean, "variance": self._squares / max(self._count, 1)}
