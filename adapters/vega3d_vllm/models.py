"""vLLM's own models, with a branch. Imported by vLLM alone, see :mod:`.registering`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

from .serving import put_on


class _WithBranch:
    """Puts the branch on when the host's weights are there.

    A mixin in front of vLLM's classes, which the type checker does not read: hence what it is told to ignore.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._served_with = vllm_config

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the host's weights, then the branch; returns the names of both."""
        loaded: set[str] = super().load_weights(weights)  # type: ignore[misc]
        return loaded | put_on(self, self._served_with)  # type: ignore[arg-type]

    def embed_multimodal(self, **given: object) -> Any:
        """What the language model is given of pictures.

        Raises:
            HostError: the branch is not there, as with ``--load-format dummy``.
        """
        from vega3d_plugin.branch.handle import is_patched
        from vega3d_plugin.contracts.errors import HostError

        if not is_patched(self):  # type: ignore[arg-type]
            raise HostError("The branch was not loaded with the host's weights: serve with real ones.")
        return super().embed_multimodal(**given)  # type: ignore[misc]


class Vega3dQwen2_5_VLForConditionalGeneration(_WithBranch, Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]  # noqa: N801
    """Qwen2.5-VL with a branch."""


class Vega3dQwen3VLForConditionalGeneration(_WithBranch, Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen3-VL with a branch."""
