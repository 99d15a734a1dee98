"""``vega3d prior features``: what a prior sees in a video, as tensors and as a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ...contracts.clips import clip_key
from ...contracts.errors import CheckpointError, PriorError, SettingsError
from ...contracts.tables import PRIORS
from ...storage.versions import library_version
from ..output import err, out, print_pairs, yellow_warnings
from ..targets import check_target, write, write_tensors

if TYPE_CHECKING:
    import torch

    from ...contracts.priors import Prior
    from ...contracts.settings import PriorSettings
    from ...features.parts import FolderParts
    from ...scenes.images import Frames

#: Seconds between two drawings of the picture while the work goes on.
REDRAWN = 5.0


def features(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, a folder of images, or one image.")],
    prior: Annotated[str, typer.Option(help="A prior, see `vega3d ls priors`.")],
    pretrained: Annotated[
        str | None, typer.Option(help="Folder or hub id of its weights. Default: the prior's own source.")
    ] = None,
    frames: Annotated[
        int, typer.Option(min=1, help="How many at most, spread evenly over the whole; a large number takes all.")
    ] = 8,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, see `vega3d prior info`; repeatable."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: VIDEO_PRIOR.safetensors, in this folder.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: as --out, but .png.")] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write no picture.")] = False,
    device: Annotated[str | None, typer.Option(help="Device; default: CUDA if there is any.")] = None,
) -> None:
    """Run a prior on a video; write its features and a picture of them.

    The file has one tensor, features [T', C, h, w], and beside it what made
    them. The picture shows their first three principal components as colours,
    the same ones in all frames, below the frames as the prior saw them. It is
    drawn anew as the work goes on. What a stopped call has computed lies in a
    folder beside the file, and the same command resumes it.

    \b
      vega3d prior features kitchen.mp4 --prior tiny-wan
      vega3d prior features views/ --prior wan2.1-t2v-1.3b --frames 16
                                   --set context=views --set tap=-1
    """
    from ...priors.frozen.prior import FrozenPrior
    from ...scenes.images import read_frames
    from .frames import as_clip

    if picture is not None and no_picture:
        raise typer.BadParameter("--picture and --no-picture exclude each other.")
    settings = _settings(prior, change or [], {"pretrained": pretrained, "device": device})
    to = to or Path(f"{video.resolve().stem or 'features'}_{prior}.safetensors")
    picture = None if no_picture else picture or to.with_suffix(".png")
    check_target(to, ".safetensors")
    if picture is not None:
        check_target(picture, ".png")
        _spare(video, picture)

    taken = read_frames(video, frames)
    clip = as_clip(taken, settings)
    loaded, loading = _load(settings)
    # Ours fetch their frames piece by piece; a third party's may expect them where it is to run.
    given = clip if isinstance(loaded, FrozenPrior) else clip.to(str(settings.device))
    parts = _parts(loaded, clip, to, _drawer(picture, clip, loaded, taken))
    started = time.perf_counter()
    # Of a third party's prior it is not known what its features depend on.
    there = None if parts is None else _complete(to, _identity(loaded, clip))
    try:
        with yellow_warnings(), progress_bar(loaded):
            maps = loaded(given).cpu() if there is None else there
    except KeyboardInterrupt:
        _interrupted(parts, picture)
        raise SystemExit(130) from None
    seconds = time.perf_counter() - started
    files = []
    if there is None:
        _check_finite(maps, prior)
        write_tensors(to, {"features": maps}, _metadata(loaded, clip, video, taken))
        files.append(to)
    if picture is not None:
        _draw(picture, clip, maps, loaded, taken, range(maps.shape[0]), maps.shape[0])
        files.append(picture)
    resumed = 0
    if parts is not None:
        resumed = parts.resumed
        parts.remove()

    out.print(Text.assemble((prior, "bold"), f" on {video.name or video}"), soft_wrap=True)
    print_pairs(
        {
            "features": f"{list(maps.shape)} (steps, channels, height, width) {_dtype(maps)}",
            "frames": _brief(taken.names or [str(index) for index in taken.indices]),
            "seconds": (f"{seconds:.1f} on {settings.device}" if there is None else "none: they were there")
            + f", and {loading:.1f} to load"
            + (f"; {resumed} parts were there from an earlier call" if resumed else ""),
            "fingerprint": loaded.fingerprint,
        }
    )
    if there is not None:
        told = f"{to} holds these very features already; nothing was computed. Delete it to compute them again."
        out.print(Text(told), soft_wrap=True)
    for file in files:
        out.print(Text(f"Wrote {file}"), soft_wrap=True)
    out.print(Text(f'Read them in Python: safetensors.torch.load_file("{to}")["features"]'), soft_wrap=True)


def _settings(prior: str, changes: Sequence[str], options: Mapping[str, str | None]) -> PriorSettings:
    """The prior's settings from --set and from options of the same name, with the device to run on."""
    from ...contracts.settings import PriorSettings
    from ...priors.resolving import resolve

    PRIORS.get(prior)
    values = parse_changes(changes)
    for option, value in options.items():
        if value is not None and option in values:
            raise typer.BadParameter(f"{option} is given twice: by --{option} and by --set.")
        values |= {} if value is None else {option: value}
    settings = resolve(PriorSettings.parse({**values, "name": prior}, where="--set"))
    return settings.model_copy(update={"device": _usable(settings.device)})


def _check_finite(maps: torch.Tensor, prior: str) -> None:
    bad = int((~maps.isfinite()).sum())
    if bad:
        raise PriorError(
            f"Prior {prior!r} gave {bad} values of {maps.numel()} that are NaN or infinite, in "
            f"{_dtype(maps)}. Try --set dtype=float32, and check that its weights are whole."
        )


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts to settings; values are YAML, and ``options.key`` is a setting of the family.

    Raises:
        BadParameter: no ``=``, a setting given twice, or the prior's name.
        SettingsError: a value that is no YAML.
    """
    from ...recipes.yaml import parse_value

    values: dict[str, Any] = {}
    for text in changes:
        path, equals, written = text.partition("=")
        path = path.strip()
        if not equals or not path:
            raise typer.BadParameter(f"--set {text}: expected KEY=VALUE, such as tap=-1.")
        if path == "name":
            raise typer.BadParameter("--set name: the prior is named by --prior.")
        try:
            value = parse_value(written)
        except ValueError as error:
            raise SettingsError(f"--set {text}: the value {error}.") from None
        family, dot, key = path.partition(".")
        in_options = family == "options" and bool(dot)
        place = values.setdefault("options", {}) if in_options else values
        key = key if in_options else path
        if not isinstance(place, dict) or key in place:
            raise typer.BadParameter(f"--set {path} is given twice.")
        place[key] = value
    return values


@contextmanager
def progress_bar(prior: Prior) -> Iterator[None]:
    """A bar on stderr, where that is a terminal; a prior that does not report gets one that only moves."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(prior.settings.name if prior.settings else "prior", total=None)

        def told(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        if not hasattr(prior, "progress"):
            yield
            return
        before, prior.progress = prior.progress, told
        try:
            yield
        finally:
            prior.progress = before


def _usable(device: str | None) -> str:
    import torch

    from ...priors.frozen.devices import usable

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    usable(device)
    return device


def _spare(video: Path, picture: Path) -> None:
    """Do not let the picture become one of the frames."""
    if picture.resolve() == video.resolve():
        raise typer.BadParameter(f"--picture {picture} would replace VIDEO. Choose another name.")
    if video.is_dir() and picture.resolve().parent == video.resolve():
        raise typer.BadParameter(
            f"{picture} would lie among the images of VIDEO, and be one of them next time. Use --picture elsewhere."
        )


def _load(settings: PriorSettings) -> tuple[Prior, float]:
    """The prior, and how long that took."""
    started = time.perf_counter()
    # A download shows its own progress, which a spinner would tear apart.
    downloads = settings.pretrained is not None and not Path(settings.pretrained).expanduser().is_dir()
    with yellow_warnings(), nullcontext() if downloads else err.status(f"Loading {settings.name} ..."):
        from ...priors.load import load_prior

        return load_prior(settings), time.perf_counter() - started


def _identity(prior: Prior, clip: torch.Tensor) -> dict[str, str]:
    """What makes features what they are."""
    return {
        "clip": clip_key(clip),
        "fingerprint": prior.fingerprint,
        "dtype": str(prior.dtype_on(clip.device)),
        "library_version": library_version(),
    }


def _complete(to: Path, identity: Mapping[str, str]) -> torch.Tensor | None:
    """The features that an earlier call has written, if they are these; a damaged or other file is written anew."""
    from ...storage.reading import open_safetensors

    if not to.is_file():
        return None
    try:
        with open_safetensors(to, CheckpointError) as opened:
            about = opened.metadata() or {}
            same = all(about.get(key) == value for key, value in identity.items())
            found: torch.Tensor | None = opened.get_tensor("features").clone() if same else None
    except CheckpointError:
        return None
    return found


def _metadata(prior: Prior, clip: torch.Tensor, video: Path, frames: Frames) -> dict[str, str]:
    settings = prior.settings
    return {
        **_identity(prior, clip),
        "prior": settings.name if settings else type(prior).__name__,
        "settings": json.dumps(settings.to_dict() if settings else {}),
        "file": video.resolve().name,
        "frames": json.dumps(frames.indices),
        **({"images": json.dumps(frames.names)} if frames.names else {}),
    }


def _parts(
    prior: Prior, clip: torch.Tensor, to: Path, told: Callable[[Mapping[range, torch.Tensor]], None]
) -> FolderParts | None:
    """What keeps the parts of a long extraction; None for a prior of others, which computes all at once."""
    from ...features.parts import FolderParts
    from ...priors.frozen.prior import FrozenPrior

    if not isinstance(prior, FrozenPrior):
        return None
    prior.parts = FolderParts(to.with_suffix(".parts"), _identity(prior, clip), told)
    return prior.parts


def _drawer(
    picture: Path | None, clip: torch.Tensor, prior: Prior, frames: Frames
) -> Callable[[Mapping[range, torch.Tensor]], None]:
    """Draws what is there, now and then; drawing takes time as well."""
    import torch

    drawn = time.monotonic()

    def draw(parts: Mapping[range, torch.Tensor]) -> None:
        nonlocal drawn
        if picture is None or time.monotonic() - drawn < REDRAWN:
            return
        steps = {row: part[row - rows.start] for rows, part in parts.items() for row in rows}
        maps = torch.stack([steps[row] for row in sorted(steps)])
        _draw(picture, clip, maps, prior, frames, sorted(steps), _steps(prior, clip))
        drawn = time.monotonic()

    return draw


def _steps(prior: Prior, clip: torch.Tensor) -> int:
    """Steps of the whole clip."""
    count = clip.shape[0]
    stride = getattr(prior, "time_stride", None) or getattr(prior, "frames_per_step", None) or 1
    if prior.settings is None or prior.settings.context != "video":
        return count
    return -(-(count - 1) // stride) + 1 if hasattr(prior, "time_stride") else -(-count // stride)


def _interrupted(parts: FolderParts | None, picture: Path | None) -> None:
    if parts is None or not parts.found:
        more = ""
        if parts is not None and parts.resumed + parts.computed:
            more = f" What leads to them is kept in {parts.folder}. The same command resumes."
        err.print(Text(f"Interrupted before any features were computed.{more}"), soft_wrap=True)
        return
    rows = len({row for rows in parts.found for row in rows})
    seen = f"; {picture} shows some of it" if picture is not None and picture.is_file() else ""
    text = f"Interrupted. Features of {rows} steps are kept in {parts.folder}{seen}. The same command resumes."
    err.print(Text(text), soft_wrap=True)


def _draw(
    path: Path,
    clip: torch.Tensor,
    maps: torch.Tensor,
    prior: Prior,
    frames: Frames,
    rows: Sequence[int],
    steps: int,
) -> None:
    """Draw the maps of these rows of so many steps."""
    from ...analysis.pictures import feature_picture
    from ...contracts.settings import PriorSettings
    from .frames import as_pixels, resized

    settings = prior.settings or PriorSettings()
    count = clip.shape[0]
    spans = prior.spans(count, steps) or [(i / steps, (i + 1) / steps) for i in range(steps)]
    tap = "" if settings.tap is None else f"tap {settings.tap}, "
    title = f"{settings.name}, {tap}context {settings.context}: first three principal components"
    title += "" if len(rows) == steps else f" ({len(rows)} of {steps} steps so far)"
    firsts = [min(count - 1, round(spans[row][0] * count)) for row in rows]
    pixels, values = as_pixels(resized(clip, settings)), maps.float().numpy()
    write(path, lambda temporary: feature_picture(pixels, values, temporary, title, firsts, frames.labels))


def _brief(names: Sequence[str]) -> str:
    shown = names if len(names) <= 12 else [*names[:8], "...", names[-1]]
    return f"{len(names)}: {', '.join(shown)}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
