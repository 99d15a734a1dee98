"""A store of feature maps, one file per clip."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..contracts.errors import StoreError
from ..contracts.priors import Prior
from ..storage.writing import write_atomically

FORMAT = 1


class FeatureStore:
    """Feature maps by clip key: in memory, and on disk when it has a folder.

    One store holds the features of one prior with one set of settings; ``store.json`` says which. Copies of a model
    share the store; a pickle carries the folder only. Any number of threads may use one store.

    Args:
        folder: where files go; None keeps features in memory only.
        memory_bytes: how much memory recent features may take, in bytes; the oldest go first.
    """

    def __init__(self, folder: str | Path | None = None, memory_bytes: int = 2 << 30) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.memory_bytes = memory_bytes
        self._recent: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0
        self._owner: dict[str, Any] | None = None
        # Held for bookkeeping alone, never while a prior works or an entry is read or written.
        self._lock = threading.Lock()

    def bind(self, prior: Prior) -> None:
        """Make sure that the store holds this prior's features, or claim an empty one for it.

        Raises:
            StoreError: the store belongs to another prior, feature dim or setting; the message has both.
        """
        owner = {
            "format": FORMAT,
            "prior": prior.settings.name if prior.settings else type(prior).__name__,
            "feature_dim": prior.feature_dim,
            "fingerprint": prior.fingerprint,
        }
        with self._lock:
            self._bind(owner)

    def _bind(self, owner: dict[str, Any]) -> None:
        found = self._owner or self._read_owner()
        if found is not None and found != owner:
            lines = [
                f"{key}: store {found.get(key)!r}, prior {owner[key]!r}"
                for key in owner
                if found.get(key) != owner[key]
            ]
            raise StoreError(
                f"The feature store {self.folder or '(in memory)'} belongs to another prior. " + "; ".join(lines) + ". "
                "Use another folder, or the prior and settings that filled this one."
            )
        if found is None and self.folder is not None:
            text = json.dumps(owner, indent=2)
            write_atomically(self.folder / "store.json", lambda path: path.write_text(text, encoding="utf-8"))
        self._owner = owner

    def get(self, key: str) -> Tensor | None:
        """The feature map ``[T', C, h, w]`` of a clip, on the CPU, or None."""
        recent = self._recall(key)
        if recent is not None:
            return recent
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            mapped = load_file(path)["features"]
            # A copy: mapped files are aligned differently from fresh memory, and kernels round by alignment. In the
            # layout that the branch wants, so that it need not convert it on every hit.
            layout = torch.channels_last if mapped.ndim == 4 else torch.preserve_format
            features = torch.empty_like(mapped, memory_format=layout).copy_(mapped)
        except (SafetensorError, KeyError, OSError) as error:
            raise StoreError(f"{path} is damaged ({error}). Delete it, and it will be computed again.") from error
        self._remember(key, features)
        return features

    def put(self, key: str, features: Tensor) -> None:
        """Keep the feature map ``[T', C, h, w]`` of a clip."""
        features = features.detach().to("cpu", copy=True)
        path = self._path(key)
        if path is not None:
            write_atomically(path, lambda temporary: save_file({"features": features.contiguous()}, temporary))
        self._remember(key, features)

    def __contains__(self, key: str) -> bool:
        path = self._path(key)
        return key in self._recent or (path is not None and path.is_file())

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.folder, self.memory_bytes)

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"

    def _read_owner(self) -> dict[str, Any] | None:
        path = None if self.folder is None else self.folder / "store.json"
        if path is None or not path.is_file():
            return None
        try:
            owner = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} is no valid JSON: {error}") from None
        if not isinstance(owner, dict):
            raise StoreError(f"{path} holds a {type(owner).__name__}, expected the owner of the store.")
        return owner

    def _recall(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
            return self._recent.get(key)

    def _remember(self, key: str, features: Tensor) -> None:
        with self._lock:
            if key in self._recent:
                self._held -= self._recent.pop(key).nbytes
            self._held += features.nbytes
            self._recent[key] = features
            while self._held > self.memory_bytes and len(self._recent) > 1:
                _, old = self._recent.popitem(last=False)
                self._held -= old.nbytes


def dtype_key(key: str, dtype: torch.dtype | None) -> str:
    """A clip key that also tells the prior's compute dtype, which rounds features differently."""
    return key if dtype in (None, torch.float32) else f"{key}-{str(dtype).removeprefix('torch.')}"
