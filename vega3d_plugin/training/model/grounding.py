"""The grounding head of VEGA-3D's 3D experiments: which of given boxes does a description mean, if any.

Sources: ``llava/model/llava_arch.py::prepare_inputs_labels_for_multimodal`` (object features) and
``llava/model/language_model/llava_qwen.py::predict_box`` (``infonce``), as in Video-3D LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...branch.positions import SinusoidEmbedding, discretised
from ...contracts.errors import AlignmentError, SettingsError

#: Pixels of a patch's side, and the share of its pixels that must lie in a box.
PATCHES: dict[int, float] = {14: 0.5, 27: 0.25}
TEMPERATURE = 0.07
Patch = Literal[14, 27]


def patches_in_boxes(points: Tensor, boxes: Tensor, patch: Patch = 14) -> Tensor:
    """Which patches of all views show each box.

    A patch belongs to a box if at least ``int(patch * patch * 0.5)`` of its pixels lie in it, bounds included; a
    quarter with patches of 27. Rows and columns beyond the last whole patch of 27 pixels are left out, as released.

    Args:
        points: ``[V, H, W, 3]``, world points of the pixels in metres.
        boxes: ``[N, 6]``: centre and full size, metres, along the axes.
        patch: 14: of the vision tower before pooling; 27: of the pooled tokens.

    Returns:
        bool ``[N, V, h, w]``.

    Raises:
        AlignmentError: other shapes.
        SettingsError: another patch.
    """
    if patch not in PATCHES:
        raise SettingsError(f"patch must be one of {', '.join(map(str, PATCHES))}, found {patch}.")
    if points.ndim != 4 or points.shape[-1] != 3 or min(points.shape[1:3]) < 27:
        raise AlignmentError(f"World points must be [V, H, W, 3] of at least 27x27 pixels, found {list(points.shape)}.")
    _check_boxes(boxes)
    views, height, width = points.shape[0], *(side // 27 * 27 for side in points.shape[1:3])
    if height % patch or width % patch:
        raise AlignmentError(f"{height}x{width} pixels have no whole patches of {patch}; the released size is 384x384.")
    cells = points[:, :height, :width].reshape(views, height // patch, patch, width // patch, patch, 3)
    least, most = boxes[:, :3] - boxes[:, 3:] / 2, boxes[:, :3] + boxes[:, 3:] / 2
    needed = int(patch * patch * PATCHES[patch])
    # One box after the other: all at once would hold every pixel for every box.
    return torch.stack(
        [
            ((lo <= cells) & (cells <= hi)).all(dim=-1).sum(dim=(2, 4)) >= needed
            for lo, hi in zip(least, most, strict=True)
        ]
    )


def proposal_features(features: Tensor, patches: Tensor, boxes: Tensor | None = None) -> Tensor:
    """The feature of each box: the mean over its patches in all views, 0 where no view shows it.

    Args:
        features: ``[V, h * w, C]``, projected features of the host's tower, before pooling and fusion as released.
        patches: of :func:`patches_in_boxes`, ``[N, V, h, w]``.
        boxes: ``[N, 6]``; with them the sinusoid of the discretised centre is added.

    Returns:
        ``[N, C]``.

    Raises:
        AlignmentError: shapes that do not go together.
    """
    if features.ndim != 3 or patches.ndim != 4 or patches[0:1].numel() not in (0, features[..., 0].numel()):
        raise AlignmentError(f"Features {list(features.shape)} and patches {list(patches.shape)} do not go together.")
    flat, chosen = features.flatten(0, 1), patches.flatten(1)
    means = [flat[row].mean(dim=0) if bool(row.any()) else flat.new_zeros(flat.shape[-1]) for row in chosen]
    found = torch.stack(means) if means else flat.new_zeros(0, flat.shape[-1])
    if boxes is None:
        return found
    _check_boxes(boxes, len(found))
    position: Tensor = SinusoidEmbedding(features.shape[-1])(discretised(boxes[:, :3].float()))
    return found + position.to(found.dtype)


class GroundingHead(nn.Module):
    """Scores boxes by the cosine of their features and the query; weights as released, without ``ground_head_``.

    Attributes:
        zero_target: ``[C]``, the feature of "none of them", scored last.
        obj, query: Linear, ReLU, LayerNorm, Linear.
        temperature: of the loss.

    Args:
        size: channels of the language model.
        temperature: above 0.
    """

    def __init__(self, size: int, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        if size < 1 or not temperature > 0:
            raise SettingsError(f"size and temperature must be above 0, found {size} and {temperature}.")
        self.temperature = temperature
        self.zero_target = nn.Parameter(torch.randn(size))
        self.obj, self.query = _mlp(size), _mlp(size)

    def forward(self, proposals: Tensor, query: Tensor) -> Tensor:
        """Cosines of the query with each box, and last with the zero target.

        Args:
            proposals: ``[N, C]``, of :func:`proposal_features`.
            query: ``[C]`` or ``[1, C]``, of :func:`ground_query`.

        Returns:
            ``[N + 1]``.
        """
        targets = torch.cat([proposals.to(query.dtype), self.zero_target[None].to(query.dtype)])
        objects, asked = F.normalize(self.obj(targets), dim=-1), F.normalize(self.query(query), dim=-1)
        scores: Tensor = (objects * asked).sum(dim=-1)
        return scores

    def loss(self, scores: Tensor, targets: Sequence[int]) -> Tensor:
        """``-log(sum over targets of exp(s / t) / sum over all of exp(s / t))``.

        Args:
            scores: ``[N + 1]``.
            targets: the boxes that are meant, from 0; none: the zero target.

        Raises:
            AlignmentError: a target that is no box.
        """
        count = len(scores) - 1
        wrong = [t for t in targets if not 0 <= t < count]
        if wrong or len(set(targets)) != len(targets):
            raise AlignmentError(f"Targets must be different boxes from 0 to {count - 1}, found {list(targets)}.")
        scaled = scores.float() / self.temperature
        meant = list(targets) or [count]
        return scaled.logsumexp(0) - scaled[meant].logsumexp(0)


def ground_query(hidden: Tensor, labels: Tensor, token: int) -> Tensor:
    """The language model's last hidden state at the one place whose label is the token ``<ground>``.

    Args:
        hidden: ``[B, L, C]``.
        labels: ``[B, L]``.
        token: id of ``<ground>``.

    Returns:
        ``[1, C]``.

    Raises:
        AlignmentError: no such place, or several.
    """
    places = labels == token
    count = int(places.sum())
    if hidden.shape[:2] != labels.shape or count != 1:
        raise AlignmentError(
            f"Expected one label {token} (<ground>) among {list(labels.shape)} for {list(hidden.shape)}, found {count}."
        )
    return hidden[places]


def _mlp(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.LayerNorm(size), nn.Linear(size, size))


def _check_boxes(boxes: Tensor, count: int | None = None) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 6 or (count is not None and len(boxes) != count):
        expected = "N" if count is None else count
        raise AlignmentError(f"Boxes must be [{expected}, 6], centre and full size, found {list(boxes.shape)}.")
