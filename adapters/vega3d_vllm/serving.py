"""Putting a branch on a model of vLLM, when its weights are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.settings import Settings

KEY = "vega3d"


class ServedBranch(Settings):
    """What ``--hf-overrides`` says under ``vega3d``.

    Attributes:
        branch: folder or hub id of a saved branch or of a checkpoint that holds one.
        pretrained: folder or hub id of the prior's weights; default: as recorded.
        store: folder of a feature store.
        device: where the prior lives; default: where the model is.
    """

    branch: str
    pretrained: str | None = None
    store: str | None = None
    device: str | None = None


def served_branch(config: Any) -> ServedBranch:
    """The settings in a model's config.

    Raises:
        SettingsError: they are wrong; lists every mistake.
        HostError: there are none.
    """
    given = getattr(config, KEY, None)
    if not isinstance(given, dict):
        raise HostError(
            "This class serves a host with its branch, and nobody has said which. Pass --hf-overrides "
            '\'{"architectures": [...], "vega3d": {"branch": "out/checkpoint-500"}}\'.'
        )
    return ServedBranch.parse(given, where="--hf-overrides, vega3d")


def check_options(config: Any) -> None:
    """Refuse what would go past the branch.

    Args:
        config: vLLM's.

    Raises:
        HostError: names the options.
    """
    compilation, pictures = config.compilation_config, config.model_config.multimodal_config
    refused = {
        "--mm-encoder-tp-mode data": getattr(pictures, "mm_encoder_tp_mode", None) == "data",
        "cudagraph_mm_encoder": getattr(compilation, "cudagraph_mm_encoder", False),
        "compile_mm_encoder": getattr(compilation, "compile_mm_encoder", False),
    }
    wrong = [name for name, on in refused.items() if on]
    if wrong:
        raise HostError(f"A host with its branch cannot be served with {' and '.join(wrong)}: leave it out.")


def _unknown_to_vllm(branch: Any) -> str:
    """What a branch needs to know that vLLM does not tell where it encodes pictures; empty for nothing.

    One whose fuser uses the instruction is refused before, since a tower embeds no tokens.
    """
    if branch.settings.images == "scene":
        return (
            "was trained with images='scene'. vLLM encodes the images of several requests together, which would be "
            "taken for one scene."
        )
    if branch.settings.positions != "none":
        return f"adds positions ({branch.settings.positions!r}). vLLM's requests carry no world points."
    return ""


def put_on(model: nn.Module, config: Any) -> set[str]:
    """Load the branch that a model's config names; returns the names of its weights in the model.

    Args:
        model: with its weights in place.
        config: vLLM's; the host's processor, which it names, says how pixels were normalised.

    Raises:
        HostError, SavedBranchError, SettingsError: see :func:`vega3d.load_pretrained`; the model is as it was.
    """
    import vega3d
    from vega3d_plugin.contracts.seams import CHILD
    from vega3d_plugin.hosts.loading import load_processor

    from .adapter import VllmQwenAdapter

    said = served_branch(model.config)
    check_options(config)
    # vLLM builds models with the host's dtype as the default, in which a prior must not be built.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            vega3d.load_pretrained(
                model,
                said.branch,
                host=VllmQwenAdapter.name,
                processor=load_processor(config.model_config.model),
                pretrained=said.pretrained,
                store=said.store,
                **({} if said.device is None else {"device": said.device}),
            )
    finally:
        torch.set_default_dtype(default)
    handle = vega3d.get_handle(model)
    why = _unknown_to_vllm(handle.branch)
    if why:
        vega3d.unpatch(model)
        raise HostError(f"{said.branch} {why} Export its tokens instead: vega3d export embeddings.")
    handle.freeze()
    handle.branch.eval()
    return {name for name, _ in model.named_parameters() if f".{CHILD}." in name}
