"""Exact questions about the things on a table, from where they are and where the cameras stand.

Every answer follows from poses and boxes alone. Answers are balanced: of each text every answer is equally frequent
within a split, so a model that does not see the pictures is at chance. What the name of a thing gives away (a cabinet
is larger than a cup) is therefore asked by place and not by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from vega3d_plugin.scenes.questions import corners
from vega3d_plugin.scenes.room_questions import RoomQuestion
from vega3d_plugin.scenes.scene import Scene, SceneObject

Floats = NDArray[np.float64]

#: Kinds of questions, and whether they can be answered from the first picture alone.
KINDS = {
    "left or right": True,
    "nearer": True,
    "how far": True,
    "order": True,
    "size": True,
    "between": True,
    "moved": False,
    "came closer": False,
}
# A question is asked only when the answer is plain to see.
SEEN = 0.002  # part of a picture's pixels that must lie on a thing
APART = 0.08  # between two things' centres in the picture, part of its width
END = 0.03  # between the thing at an end of a row and the next
NEARER = 0.08  # metres between two things' distances from the camera
LARGER = 1.5  # times that one thing's longest side must be the other's
FAR = (0.8, 1.0, 1.2, 1.4)  # metres that are asked about
UNSURE = 0.04  # metres around them
MOVED = 0.2  # metres that the camera must have moved to a side
CLOSER = 0.08  # metres that the distance to a thing must have changed
_SLACK = 0.01  # metres around a box within which a measured point lies on it


@dataclass(frozen=True)
class Thing:
    """What a camera sees of an object.

    Attributes:
        column: of its centre, part of the picture's width.
        distance: of its centre from the camera, metres.
        length: its longest side, metres.
    """

    column: float
    distance: float
    length: float


@dataclass(frozen=True, eq=False)
class Look:
    """One picture.

    Attributes:
        pose: ``[4, 4]`` camera-to-world, metres, OpenCV convention.
        things: that are plainly seen, by name; each is the only one of its name in the scene.
        centres: of every object that is the only one of its name, ``[3]`` metres, by name.
    """

    pose: Floats
    things: Mapping[str, Thing]
    centres: Mapping[str, Floats]

    @property
    def eye(self) -> Floats:
        """Where the camera stands, ``[3]`` metres."""
        return self.pose[:3, 3]


Asked = Iterator[RoomQuestion]


def looks(scene: Scene) -> list[Look]:
    """One for each view of a scene with objects, depth, intrinsics and poses.

    Raises:
        SceneError: the scene lacks one of them.
    """
    scene.require("depth", "pose", "intrinsics")
    found = []
    for view in scene.views:
        depth, pose, intrinsics = view.depth(), view.pose, view.intrinsics
        own = None if depth is None else view.intrinsics_of_depth(depth.shape)
        if depth is None or pose is None or intrinsics is None or own is None:
            continue  # `require` has told of it
        points = _points(depth.numpy().astype(np.float64), own.numpy(), pose.numpy())
        found.append(look(pose.numpy(), intrinsics.numpy(), view.size[1], points, scene.objects))
    return found


def look(pose: Floats, intrinsics: Floats, width: int, points: Floats, objects: Sequence[SceneObject]) -> Look:
    """What one camera sees.

    Args:
        pose: ``[4, 4]`` camera-to-world.
        intrinsics: ``[3, 3]``, pixels.
        width: of the picture, pixels.
        points: ``[N, 3]`` metres, where the picture's pixels lie in the world.
        objects: of the scene.
    """
    names = Counter(thing.name for thing in objects)
    owners = _owners(points, objects)
    things, centres = {}, {}
    for number, thing in enumerate(objects):
        if names[thing.name] > 1:
            continue
        centres[thing.name] = np.array(thing.centre)
        x, _, z = np.linalg.inv(pose)[:3] @ [*thing.centre, 1.0]
        column = (intrinsics[0, 0] * x / z + intrinsics[0, 2] + 0.5) / width if z > 0 else -1.0
        if 0 <= column <= 1 and (owners == number).mean() >= SEEN:
            distance = float(np.linalg.norm(centres[thing.name] - pose[:3, 3]))
            things[thing.name] = Thing(float(column), distance, max(thing.size))
    return Look(pose, things, centres)


def table_questions(first: Look, second: Look, frames: tuple[int, int]) -> list[RoomQuestion]:
    """Every plain question about two pictures; :func:`~vega3d_plugin.scenes.room_questions.balanced` draws from them.

    Args:
        first, second: what is seen; all kinds but ``moved`` and ``came closer`` are about the first.
        frames: the number of each.
    """
    found = [*_sides(first), *_nearer(first), *_far(first), *_order(first), *_size(first), *_between(first)]
    found += [*_moved(first, second), *_closer(first, second)]
    return [replace(question, frames=frames) for question in found]


def _ask(kind: str, text: str, choices: tuple[str, str], first: bool) -> RoomQuestion:
    return RoomQuestion(kind, text, choices, choices[0] if first else choices[1], (0, 0))


def _yes(kind: str, text: str, holds: bool) -> RoomQuestion:
    return _ask(kind, text, ("yes", "no"), holds)


def _sides(look: Look) -> Asked:
    for one, two in permutations(look.things, 2):
        gap = look.things[two].column - look.things[one].column
        if abs(gap) >= APART:
            text = f"In the first picture, is the {one} left or right of the {two}?"
            yield _ask("left or right", text, ("left", "right"), gap > 0)


def _nearer(look: Look) -> Asked:
    for one, two in permutations(look.things, 2):
        gap = look.things[two].distance - look.things[one].distance
        if abs(gap) >= NEARER:
            yield _yes("nearer", f"In the first picture, is the {one} nearer to the camera than the {two}?", gap > 0)


def _far(look: Look) -> Asked:
    for name, thing in look.things.items():
        for metres in FAR:
            if abs(thing.distance - metres) >= UNSURE:
                text = f"In the first picture, is the {name} more than {round(100 * metres)} cm from the camera?"
                yield _yes("how far", text, thing.distance > metres)


def _order(look: Look) -> Asked:
    for names in combinations(sorted(look.things), 3):
        true = sorted(names, key=lambda name: look.things[name].column)
        if _plain(look, true):
            for told in permutations(names):
                text = f"In the first picture from left to right, is the order {', '.join(told)}?"
                yield _yes("order", text, list(told) == true)


def _between(look: Look) -> Asked:
    for names in combinations(sorted(look.things), 3):
        true = sorted(names, key=lambda name: look.things[name].column)
        if _plain(look, true):
            for name in names:
                one, two = (other for other in names if other != name)
                text = f"In the first picture from left to right, is the {name} between the {one} and the {two}?"
                yield _yes("between", text, name == true[1])


def _size(look: Look) -> Asked:
    """By place, since a name gives the size away."""
    across = sorted(look.things, key=lambda name: look.things[name].column)
    ends = {*across[:2], *across[-2:]}
    if len(across) < 2 or not _plain(look, [name for name in across if name in ends], END):
        return
    left, right = look.things[across[0]].length, look.things[across[-1]].length
    if max(left, right) >= LARGER * min(left, right):
        text = "In the first picture, which thing is longer, the leftmost or the rightmost?"
        yield _ask("size", text, ("leftmost", "rightmost"), left > right)


def _plain(look: Look, names: Sequence[str], apart: float = APART) -> bool:
    return all(look.things[two].column - look.things[one].column >= apart for one, two in pairwise(names))


def _moved(first: Look, second: Look) -> Asked:
    there = float((np.linalg.inv(first.pose) @ [*second.eye, 1.0])[0])
    back = float((np.linalg.inv(second.pose) @ [*first.eye, 1.0])[0])
    if min(abs(there), abs(back)) >= MOVED and there * back < 0:
        yield _ask("moved", "Did the camera move left or right?", ("left", "right"), there < 0)


def _closer(first: Look, second: Look) -> Asked:
    for name in sorted(first.things.keys() & second.things):
        change = float(np.linalg.norm(second.centres[name] - second.eye)) - first.things[name].distance
        if abs(change) >= CLOSER:
            yield _yes("came closer", f"Did the camera come closer to the {name}?", change < 0)


def _points(depth: Floats, intrinsics: Floats, pose: Floats) -> Floats:
    """``[N, 3]``: where every measured pixel lies in the world."""
    y, x = np.nonzero(depth)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
    local = np.concatenate([rays * depth[y, x][:, None], np.ones((len(x), 1))], axis=-1)
    return np.asarray((local @ pose.T)[:, :3])


def _owners(points: Floats, objects: Sequence[SceneObject]) -> NDArray[np.int64]:
    """Of each point the object whose box holds it, the smallest of several; -1 for none."""
    owners = np.full(len(points), -1)
    for number in sorted(range(len(objects)), key=lambda number: -float(np.prod(objects[number].size))):
        thing = objects[number]
        axes = _axes(thing)
        inside = np.abs((points - thing.centre) @ axes.T) <= np.array(thing.size) / 2 + _SLACK
        owners[inside.all(axis=1)] = number
    return owners


def _axes(thing: SceneObject) -> Floats:
    """``[3, 3]``: the unit vectors along a box's sides."""
    around = corners(replace(thing, centre=(0.0, 0.0, 0.0), size=(1.0, 1.0, 1.0)))
    signs = corners(replace(thing, centre=(0.0, 0.0, 0.0), size=(1.0, 1.0, 1.0), angles=None))
    # Corners are signs turned: their products over all corners, divided by what eight halves give.
    return np.asarray(signs.T @ around / 2)
