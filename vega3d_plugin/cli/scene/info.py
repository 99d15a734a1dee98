"""``vega3d scene info``: what a scene holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..output import listed, out, print_json, print_pairs, yellow_warnings
from .options import Address, DepthUnits, Layout, opened

if TYPE_CHECKING:
    from ...scenes.scene import Scene


def info(
    address: Address,
    layout: Layout = None,
    depth_units: DepthUnits = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show what a scene holds, and whether depth and poses fit together.

    Depth of a few views is lifted into the world and compared with what other
    views measured there. Poses that are world-to-camera, OpenGL's axes and
    depth in another unit are found this way, and told.
    """
    from ...scenes.consistency import check_geometry

    scene = opened(address, layout, depth_units, True)
    with yellow_warnings():
        agreement = check_geometry(scene)
    values = describe(scene)
    values["agreement"] = agreement.share
    if as_json:
        print_json(values)
        return
    out.print(Text.assemble((scene.name, "bold"), f" from {scene.source}"), soft_wrap=True)
    print_pairs(_lines(values, agreement.pairs))


def describe(scene: Scene) -> dict[str, Any]:
    """What a scene holds, as JSON may hold it."""
    depth = scene.views[0].depth() if scene.has_depth else None
    sizes = Counter(view.size for view in scene.views)
    known = [
        name
        for name, there in (
            ("depth", scene.has_depth),
            ("intrinsics", scene.has_intrinsics),
            ("poses", scene.has_poses),
            ("alignment", scene.alignment is not None),
            ("instances", all(view.read_instances is not None for view in scene.views)),
        )
        if there
    ]
    return {
        "name": scene.name,
        "source": scene.source,
        "views": len(scene),
        "first": scene.views[0].name,
        "last": scene.views[-1].name,
        "sizes": [[list(size), count] for size, count in sizes.most_common()],
        "known": known,
        "depth_size": None if depth is None else list(depth.shape),
        "depth_range": _range(depth),
        "measured": None if depth is None else float((depth > 0).float().mean()),
        "path_metres": _path(scene),
        "metric": scene.metric,
        "objects": dict(Counter(thing.name for thing in scene.objects).most_common()),
        "fingerprint": scene.fingerprint,
    }


def _range(depth: Any) -> list[float] | None:
    measured = None if depth is None else depth[depth > 0]
    return None if measured is None or not len(measured) else [float(measured.min()), float(measured.max())]


def _path(scene: Scene) -> float | None:
    if not scene.has_poses:
        return None
    places = scene.poses[:, :3, 3]
    return float((places[1:] - places[:-1]).norm(dim=1).sum())


def _lines(values: dict[str, Any], pairs: int) -> dict[str, Any]:
    unit = "m" if values["metric"] else "(lengths up to one scale)"
    lines: dict[str, Any] = {
        "views": f"{values['views']}, {values['first']} to {values['last']}",
        "pictures": ", ".join(
            f"{w}x{h}" + (f" ({n})" if len(values["sizes"]) > 1 else "") for (h, w), n in values["sizes"]
        ),
        "known": listed(values["known"]),
    }
    if values["depth_size"]:
        height, width = values["depth_size"]
        near, far = values["depth_range"] or (0, 0)
        lines["depth"] = (
            f"{width}x{height}, {near:.2f} to {far:.2f} {unit} in the first view, {values['measured']:.0%} measured"
        )
    if values["path_metres"] is not None:
        lines["camera's way"] = f"{values['path_metres']:.2f} {unit}"
    if values["agreement"] is not None:
        lines["agreement"] = f"{values['agreement']:.0%} of depth is where other views see it ({pairs} pairs of views)"
    elif "depth" in values["known"] and "poses" in values["known"]:
        lines["agreement"] = "not known: the views that were compared share too little"
    if values["objects"]:
        lines["objects"] = ", ".join(f"{count} {name}" for name, count in values["objects"].items())
    return {**lines, "fingerprint": values["fingerprint"]}
