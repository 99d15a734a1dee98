"""OpenVLA and OpenVLA-OFT as hosts: their own code, from the hub or from a checkout."""

from . import plugin

__all__ = ["plugin"]
