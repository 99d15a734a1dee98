"""Which world points belong to which clip, for branches with ``positions="sin3d"``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..branch.branch import GenerativeBranch
from ..branch.given_points import given
from ..branch.instructions import asked
from ..branch.positions import token_places
from ..contracts.clips import Clip
from ..contracts.errors import HostError
from ..scenes.coordinates import PointMap
from ..scenes.view_points import POINTS, as_point_map


@torch.no_grad()
def points_for(branch: GenerativeBranch, clips: Sequence[Clip]) -> list[Tensor] | None:
    """The world points of each clip's tokens ``[t, h, w, 3]``; None for a branch that adds no positions.

    Raises:
        HostError: the call was given none, not one view for each frame, or the host cut its pictures into tiles.
        SceneError: they are no points.
    """
    if branch.settings.positions == "none" or "disabled" in branch.switches():
        return None
    points = given(branch.key)
    if points is None:
        raise HostError(
            f"Host {branch.host!r}: this branch adds positions ({branch.settings.positions!r}), but this call has "
            f"pictures and no {POINTS}, which holds the world points of their pixels. Pass "
            f"{POINTS}=vega3d.view_points(scene) beside the pixels. Rows with a posed `scene` do this."
        )
    if any(clip.tile for clip in clips):
        raise HostError(
            f"Host {branch.host!r}: this branch adds positions, and the host cut a picture into tiles, which are parts "
            "of a view and not views. Give its processor a size that is not cut (image_grid_pinpoints, "
            "do_image_splitting, crop_to_patches), show the views as a video (data.video_as: video), or train without "
            "positions."
        )
    views = as_point_map(points)
    frames = [clip.frames.shape[0] for clip in clips]
    times, rest = divmod(sum(frames), len(views.valid))
    shown = asked(branch.key)
    if rest or (times > 1 and not (shown is not None and shown.rows == 1 and _repeated(clips, len(views.valid)))):
        raise HostError(
            f"Host {branch.host!r}: {POINTS} has {len(views.valid)} views, and this call has {sum(frames)} frames of "
            f"{len(clips)} clip(s). Each picture needs its own view, in the order in which they are shown, and a video "
            "one for each frame."
        )
    # Beam search repeats the pictures of its prompt.
    views = PointMap(views.points.repeat(times, 1, 1, 1), views.valid.repeat(times, 1, 1)) if times > 1 else views
    parts = zip(views.points.split(frames), views.valid.split(frames), clips, strict=True)
    return [token_places(PointMap(*(part.to(clip.frames.device) for part in each)), clip) for *each, clip in parts]


def _repeated(clips: Sequence[Clip], count: int) -> bool:
    """Whether the frames are ``count`` of them, over and over."""
    frames = [frame for clip in clips for frame in clip.frames]
    return all(torch.equal(frame, frames[place % count]) for place, frame in enumerate(frames))
