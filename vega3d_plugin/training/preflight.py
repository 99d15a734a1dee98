"""What would fail at a later step, found before the first: clips that a prior cannot take, features that are not there,
memory that does not suffice."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..contracts.clips import clip_key
from ..contracts.errors import HostError, RowError, TrainError, Vega3dWarning
from ..contracts.tables import PRIORS
from ..hosts.hollow import HollowHost
from ..priors.load import load_prior
from ..priors.resolving import resolve
from ..priors.yours.external import ExternalPrior
from ..recipes.library import branch_settings
from ..recipes.schema import RecipeSettings
from ..storage.writing import write_text
from .data import Collator, ConversationData
from .extraction import hollow_host
from .rows.conversation import Conversation, Medium
from .rows.encoding import Encoder, check_points

#: Missing clips that a message names; all of them are in the file beside the output folder.
NAMED = 10
#: Bytes of a parameter, at least, while a prior's weights are read.
_HALF = 2

Refusal = Callable[[Conversation], str]


def adds_positions(recipe: RecipeSettings) -> bool:
    """Whether the branch of a recipe needs to know where pixels lie."""
    return recipe.prior is not None and recipe.positions != "none"


def unusable(recipe: RecipeSettings) -> Refusal | None:
    """What is wrong with a row for this recipe's branch; None where every row will do."""
    checks = [single_frames(recipe), check_points if adds_positions(recipe) else None]
    known = [check for check in checks if check is not None]
    if not known:
        return None
    return lambda conversation: next((problem for check in known if (problem := check(conversation))), "")


def single_frames(recipe: RecipeSettings) -> Refusal | None:
    """What is wrong with a row whose clips have too few frames for the prior; None where one frame is enough.

    A generator with ``context: video`` needs two frames: its video VAE takes no single image.
    """
    if recipe.prior is None:
        return None
    settings = resolve(recipe.prior)
    kind = PRIORS.get(settings.name).prior_class()
    least = getattr(kind, "least_video_frames", 1)
    if settings.context != "video" or least < 2:
        return None
    data, joined = recipe.data, recipe.images == "scene"
    as_images = data is not None and data.video_as == "images"
    frames = 1 if data is None else data.frames

    def refuse(conversation: Conversation) -> str:
        media = conversation.media
        counts = [frames if not _is_list(m) else min(frames, len(m.source)) for m in media if m.kind == "video"]
        images = sum(m.kind == "image" for m in media)
        if as_images:
            images, counts = images + sum(counts), []
        clips = [*counts, *([images] if joined and images else [1] * images)]
        if all(count >= least for count in clips):
            return ""
        what = "an image" if images else "a video of one frame"
        return (
            f"{what} is a clip of one frame, and prior {settings.name!r} with context 'video' needs {least}. Set "
            "prior.context=frame or prior.context=views"
        )

    return refuse


def _is_list(medium: Medium) -> bool:
    return isinstance(medium.source, Sequence) and not isinstance(medium.source, str | bytes)


def check_external(
    recipe: RecipeSettings,
    data: Sequence[ConversationData],
    output: Path,
    progress: Callable[[Sequence[int]], Any] = iter,
) -> None:
    """Look up the clips of all rows where features come from a folder (``prior.name: external``).

    The clips are those the host would see, found without its weights; every picture is read once.

    Args:
        recipe: of the run.
        data: the rows.
        output: beside this folder, all missing clips are listed in a file.
        progress: wraps the numbers of the rows.

    Raises:
        TrainError: some clips have no features; names them, and the file that lists them all.
    """
    if recipe.prior is None or recipe.prior.name != "external":
        return
    prior = load_prior(recipe.prior)
    if not isinstance(prior, ExternalPrior):
        return
    try:
        model, processor = hollow_host(recipe)
        host = HollowHost(model, processor, branch_settings(recipe), recipe.host.adapter)
    except HostError as error:
        warnings.warn(f"Not checked whether all clips have features: {error}", Vega3dWarning, stacklevel=2)
        return
    missing: dict[str, str] = {}
    for rows in data:
        encoder = Encoder(processor, rows.settings, rows.encoder.max_length)
        for number in progress(range(len(rows)) if rows.usable is None else rows.usable):
            try:
                clips = host.clips(Collator(encoder)([encoder(rows.conversation(number))]))
            except RowError:
                # Told when the row is used, or left out, as the recipe says.
                continue
            for clip in clips:
                key = clip_key(clip.frames)
                if not prior.holds(key):
                    missing.setdefault(key, f"{rows.rows.name(number)}, frames {list(clip.frames.shape)}")
    if missing:
        raise TrainError(_missing(missing, prior.folder, output.parent / f"{output.name}_missing_clips.txt"))


def _missing(missing: Mapping[str, str], folder: Path, file: Path) -> str:
    lines = [f"{key}  {where}" for key, where in missing.items()]
    try:
        write_text(file, "\n".join(lines) + "\n")
        where = f"All of them are listed in {file}."
    except OSError as error:
        where = f"They could not be listed in {file} ({error})."
    shown = "\n  ".join(lines[:NAMED]) + ("\n  ..." if len(lines) > NAMED else "")
    return (
        f"{folder} has no features of {len(missing)} clip{'s' if len(missing) > 1 else ''} of these rows:\n  {shown}\n"
        f"{where} Compute them, and save each as <clip key>.safetensors in {folder}."
    )


def check_prior_fits(recipe: RecipeSettings, available: int | None) -> None:
    """Warn where a prior's weights will not fit into this machine's memory, before they are read.

    Args:
        recipe: of the run.
        available: bytes of memory; None where they are not known.
    """
    if recipe.prior is None or available is None:
        return
    billions = PRIORS.get(recipe.prior.name).parameters
    needed = 0 if billions is None else round(billions * 1e9 * _HALF)
    if needed > available:
        warnings.warn(
            f"Prior {recipe.prior.name!r} has about {billions:g} billion parameters, which take {_gib(needed)} in half "
            f"precision; this machine has {_gib(available)} of free memory. Take a smaller prior, or compute its "
            "features elsewhere (vega3d extract).",
            Vega3dWarning,
            stacklevel=2,
        )


def check_memory(
    memory: Mapping[str, int], recipe: RecipeSettings, device: torch.device, available: int | None
) -> None:
    """Compare a plan's memory with what a device has.

    Args:
        memory: bytes by what they are for, as the plan has them; those called rough are estimates.
        recipe: of the run.
        device: where the host will train.
        available: bytes that are free there before anything is moved; None where they are not known.

    Raises:
        TrainError: what is counted, and not estimated, does not fit on a GPU.
    """
    if available is None:
        return
    elsewhere = recipe.prior is not None and recipe.prior.device not in (None, str(device), device.type)
    needed = {name: size for name, size in memory.items() if not (name == "prior" and elsewhere)}
    if device.type == "cpu":
        # These are in memory already.
        needed = {name: size for name, size in needed.items() if name not in ("weights", "prior")}
    counted = sum(size for name, size in needed.items() if "rough" not in name)
    total = sum(needed.values())
    if total <= available:
        return
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in needed.items())
    text = (
        f"The plan takes {_gib(total)} on {device} ({parts}), and {_gib(available)} are free there. Lower it with "
        "prior.offload=true, train.gradient_checkpointing=true, train.per_device_batch_size=1, train.deepspeed, or "
        "LoRA in place of full training."
    )
    if device.type != "cpu" and counted > available:
        raise TrainError(text)
    warnings.warn(text, Vega3dWarning, stacklevel=2)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody can tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        # It comes with accelerate, and has no type hints.
        psutil: Any = importlib.import_module("psutil")
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
