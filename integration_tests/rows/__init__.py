"""The hosts that the promises are tested on, one module per adapter. Adding a host is adding a row to its ``ROWS``."""

from .host import Batch, Host

__all__ = ["Batch", "Host"]
