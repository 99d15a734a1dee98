"""The door: an address to a scene, whatever lies there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ..contracts.errors import SceneError, SettingsError, UnknownNameError, near_misses
from .consistency import check_geometry
from .files import missing
from .scene import Scene

_MOST = 100_000


@dataclass(frozen=True)
class Layout:
    """A layout of files that can be read.

    Attributes:
        name: to be given as ``layout``.
        summary: what it is, for people.
        module: of :mod:`vega3d_plugin.scenes.readers`, with ``matches(path)`` and ``read(path, **options)``.
    """

    name: str
    summary: str
    module: str

    def matches(self, path: Path) -> bool:
        """Whether the path looks like it."""
        return bool(self._module().matches(path))

    @property
    def read(self) -> Callable[..., Scene]:
        """Its reader."""
        reader: Callable[..., Scene] = self._module().read
        return reader

    def _module(self) -> Any:
        return import_module(f"{__package__}.readers.{self.module}")


#: In the order in which a path is tried: what says more about itself comes first.
LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("embodiedscan", "an info file of EmbodiedScan, infos.pkl#scannet/scene0000_00", "embodiedscan"),
        Layout("transforms", "transforms.json of nerfstudio, instant-ngp or ScanNet++", "transforms"),
        Layout("tum", "a sequence of TUM RGB-D: rgb.txt, depth.txt, groundtruth.txt", "tum"),
        Layout("stereo", "a stereo pair of Middlebury: im0.png, im1.png, calib.txt, disp0.pfm", "stereo"),
        Layout("posed_images", "a scene of ScanNet as exported: 00000.jpg, .png, .txt, intrinsic.txt", "posed_images"),
        Layout("colmap", "a reconstruction of COLMAP, text or binary", "colmap"),
        Layout("video", "a video", "video_file"),
        Layout("images", "a picture, or a folder of pictures", "image_folder"),
    )
}


def open_scene(address: str | Path, *, layout: str | None = None, check: bool = True, **options: Any) -> Scene:
    """Open a scene.

    Args:
        address: a folder or file in one of :data:`LAYOUTS`; ``room:SEED``, a rendered room; ``stereo:motorcycle``, a
            real pair that scikit-image ships; ``libero:libero_spatial/0``, a task in LIBERO's simulator. ``#NAME``
            names a scene of a file that holds many. Options may follow as ``?views=16&size=240x320``.
        layout: read it as this one, whatever it looks like.
        check: compare depth between views, and refuse or tell what cannot be true, see
            :func:`~vega3d_plugin.scenes.consistency.check_geometry`.
        options: of the reader: ``depth_units``, ``ignore_distortion``, ``views`` and ``size`` of a room, ...

    Raises:
        SceneError: nothing there, nothing that is known, a damaged file, or geometry that cannot be true.
        VideoError: a picture or video that cannot be read.
        SettingsError: an unknown option, or a value that cannot be.
        UnknownNameError: an unknown layout or pair.
    """
    path, name, asked = _parts(str(address))
    options = {**asked, **options}
    scheme, _, rest = path.partition(":")
    if scheme == "room" and layout is None:
        return _room(rest, options, path)
    if scheme == "stereo" and layout is None:
        from .readers.stereo import read_shipped

        _refuse_unknown(options, {}, f"stereo:{rest}")
        scene = read_shipped(rest)
    elif scheme == "libero" and layout is None:
        scene = _task(path, options)
    else:
        found = _layout(Path(path).expanduser(), layout)
        if name is not None:
            if found.name != "embodiedscan":
                raise SceneError(
                    f"{address}: only info files of EmbodiedScan hold many scenes, {path} is {found.summary}."
                )
            options["scene"] = name
        values = _typed(options, found.read, f"{path} ({found.name})")
        scene = found.read(Path(path).expanduser(), **values)
    if check:
        check_geometry(scene)
    return scene


def open_scenes(addresses: Sequence[str | Path], *, check: bool = True, **options: Any) -> list[Scene]:
    """Open the scenes of several addresses.

    Args:
        addresses: as for :func:`open_scene`; also ``room:0..7`` and ``libero:libero_spatial/0..9`` (both ends
            included), a folder whose folders are scenes, and an info file of EmbodiedScan without a name, which stands
            for all its scenes.
        check: see :func:`open_scene`.
        options: for all of them.

    Raises:
        SceneError: see :func:`open_scene`; or two scenes of one name and content.
    """
    every = [each for address in addresses for each in expand(address)]
    if not every:
        raise SceneError("No scenes are named.")
    return [open_scene(each, check=check, **options) for each in every]


def expand(address: str | Path) -> list[str]:
    """The addresses of single scenes that an address stands for, see :func:`open_scenes`.

    Raises:
        SceneError: nothing there, or nothing that is known.
    """
    text = str(address)
    path, name, _ = _parts(text)
    query = text[len(path) :] if text.startswith(path) else ""
    if (rooms := re.fullmatch(r"room:(\d{1,9})\.\.(\d{1,9})", path)) is not None:
        first, last = int(rooms[1]), int(rooms[2])
        if not first <= last < first + _MOST:
            raise SceneError(f"{text}: rooms are counted upwards, and at most {_MOST:,} at once.")
        return [f"room:{seed}{query}" for seed in range(first, last + 1)]
    if path.startswith("libero:"):
        from .readers.libero import parse

        return [f"{task.address}{query}" for task in parse(path)]
    if path.startswith(("room:", "stereo:")) or name is not None:
        return [text]
    folder = Path(path).expanduser()
    if folder.is_file() and LAYOUTS["embodiedscan"].matches(folder):
        from .readers.info_files import scene_names

        return [f"{path}#{each}{query}" for each in scene_names(folder)]
    if folder.is_dir() and _recognised(folder) is None:
        below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _recognised(entry) is not None]
        if below:
            return [f"{entry}{query}" for entry in below]
    return [text]


def _parts(address: str) -> tuple[str, str | None, dict[str, str]]:
    """Path, name of a scene in it, and options. A file whose own name has these signs is found all the same."""
    if _exists(Path(address)):
        return address, None, {}
    path, asked, query = address.rpartition("?")
    if not asked:
        path, query = address, ""
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise SceneError(f"{address}: options are written ?name=value&name=value.") from None
    path, sign, name = path.partition("#")
    return path, name if sign else None, options


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, an unknown user
        said = str(error).partition(": ")[0]
        raise SceneError(f"{str(path)[:100]!r} is no usable path ({said}).") from None


def _recognised(path: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS.values() if layout.matches(path)), None)


def _layout(path: Path, wanted: str | None) -> Layout:
    if wanted is not None:
        if wanted not in LAYOUTS:
            raise UnknownNameError("layout", wanted, LAYOUTS)
        return LAYOUTS[wanted]
    if not _exists(path):
        raise SceneError(missing(path))
    found = _recognised(path)
    if found is None:
        held = sorted(entry.name for entry in path.iterdir())[:4] if path.is_dir() else []
        what = f"It holds {', '.join(held)}{', ...' if len(held) == 4 else ''}." if held else ""
        known = "; ".join(layout.summary for layout in LAYOUTS.values())
        raise SceneError(
            f"{path} is no scene that is known. {what} Known: {known}; room:SEED; stereo:motorcycle; libero:SUITE/TASK."
        )
    return found


def _room(rest: str, options: Mapping[str, Any], address: str) -> Scene:
    from .worlds import rendered_scene

    if not re.fullmatch(r"\d{1,9}", rest):
        raise SceneError(f"{address}: a rendered room is room:SEED, with a number from 0 for a seed.")
    return rendered_scene(int(rest), **_typed(options, rendered_scene, address, without=("seed",)))


def _task(address: str, options: Mapping[str, Any]) -> Scene:
    from .readers.libero import parse, read

    # Before its options: who mistypes the address is told so first.
    if len(parse(address)) != 1:
        raise SceneError(f"{address} is several tasks. Name one, such as {parse(address)[0].address}.")
    return read(address, **_typed(options, read, address))


def _typed(
    options: Mapping[str, Any], reader: Callable[..., Scene], where: str, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Options as the reader takes them: texts become what its annotations say."""
    known = {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(reader).parameters.items()
        if name != "path" and name not in without
    }
    _refuse_unknown(options, known, where)
    return {name: _value(name, value, known[name], where) for name, value in options.items()}


def _refuse_unknown(options: Mapping[str, Any], known: Mapping[str, str], where: str) -> None:
    for name in options:
        if name not in known:
            raise SettingsError(
                f"{where} has no option {name!r}.{near_misses(name, known)} Known: {', '.join(known) or 'none'}."
            )


def _value(name: str, value: Any, kind: str, where: str) -> Any:
    if not isinstance(value, str) or kind.startswith("str"):
        return value
    try:
        if kind.startswith("bool"):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        if kind.startswith("tuple"):
            height, width = re.split(r"[x,]", value)
            return int(height), int(width)
        return int(value) if kind.startswith("int") else float(value)
    except (ValueError, KeyError):
        wanted = {"b": "true or false", "t": "HEIGHTxWIDTH", "i": "a whole number"}.get(kind[:1], "a number")
        raise SettingsError(f"{where}, {name}: {value[:60]!r} is not {wanted}.") from None
