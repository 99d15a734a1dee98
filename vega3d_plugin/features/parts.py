"""Parts of one clip's features on disk, so that a long extraction that was stopped can be resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..contracts.errors import StoreError, Vega3dError
from ..storage.reading import read_json
from ..storage.writing import write_atomically, write_json

_ABOUT = "parts.json"


class FolderParts:
    """Keeps the parts that a prior computes; see :class:`~vega3d_plugin.priors.frozen.prior.PartKeeper`.

    Args:
        folder: made when the first part is kept; of other features, it is emptied first.
        about: what the features depend on: the clip's key, the prior's fingerprint, the dtype.
        told: called with the parts of the last stage, by their rows, whenever one has been added.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, str],
        told: Callable[[Mapping[range, Tensor]], None] = lambda parts: None,
    ) -> None:
        self.folder, self.about, self.told = folder, dict(about), told
        self.found: dict[range, Tensor] = {}
        self.resumed = self.computed = 0
        self._is_ours: bool | None = None

    def get(self, stage: str, rows: range) -> Tensor | None:
        """A part that is there and whole, on the CPU."""
        path = self._path(stage, rows)
        if not self._ours() or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                part: Tensor = file.get_tensor("part")
        except (SafetensorError, OSError):
            # Of a disk that was full, say; it is computed again.
            return None
        self.resumed += 1
        if stage != "latents":
            self.found[rows] = part
        return part

    def put(self, stage: str, rows: range, part: Tensor) -> None:
        """Keep a part."""
        from safetensors.torch import save_file

        self._claim()
        part = part.detach().cpu().contiguous()
        write_atomically(self._path(stage, rows), lambda place: save_file({"part": part}, place), durable=False)
        self.computed += 1
        if stage != "latents":
            self.found[rows] = part
            self.told(self.found)

    def remove(self) -> None:
        """The features are whole; nothing needs to be kept."""
        if self._ours():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _ours(self) -> bool:
        if self._is_ours is None:
            try:
                path = self.folder / _ABOUT
                self._is_ours = path.is_file() and read_json(path, StoreError) == self.about
            except Vega3dError:
                self._is_ours = False
        return self._is_ours

    def _claim(self) -> None:
        if self._ours():
            return
        if self.folder.exists() and not (self.folder / _ABOUT).is_file():
            raise StoreError(
                f"{self.folder} is in the way: it holds no parts of features. Move it, or choose another file to write."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_json(self.folder / _ABOUT, self.about)
        self._is_ours = True

    def _path(self, stage: str, rows: range) -> Path:
        return self.folder / f"{stage}-{rows.start:05d}-{rows.stop:05d}.safetensors"
