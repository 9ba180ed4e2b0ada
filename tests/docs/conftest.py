"""The servers of tests/share, for the pages that speak to them."""

from share.conftest import environment, s3_server

__all__ = ["environment", "s3_server"]
