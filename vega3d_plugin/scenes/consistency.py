"""Do depth, poses and intrinsics of a scene belong together? Views of one place must agree on where it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import SceneError
from ..warnings import Vega3dWarning
from .coordinates import camera_points, project, sample_nearest, to_world
from .scene import Scene, View

#: Depths agree within this share of the distance.
AGREES = 0.04
#: A hypothesis must explain this much of what views share, and this much more than the scene as it is given.
CONVINCING, BETTER = 0.5, 0.25
#: Below this nothing can be said for a scene.
DOUBTFUL = 0.2
_ANCHORS, _POINTS = 6, 1200
_FEWEST = 100  # points of all pairs together
# Medians of depth maps in metres, beyond which a unit is wrong: no camera is focused nearer, nor measures farther.
NEAREST, FARTHEST = 0.02, 300.0
# Both coordinates of the principal point below this share of the sides: the intrinsics of a smaller picture.
OFF_CENTRE = 0.35
_FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


class GeometryWarning(Vega3dWarning):
    """Depth, poses or intrinsics of a scene are doubtful."""


@dataclass(frozen=True)
class Agreement:
    """How well depth and poses of a scene's views fit together.

    Attributes:
        share: of the points of one view that another should see, those whose depth agrees there within 4%. Occlusion
            alone lowers it to 0.6 or so. None where the views checked share too little, or are not known enough.
        points: number of points that were compared.
        pairs: pairs of views of which one sees something of the other.
    """

    share: float | None
    points: int = 0
    pairs: int = 0


def check_geometry(scene: Scene) -> Agreement:
    """Compare depth between views, and look for the usual mistakes.

    The depth of a few views is lifted to the world and seen from others. The same is tried with the poses inverted,
    with OpenGL's axes, and with depth in other units: whichever of these explains the views much better than the
    scene as it is given is the mistake that was made. Nothing is changed.

    Args:
        scene: what it lacks is not checked.

    Raises:
        SceneError: poses are world-to-camera, axes are OpenGL's, depth has another unit than poses, or intrinsics have
            their principal point outside the picture.

    Warns:
        GeometryWarning: views disagree, and none of these is the reason; or intrinsics look like those of a picture
            of another size.
    """
    _check_principal_points(scene)
    if not scene.has_depth:
        return Agreement(None)
    if not (scene.has_poses and scene.has_intrinsics and len(scene) > 1):
        _check_unit(scene)
        return Agreement(None)
    pairs = list(_pairs(scene))
    given = _score(pairs, _GIVEN)
    _look_for_mistakes(scene, pairs, given)
    _check_unit(scene)
    if given.points < _FEWEST:
        return Agreement(None, given.points, given.pairs)
    if given.share is not None and given.share < DOUBTFUL:
        warnings.warn(
            f"Scene {scene.name!r} ({scene.source}): depth of its views disagrees, only {given.share:.0%} of what one "
            "view should see of another is where it should be. Check that depth, poses and intrinsics belong together "
            "(the same frames, the same resolution, distances along the camera's z axis and not along rays).",
            GeometryWarning,
            stacklevel=2,
        )
    return given


@dataclass(frozen=True)
class _Pair:
    """Points of one view in its camera, and another view that may see them."""

    points: Tensor  # [N, 3]
    pose: Tensor
    other_depth: Tensor
    other_intrinsics: Tensor
    other_pose: Tensor


@dataclass(frozen=True)
class _Hypothesis:
    """A mistake: what mends the poses, and what mends the depth."""

    what: str
    advice: str
    mend: Callable[[Tensor], Tensor]
    scale: float = 1.0


def _same(pose: Tensor) -> Tensor:
    return pose


def _inverted(pose: Tensor) -> Tensor:
    return torch.inverse(pose)


def _flipped(pose: Tensor) -> Tensor:
    return pose @ _FLIP


def _inverted_flipped(pose: Tensor) -> Tensor:
    return torch.inverse(pose) @ _FLIP


_GIVEN = _Hypothesis("", "", _same)
_POSES = (
    _Hypothesis(
        "its poses are world-to-camera",
        "Invert them: a pose of a scene is camera-to-world.",
        _inverted,
    ),
    _Hypothesis(
        "its cameras have OpenGL's axes (y up, z backward)",
        "Negate the second and third column of each pose: cameras look along +z, with y down.",
        _flipped,
    ),
    _Hypothesis(
        "its poses are world-to-camera, with OpenGL's axes (y up, z backward)",
        "Invert them, then negate the second and third column.",
        _inverted_flipped,
    ),
)
_SCALES = (1 / 1000, 1000.0, 1 / 100, 100.0, 1 / 10, 10.0, 1 / 5, 5.0, 1 / 4, 4.0)


@lru_cache(maxsize=1)
def _hypotheses() -> tuple[_Hypothesis, ...]:
    unit = "depth has another unit than its poses: times {:g} it agrees"
    advice = "Read it with `depth_units` (units of the file in one metre) {}."

    def words(scale: float) -> str:
        return f"{1 / scale:g} times as large" if scale < 1 else f"{scale:g} times as small"

    scales = [_Hypothesis(unit.format(s), advice.format(words(s)), _same, s) for s in _SCALES]
    both = [
        _Hypothesis(f"{pose.what}, and {unit.format(s)}", f"{pose.advice} {advice.format(words(s))}", pose.mend, s)
        for pose in _POSES
        for s in _SCALES[:2]
    ]
    return (*_POSES, *scales, *both)


def _look_for_mistakes(scene: Scene, pairs: Sequence[_Pair], given: Agreement) -> None:
    share = given.share or 0.0
    best, found = _GIVEN, Agreement(0.0)
    for hypothesis in _hypotheses():
        tried = _score(pairs, hypothesis)
        # The simpler mistake comes first, and stays unless another explains clearly more.
        if tried.points >= _FEWEST and (tried.share or 0) > (found.share or 0) + 0.02:
            best, found = hypothesis, tried
    if best is _GIVEN or found.share is None or found.share < max(CONVINCING, share + BETTER):
        return
    raise SceneError(
        f"Scene {scene.name!r} ({scene.source}): {best.what}. Seen from its other views, {share:.0%} of the depth is "
        f"where it should be as given, and {found.share:.0%} with that mended ({found.points} points). {best.advice}"
    )


def _pairs(scene: Scene) -> Iterator[_Pair]:
    """A few views spread over the scene, each with its next one and two farther ones."""
    total = len(scene)
    anchors = dict.fromkeys(round(i * (total - 1) / (_ANCHORS - 1)) for i in range(_ANCHORS))
    depth_of: Callable[[int], Tensor | None] = lru_cache(maxsize=8)(lambda index: scene.views[index].depth())
    for anchor in anchors:
        depth = depth_of(anchor)
        if depth is None:
            continue
        points = _points(scene.views[anchor], depth)
        gaps = dict.fromkeys((1, max(1, total // 8), max(1, total // 4)))
        for other in dict.fromkeys(anchor + gap if anchor + gap < total else anchor - gap for gap in gaps):
            pair = _pair(scene, anchor, other, points, depth_of(other)) if 0 <= other < total else None
            if pair is not None:
                yield pair


def _pair(scene: Scene, anchor: int, other: int, points: Tensor, depth: Tensor | None) -> _Pair | None:
    view = scene.views[other]
    intrinsics = None if depth is None else view.intrinsics_of_depth(depth.shape)
    pose = scene.views[anchor].pose
    if depth is None or intrinsics is None or view.pose is None or pose is None or not len(points):
        return None
    return _Pair(points, pose, depth.double(), intrinsics, view.pose)


def _points(view: View, depth: Tensor) -> Tensor:
    """Some measured points of a view in its camera, float64 ``[N, 3]``."""
    intrinsics = view.intrinsics_of_depth(depth.shape)
    if intrinsics is None:
        return torch.empty(0, 3, dtype=torch.float64)
    step = max(1, int((depth.numel() / _POINTS) ** 0.5))
    places = (slice(step // 2, None, step), slice(step // 2, None, step))
    return camera_points(depth.double(), intrinsics)[places][depth[places] > 0]


def _score(pairs: Sequence[_Pair], hypothesis: _Hypothesis) -> Agreement:
    compared = agreeing = sharing = 0
    for pair in pairs:
        world = to_world(pair.points * hypothesis.scale, hypothesis.mend(pair.pose))
        pixels, distance = project(world, pair.other_intrinsics, hypothesis.mend(pair.other_pose))
        measured = sample_nearest(pair.other_depth, pixels) * hypothesis.scale
        seen = (measured > 0) & (distance > 0)
        agrees = seen & ((measured - distance).abs() <= AGREES * distance)
        compared += int(seen.sum())
        agreeing += int(agrees.sum())
        sharing += int(seen.any())
    return Agreement(agreeing / compared if compared else None, compared, sharing)


def _check_unit(scene: Scene) -> None:
    """The median distance of a few views must be one that a camera can measure."""
    step = max(1, len(scene) // 3)
    for view in scene.views[::step]:
        depth = view.depth()
        measured = None if depth is None else depth[depth > 0]
        if measured is None or not len(measured):
            continue
        middle = float(measured.median())
        if not NEAREST <= middle <= FARTHEST:
            guess = "in millimetres" if middle > FARTHEST else "divided by 1000 once too often"
            raise SceneError(
                f"Scene {scene.name!r} ({scene.source}), view {view.name!r}: half of its depth is beyond {middle:g} m. "
                f"It seems to be {guess}; depth of a scene is in metres. Read it with the right `depth_units`."
            )


def _check_principal_points(scene: Scene) -> None:
    """Each lies inside its picture, or the intrinsics are another picture's; far from the middle is told once."""
    doubtful: list[str] = []
    for view in scene.views:
        if view.intrinsics is None:
            continue
        (height, width), (cx, cy) = view.size, (float(view.intrinsics[0, 2]), float(view.intrinsics[1, 2]))
        where = f"view {view.name!r}: its principal point ({cx:.1f}, {cy:.1f})"
        other = f"a picture of about {2 * cx:.0f}x{2 * cy:.0f}"
        if not (-0.5 <= cx < width and -0.5 <= cy < height):
            raise SceneError(
                f"Scene {scene.name!r} ({scene.source}), {where} lies outside the picture of {width}x{height}. "
                f"These intrinsics are those of {other}: rescale them to this one."
            )
        if max(cx / width, cy / height) < OFF_CENTRE:
            doubtful.append(
                f"{where} is far from the middle of the picture of {width}x{height}. These intrinsics look like those "
                f"of {other}."
            )
    if doubtful:
        more = f" So do those of {len(doubtful) - 1} other views." if len(doubtful) > 1 else ""
        warnings.warn(f"Scene {scene.name!r} ({scene.source}), {doubtful[0]}{more}", GeometryWarning, stacklevel=3)
