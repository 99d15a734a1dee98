"""Other vision-language models of transformers as hosts, and what their seams have in common."""

from . import plugin

__all__ = ["plugin"]
