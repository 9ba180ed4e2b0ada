"""The letters of dimensions, the same in every file, and the array types that carry them.

N images in the set    B batch           V views         H W source height, width
F teacher feature      D target          E student feature
K negatives            S rendered size   C channels (RGB)
"""

from jaxtyping import Bool, Float, Float16, Int, Int8, Int32, Int64, Shaped, UInt8, UInt16, UInt64

__all__ = [
    "Bool",
    "Float",
    "Float16",
    "Int",
    "Int8",
    "Int32",
    "Int64",
    "Shaped",
    "UInt8",
    "UInt16",
    "UInt64",
]
