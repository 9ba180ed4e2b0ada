"""Images: ordered, fingerprinted sets of encoded images, and how they become pixels."""

from kdcache.images.decoding import MAX_PIXELS, Unreadable, decode, decoder_description
from kdcache.images.image_set import ImageSet
from kdcache.images.index import (
    ImageIndex,
    dataset_fingerprint,
    image_id,
    index_images,
    refuse_suspects,
)
from kdcache.images.part import ImagePart, take_rows
from kdcache.images.sources import open_images

__all__ = [
    "MAX_PIXELS",
    "ImageIndex",
    "ImagePart",
    "ImageSet",
    "Unreadable",
    "dataset_fingerprint",
    "decode",
    "decoder_description",
    "image_id",
    "index_images",
    "open_images",
    "refuse_suspects",
    "take_rows",
]
