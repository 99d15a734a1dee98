"""``external``: features that were computed elsewhere (SEVA, Vmem, any other program), one file per clip.

A file is named after the clip's content key, ``<key>.safetensors`` or ``<key>.npy``, in the folder or in a subfolder
named after the key's first two characters, as a feature store has them (the folder of a
:class:`~vega3d_plugin.features.FeatureStore` works as it is). It holds one map ``[T', C, h, w]`` of floating point; a
``.safetensors`` file holds one tensor, or one named ``features``.

How to make such a folder: the key is ``vega3d.clip_key(frames)`` of the frames as the host sees them,
``[T, 3, H, W]`` in [0, 1], after its processor has resized them. To get these frames, patch the host with a prior of
one's own that writes them down, and run the data through it once::

    def note(frames):
        torch.save(frames, f"frames/{clip_key(frames)}.pt")
        return frames.new_zeros(frames.shape[0], 8, 1, 1)

    vega3d.patch(model, prior=CallablePrior(note, feature_dim=8, fingerprint="none"))

Then compute a map for each clip and save it under the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ...contracts.clips import check_frames, clip_key
from ...contracts.errors import CheckpointError, PriorError
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.arrays import read_array
from ...storage.folders import local_folder
from ...storage.reading import open_safetensors
from ..catalogue.external import ExternalOptions
from ..frozen.fingerprint import fingerprint

SUFFIXES = (".safetensors", ".npy")
#: What a feature store adds to the key when the prior computed in half precision.
DTYPES = ("", "-bfloat16", "-float16")


class ExternalPrior(Prior):
    """Features of clips from a folder.

    Args:
        folder: with the files.
        settings: resolved settings, with the options of :class:`ExternalOptions`.

    Raises:
        CheckpointError: a folder without features, or a first file that cannot be used.
    """

    #: Files are only read.
    concurrent: ClassVar[bool] = True
    #: Settings that change a feature; the options do.
    identity: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, settings: PriorSettings) -> None:
        self.folder = folder
        self.settings: PriorSettings = settings
        self.options = ExternalOptions.parse(settings.options)
        first = min(self._files(), default=None)
        if first is None:
            raise CheckpointError(
                f"{folder} holds no features: expected files <clip key>.safetensors or <clip key>.npy, in it or in "
                "subfolders of two characters. vega3d_plugin.contracts.clips.clip_key(frames) gives the key of a clip."
            )
        self.feature_dim = self.options.feature_dim or self._read(first).shape[1]

    def __call__(self, frames: Tensor) -> Tensor:
        """Look a clip's features up.

        Args:
            frames: ``[T, 3, H, W]`` in [0, 1].

        Returns:
            ``[T', C, h, w]`` on the frames' device, in the file's dtype unless a dtype was asked for.

        Raises:
            FramesError: frames of a wrong shape, dtype or range.
            PriorError: the folder has no features of this clip.
            CheckpointError: a file that is damaged, or of another shape, dtype or number of channels.
        """
        key = clip_key(check_frames(frames, f"Prior {self.settings.name!r}"))
        file = next((path for path in self._places(key) if path.is_file()), None)
        if file is None:
            known = sorted(path.name for path in self._files())
            raise PriorError(
                f"{self.folder} has no features of clip {key} (frames {list(frames.shape)}). It has {len(known)} "
                f"files such as {known[0] if known else '(none)'}. Compute them, save them as {key}.safetensors and "
                "try again; keys are vega3d.clip_key(frames) of the frames as the host sees them."
            )
        # Features may be kept and used in training later, so they must not be inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            features = self._read(file)
            if features.shape[1] != self.feature_dim:
                raise CheckpointError(
                    f"{file} has {features.shape[1]} channels (shape {list(features.shape)} in layout "
                    f"{self.options.layout!r}), expected {self.feature_dim}."
                )
            return features.to(self.settings.device or frames.device, self.dtype_on(frames.device))

    def holds(self, key: str) -> bool:
        """Whether there is a file of features of the clip with this key."""
        return any(path.is_file() for path in self._places(key))

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Of the settings and of ``made_by``, else of the names and sizes of all files.

        Not of their contents, which may be terabytes: a file that is overwritten by one of equal size is not noticed.
        """
        made_by = self.options.made_by
        files = sorted((p.relative_to(self.folder).as_posix(), p.stat().st_size) for p in self._files())
        values = {
            "family": "external",
            "feature_dim": self.feature_dim,
            "layout": self.options.layout,
            "made_by": made_by or files,
        }
        return fingerprint({}, {}, values)

    def _files(self) -> Iterator[Path]:
        for suffix in SUFFIXES:
            yield from self.folder.glob(f"*{suffix}")
            yield from self.folder.glob(f"??/*{suffix}")

    def _places(self, key: str) -> Iterator[Path]:
        for dtype in DTYPES:
            for suffix in SUFFIXES:
                yield self.folder / f"{key}{dtype}{suffix}"
                yield self.folder / key[:2] / f"{key}{dtype}{suffix}"

    def _read(self, file: Path) -> Tensor:
        """A map ``[T', C, h, w]`` from a file."""
        features = _read_npy(file) if file.suffix == ".npy" else _read_safetensors(file)
        layout = self.options.layout
        shape = "[T', C, h, w]" if layout == "tchw" else "[T', h, w, C]"
        if features.ndim != 4 or min(features.shape) < 1:
            raise CheckpointError(f"{file} has shape {list(features.shape)}, expected {shape} (layout {layout!r}).")
        if not features.is_floating_point():
            raise CheckpointError(f"{file} has dtype {features.dtype}, expected floating point.")
        return features if layout == "tchw" else features.movedim(-1, 1)


def _read_safetensors(file: Path) -> Tensor:
    with open_safetensors(file, CheckpointError, "Write it again.") as opened:
        names = list(opened.keys())
        name = names[0] if len(names) == 1 else "features"
        if name not in names:
            raise CheckpointError(
                f"{file} holds the tensors {', '.join(sorted(names)[:5]) or 'none'}, expected one, or one named "
                "'features'."
            )
        # A copy: what is mapped from a file is aligned differently, and kernels round by alignment.
        tensor: Tensor = opened.get_tensor(name).clone()
    return tensor


def _read_npy(file: Path) -> Tensor:
    array = read_array(file, CheckpointError)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CheckpointError(
            f"{file} has dtype {array.dtype}, expected float16, float32 or float64 (bfloat16 needs .safetensors)."
        )
    return torch.from_numpy(array)


def load_external(settings: PriorSettings) -> Prior:
    """Features from the folder ``settings.pretrained``.

    Raises:
        CheckpointError: no folder, one without features, or a first file that cannot be used.
    """
    who = f"Prior {settings.name!r}"
    if not settings.pretrained:
        raise CheckpointError(f"{who} needs `pretrained`: the folder with the features, one file per clip.")
    folder = local_folder(settings.pretrained, CheckpointError, who)
    if folder is None:
        raise CheckpointError(
            f"{who}: {settings.pretrained!r} is no folder here. `external` does not download from the hub."
        )
    return ExternalPrior(folder, settings)
