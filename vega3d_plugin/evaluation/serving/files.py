"""Fused tokens on disk, and the requests that vLLM and SGLang take, made from them.

A folder of an export holds ``index.jsonl``, a line for each prompt, ``index.run.json``, what made them, and under
``tokens/`` a safetensors file for each prompt:

==================  =========================  =================================================================
``input_ids``       ``[N]``                    the prompt, a placeholder for each visual token
``image_embeds``    ``[L, D * (1 + n)]``       of all images, in order; ``n`` further streams with Qwen3-VL alone
``video_embeds``    ``[L, D * (1 + n)]``       of all videos
``image_grid_thw``  ``[images, 3]``            and what else the host's processor says of pictures, as it calls it
==================  =========================  =================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...contracts.errors import Vega3dError
from ...scenes.view_points import POINTS
from ...storage.checksums import checksum_of
from ...storage.weights import read_stored, stored_entries
from ...storage.writing import write_atomically
from .fused import KINDS, FusedTokens, Kind

INDEX = "index.jsonl"
FOLDER = "tokens"
IDS = "input_ids"
#: What a processor says of each token, which servers work out themselves; and what the branch has used up.
_ALONG = {"attention_mask", "mm_token_type_ids", "token_type_ids", "labels", POINTS}


class ServingError(Vega3dError):
    """Fused tokens cannot be written or read, or a server has no place for them."""


def file_of(number: int) -> str:
    """Path of a prompt's tokens within the folder of an export, a thousand to a folder."""
    return f"{FOLDER}/{number // 1000:03d}/{number:06d}.safetensors"


def write_tokens(path: Path, tokens: FusedTokens, inputs: Mapping[str, Any]) -> str:
    """Write the tokens of one prompt, whole or not at all; returns their checksum.

    Raises:
        ServingError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept = {key: value for key, value in inputs.items() if key not in _ALONG and not key.startswith("pixel_values")}
    found = {key: value if isinstance(value, Tensor) else torch.as_tensor(value) for key, value in kept.items()}
    found[IDS] = found[IDS][0]
    found |= {f"{kind}_embeds": embeds for kind, embeds in tokens.embeds.items()}
    found = {key: value.detach().cpu().contiguous() for key, value in found.items()}
    try:
        write_atomically(path, lambda place: save_file(found, place), durable=False)
    except (OSError, SafetensorError) as error:
        raise ServingError(
            f"{path} cannot be written: {error}. What was written before is kept; give the command again to resume."
        ) from error
    return checksum_of(found)


def read_tokens(folder: str | Path, line: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one prompt.

    Args:
        folder: of the export.
        line: of its index.

    Raises:
        ServingError: the file is missing or damaged, or not the one that the line is about.
    """
    path = Path(folder) / str(line.get("file"))
    if not path.is_file():
        raise ServingError(f"{path} is missing. Copy the whole folder of the export, or export it again.")
    found = dict(read_stored(stored_entries(path)))
    if checksum_of(found) != line.get("checksum"):
        raise ServingError(
            f"{path} is not what the index says: its checksum is {checksum_of(found)}, the index has "
            f"{line.get('checksum')}. Remove the file and its folder's {INDEX}, and export again."
        )
    return found


def fused_tokens_in(tensors: Mapping[str, Tensor], line: Mapping[str, Any]) -> FusedTokens:
    """The tokens in what :func:`read_tokens` gave."""
    found = {kind: tensors[f"{kind}_embeds"] for kind in KINDS if f"{kind}_embeds" in tensors}
    return FusedTokens(int(line["hidden_size"]), found)


def counts(tokens: FusedTokens, inputs: Mapping[str, Any], runs: Mapping[Kind, Sequence[int]]) -> dict[str, list[int]]:
    """Visual tokens of each image and of each video: by its grid, else by its stretch of the prompt."""
    found: dict[str, list[int]] = {}
    for kind, embeds in tokens.embeds.items():
        grid = inputs.get(f"{kind}_grid_thw")
        if isinstance(grid, Tensor):
            patches = grid.prod(dim=-1)
            found[f"{kind}_tokens"] = (patches * embeds.shape[0] // patches.sum()).tolist()
        else:
            found[f"{kind}_tokens"] = list(runs[kind])
    return found


def times(text: str, token: str, grid: Any) -> list[list[float]] | None:
    """The seconds that stand before the frames of each video, where a host writes them into the prompt (Qwen3-VL).

    Args:
        text: the prompt, with a placeholder for each token.
        token: the placeholder of videos.
        grid: ``video_grid_thw``, or None.
    """
    found = [float(seconds) for seconds in re.findall(rf"<([\d.]+) seconds>(?:<\|\w+\|>)?{re.escape(token)}", text)]
    steps = grid[:, 0].tolist() if isinstance(grid, Tensor) else []
    if not found or len(found) != sum(steps):
        return None
    ends = [sum(steps[: place + 1]) for place in range(len(steps))]
    return [found[end - step : end] for step, end in zip(steps, ends, strict=True)]


def vllm_inputs(folder: str | Path, line: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt for ``vllm.LLM(..., enable_mm_embeds=True).generate``.

    Args:
        folder: of the export.
        line: of its index.

    Returns:
        ``prompt`` with one placeholder for each picture, and ``multi_modal_data``: for hosts with grids
        ``{"image": {"image_embeds": ..., "image_grid_thw": ...}}``, videos likewise, with ``timestamps`` where the host
        writes them into the prompt; for others a list with the tokens of each image.

    Raises:
        ServingError: as :func:`read_tokens`; or vLLM takes no such tokens.
    """
    tensors = read_tokens(folder, line)
    data: dict[str, Any] = {}
    for kind in KINDS:
        embeds = tensors.get(f"{kind}_embeds")
        if embeds is None:
            continue
        if f"{kind}_grid_thw" in tensors:
            data[kind] = {f"{kind}_embeds": embeds, f"{kind}_grid_thw": tensors[f"{kind}_grid_thw"]}
            if kind == "video" and "second_per_grid_ts" in tensors:
                data[kind]["second_per_grid_ts"] = tensors["second_per_grid_ts"]
            if kind == "video" and line.get("timestamps"):
                data[kind]["timestamps"] = line["timestamps"]
        elif kind == "image":
            data[kind] = list(embeds.split(line["image_tokens"]))
        else:
            raise ServingError(
                f"{line.get('sample_id')}: vLLM takes no tokens of videos for this host, only of images. Export with "
                "--video-as images if the branch was trained so."
            )
    return {"prompt": line["prompt"], **({"multi_modal_data": data} if data else {})}


def sglang_inputs(folder: str | Path, line: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``sglang.Engine.generate``: ``input_ids``, and one item for all images and one for all videos.

    As SGLang 0.5.23 reads them: of each kind exactly one item, with a ``format``. Its ``precomputed_embedding`` hands
    ``feature`` to the model, and only Qwen2.5-VL's images are then taken for what they are; videos, and Qwen3-VL, are
    put through the vision tower. What stands under ``precomputed_embeddings`` in an item of the format
    ``processor_output`` goes past the model's own code, whatever the model is.

    Raises:
        ServingError: as :func:`read_tokens`.
    """
    tensors = read_tokens(folder, line)
    request: dict[str, Any] = {IDS: tensors[IDS].tolist()}
    about = {key: value for key, value in tensors.items() if key != IDS and not key.endswith("_embeds")}
    for kind in KINDS:
        if f"{kind}_embeds" in tensors:
            item = {"format": "processor_output", "modality": kind.upper()}
            own = {key: value for key, value in about.items() if _is_about(key, kind)}
            request[f"{kind}_data"] = [{**item, "precomputed_embeddings": tensors[f"{kind}_embeds"], **own}]
    return request


def _is_about(key: str, kind: Kind) -> bool:
    # The seconds between steps of videos are looked for in the first item alone, which is the images' if there are any.
    return key.startswith((kind, "second_per_grid"))
