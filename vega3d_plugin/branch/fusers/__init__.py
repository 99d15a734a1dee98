"""Fusers: one file per idea, one registry."""

from ...contracts.fusers import Fuser
from .build import build_fuser, list_fusers

__all__ = ["Fuser", "build_fuser", "list_fusers"]
