"""What quantisation keeps of a teacher: measured on some images while their floats are at hand.

A student never sees a value, it sees how images lie to each other. So stored rows are compared with
their originals as a student's loss would: cosines, nearest neighbours, and the ranking of SEED.

The figures are part of a cache, so they must be the same to the last digit on any machine. Matrix
products add up in an order that the library chooses; so rows are rounded to whole numbers of some
20 bits first, whose products and sums are exact in float64 in any order.

Source: the figures and how they are taken, `storage.md` section 2; the ranking, SEED,
arXiv:2101.04731, eq. 2.

Format: FORMAT.md.

Shapes: R images of the sample, D the array's width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdcache.shapes import Float, Int64, UInt8
from kdcache.store import plain
from kdcache.store.quantise import dequantise, quantise

FIDELITY = "fidelity"

_IMAGES = 2048
_NEIGHBOURS = 10
_TEMPERATURES = (0.01, 0.07)  # of SEED's teacher, and a usual one of a student
_QUERIES_AT_ONCE = 256
_EXACT_BITS = 52  # whole numbers up to 2 ** 53 are exact in float64
_DECIMALS = 8  # another processor's exp differs in the 16th digit


def sample_rows(image_ids: UInt8[np.ndarray, "N 16"]) -> Int64[np.ndarray, " R"]:
    """The rows of the 2,048 images whose ids are the smallest, ascending.

    Ids are hashes, so these are images drawn at random; and of images that are added later, some
    take the place of others, and no other one comes in.
    """
    order = np.argsort(np.ascontiguousarray(image_ids[:, :8]).view(">u8")[:, 0], kind="stable")
    return np.sort(order[:_IMAGES])


def fidelity_files(originals: Mapping[str, Float[np.ndarray, "_ _"]]) -> dict[str, bytes]:
    """The files of the group; none where no array has two originals that could be compared.

    Args:
        originals: by array, rows of view 0 of the sample.
    """
    figures = {name: measure(rows) for name, rows in originals.items() if len(rows) > 1}
    return {f"{FIDELITY}/zarr.json": plain.group_file(figures)} if figures else {}


def measure(originals: Float[np.ndarray, "R D"]) -> dict[str, Any]:
    """How rows that were quantised compare with what they were; rows lie to each other as cosines.

    * `cosine_mean`, `cosine_min`: of a row with its original;
    * `knn_overlap`: share of the 10 nearest other rows that stay so;
    * `same_nearest`: share of rows whose nearest other row stays so;
    * `kl_0.01`, `kl_0.07`: mean divergence KL(original || stored) of SEED's ranking of the other
      rows at this temperature, in nats.
    """
    stored = dequantise(quantise(originals))
    before, after = _whole_numbers(originals), _whole_numbers(stored)
    own = _cosine((before * after).sum(axis=1), np.square(before).sum(1), np.square(after).sum(1))
    own[~before.any(axis=1) & ~after.any(axis=1)] = 1.0  # nothing, and nothing lost
    num = len(originals)
    k = min(_NEIGHBOURS, num - 1)
    overlap, nearest = [], []
    divergence: dict[float, list[np.ndarray]] = {t: [] for t in _TEMPERATURES}
    for start in range(0, num, _QUERIES_AT_ONCE):
        asked = np.arange(start, min(start + _QUERIES_AT_ONCE, num))
        was, now = _to_others(before, asked), _to_others(after, asked)
        first, second = _nearest(was, k), _nearest(now, k)
        overlap.append((first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1))
        nearest.append(first[:, 0] == second[:, 0])
        for temperature, parts in divergence.items():
            parts.append(_divergence(was / temperature, now / temperature))
    figures = {
        "cosine_mean": own.mean(),
        "cosine_min": own.min(),
        "knn_overlap": np.concatenate(overlap).mean(),
        "same_nearest": np.concatenate(nearest).mean(),
        **{f"kl_{t:g}": np.concatenate(parts).mean() for t, parts in divergence.items()},
    }
    rounded = {name: round(float(figure), _DECIMALS) for name, figure in figures.items()}
    return {"images": num, "view": 0, "neighbours": k, **rounded}


def describe_fidelity(figures: Mapping[str, Any]) -> str:
    """The figures of one array in a line."""
    return (
        f"cosine {figures['cosine_mean']:.6f} (least {figures['cosine_min']:.6f}), "
        f"kNN@{figures['neighbours']} overlap {figures['knn_overlap']:.3f}, "
        f"same nearest {figures['same_nearest']:.3f}, SEED target KL {figures['kl_0.01']:.1e} at "
        f"tau 0.01, {figures['kl_0.07']:.1e} at 0.07, over {figures['images']:,} images"
    )


def _whole_numbers(rows: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    """The directions of the rows as whole numbers, so small that inner products are exact."""
    bits = (_EXACT_BITS - (rows.shape[1] - 1).bit_length()) // 2
    exact = rows.astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    whole: np.ndarray = np.rint(exact / np.where(largest > 0, largest, 1.0) * 2.0**bits)
    return whole


def _cosine(product: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines of inner products and squared lengths; 0 with a row of zeros."""
    lengths = np.sqrt(left) * np.sqrt(right)
    cosine: np.ndarray = product / np.where(lengths > 0, lengths, 1.0)
    return cosine


def _to_others(
    rows: Float[np.ndarray, "R D"], asked: Int64[np.ndarray, " Q"]
) -> Float[np.ndarray, "Q R"]:
    """Cosines of the rows that are asked for with all rows; -inf with themselves."""
    squares = np.square(rows).sum(axis=1)
    cosine = _cosine(rows[asked] @ rows.T, squares[asked, None], squares)
    cosine[np.arange(len(asked)), asked] = -np.inf
    return cosine


def _nearest(cosine: Float[np.ndarray, "Q R"], k: int) -> Int64[np.ndarray, "Q k"]:
    """The columns of the largest cosines, the largest first; of equal ones the first."""
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


def _divergence(
    was: Float[np.ndarray, "Q R"], now: Float[np.ndarray, "Q R"]
) -> Float[np.ndarray, " Q"]:
    """KL(softmax(was) || softmax(now)) in nats; a column that is -inf in both has no share."""
    log_was, log_now = _log_softmax(was), _log_softmax(now)
    share = np.exp(log_was)
    gap = np.subtract(log_was, log_now, out=np.zeros_like(share), where=share > 0)
    divergence: np.ndarray = (share * gap).sum(axis=1)
    return divergence


def _log_softmax(logits: Float[np.ndarray, "Q R"]) -> Float[np.ndarray, "Q R"]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
