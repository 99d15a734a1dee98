"""``callable``: the user's own function or module as a prior, without writing a plugin.

A function that can be imported is named by its import string, in Python or in YAML::

    vega3d.load_prior("callable", function=extract, feature_dim=384)
    prior: {name: callable, options: {target: "my_package.features:extract", feature_dim: 384, trust: true}}

Anything else (a lambda, a closure, a module with weights) is wrapped::

    vega3d.patch(model, prior=vega3d.CallablePrior(encoder, feature_dim=384))

Importing a function runs its module's code. So a target is imported only on the user's word: the function itself, or
``trust: true``. The word holds for the process and is no part of the settings, so it is never saved; a saved branch
cannot give it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.clips import check_frames
from ...contracts.errors import PriorError, near_misses
from ...contracts.priors import Prior, turn
from ...contracts.settings import PriorSettings
from ..catalogue.function import CallableOptions, describe, import_string, is_trusted
from ..frozen.fingerprint import fingerprint
from ..frozen.resizing import resize_crop, resize_stretch

#: ``[T, 3, H, W]`` in [0, 1] to ``[T', C, h, w]``.
Function = Callable[[Tensor], Tensor]

#: Frames that a function without a known feature dim is tried with.
TRIAL = (224, 224)


class CallablePrior(Prior):
    """A function or module of the user's own as a prior.

    It is called with a whole clip, ``[T, 3, H, W]`` in [0, 1] on the clip's device, float32 (a module: in the dtype of
    its weights), without gradients and without autocast, and returns ``[T', C, h, w]``. A module is put into eval mode,
    frozen, and moved to the frames' device; the module itself, not a copy. Calls from several threads take turns.

    Args:
        function: from frames to features.
        feature_dim: channels ``C``; default: found by calling it with two grey frames.
        fingerprint: names what the features depend on; change it when they change. Default: the weights of a module
            and where it is defined, or the import string of a function; and ``version``. Changes of code are not
            noticed. A function that cannot be imported by a name has no default.
        version: part of the default fingerprint.
        size: height and width that frames are resized to; default: they are left as they are.
        resize: ``crop`` or ``stretch``.
        dtype: of the frames, and of a module's weights.
        device: where it runs; default: wherever the frames are.

    Raises:
        PriorError: not callable, without an identity, or a trial that does not give a feature map.
    """

    #: Settings that change a feature.
    identity: ClassVar[tuple[str, ...]] = ("size", "resize")

    def __init__(
        self,
        function: Function,
        feature_dim: int | None = None,
        *,
        fingerprint: str | None = None,
        version: str = "",
        size: tuple[int, int] | None = None,
        resize: str = "crop",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        # What can be made again from its settings is described by them.
        target = None if fingerprint is not None else import_string(function)
        options = {"target": target, "feature_dim": feature_dim, "version": version}
        values = {"size": size, "resize": resize, "dtype": dtype, "device": device, "context": "views"}
        settings = PriorSettings.parse({"name": "callable", "options": options, **values})
        self._set_up(function, settings, fingerprint)

    @classmethod
    def from_settings(cls, function: Function, settings: PriorSettings) -> CallablePrior:
        """With resolved settings, whose options are those of :class:`CallableOptions`."""
        prior = cls.__new__(cls)
        prior._set_up(function, settings, None)
        return prior

    def _set_up(self, function: Function, settings: PriorSettings, given: str | None) -> None:
        if not callable(function):
            raise PriorError(f"Prior 'callable' needs a function or a module, got {describe(function)}.")
        self.function = function
        self.module = function if isinstance(function, nn.Module) else None
        self.settings: PriorSettings = settings
        self._given = given
        if given is None and self.module is None and settings.options.get("target") is None:
            raise PriorError(
                f"{describe(function)} cannot be imported by a name, so features of one could be taken for those of "
                "another. Pass fingerprint= a text that names what they depend on, and change it when that changes."
            )
        if self.module is not None:
            self.module.eval().requires_grad_(False)
            if settings.dtype is not None:
                self.module.to(getattr(torch, settings.dtype))
        options = CallableOptions.parse({k: v for k, v in settings.options.items() if k != "target"})
        self.feature_dim = options.feature_dim or self._tried()

    def __call__(self, frames: Tensor) -> Tensor:
        """Call the function; see :class:`Prior`.

        Args:
            frames: ``[T, 3, H, W]`` in [0, 1].

        Returns:
            ``[T', C, h, w]``, without gradient.

        Raises:
            FramesError: frames of a wrong shape, dtype or range.
            PriorError: what it returned is no feature map of ``feature_dim`` channels.
        """
        frames = check_frames(frames, f"Prior {self.settings.name!r}")
        with turn(self):
            features = self._map(frames)
        if features.shape[1] != self.feature_dim:
            raise PriorError(
                f"{describe(self.function)} returned {list(features.shape)}, which has {features.shape[1]} channels; "
                f"its feature_dim is {self.feature_dim}: expected [T', {self.feature_dim}, h, w]."
            )
        return features

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """The one given, else of a module's weights, the import string, ``version`` and the size."""
        if self._given is not None:
            return self._given
        s, kind = self.settings, type(self.function)
        values = {
            "family": "callable",
            "target": s.options.get("target") or f"{kind.__module__}:{kind.__qualname__}",
            "version": s.options.get("version", ""),
            "feature_dim": self.feature_dim,
            "size": None if s.size is None else [*s.size, s.resize],
        }
        if self.module is None:
            return fingerprint({}, {}, values)
        # Buffers too: a batch norm's statistics are some.
        return fingerprint({"module": self.module}, dict(self.module.named_buffers()), values)

    def dtype_on(self, device: torch.device) -> torch.dtype | None:
        """What was asked for, else the dtype of a module's weights; None for a function."""
        return super().dtype_on(device) or self._weights_dtype()

    def _weights_dtype(self) -> torch.dtype | None:
        parameters = self.module.parameters() if self.module is not None else ()
        return next((p.dtype for p in parameters if p.is_floating_point()), None)

    def _tried(self) -> int:
        # Where a module is already.
        parameters = self.module.parameters() if self.module is not None else ()
        device = next((p.device for p in parameters), torch.device("cpu"))
        grey = torch.full((2, 3, *(self.settings.size or TRIAL)), 0.5, device=device)
        try:
            return self._map(grey).shape[1]
        except PriorError:
            raise
        except Exception as error:
            raise PriorError(
                f"{describe(self.function)} could not be tried with two grey frames {list(grey.shape)} on {device} "
                f"({type(error).__name__}: {error}). Say how many channels its maps have: feature_dim."
            ) from error

    def _map(self, frames: Tensor) -> Tensor:
        device = torch.device(self.settings.device) if self.settings.device else frames.device
        # Features may be kept and used in training later, so they must not be inference tensors.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            frames = frames.to(device).float()
            if self.settings.size is not None:
                resize = resize_crop if self.settings.resize == "crop" else resize_stretch
                frames = resize(frames, self.settings.size)
            frames = frames.clone() if frames.is_inference() else frames
            if self.module is not None:
                self.module.to(device)
            features: Any = self.function(frames.to(self.dtype_on(device) or torch.float32))
            if not isinstance(features, Tensor):
                raise PriorError(f"{describe(self.function)} returned {describe(features)}, expected [T', C, h, w].")
            if features.ndim != 4 or min(features.shape) < 1 or not features.is_floating_point():
                raise PriorError(
                    f"{describe(self.function)} returned {features.dtype} of shape {list(features.shape)}, expected "
                    "floating point of [T', C, h, w]."
                )
            return features.clone() if features.is_inference() else features.detach()

    def __repr__(self) -> str:
        return f"CallablePrior({describe(self.function)}, feature_dim={self.feature_dim})"


def load_callable(settings: PriorSettings) -> Prior:
    """Import the target and wrap it.

    Raises:
        PriorError: no target, one that the user has not given his word for, or one that cannot be imported or used.
    """
    target = settings.options.get("target")
    if target is None:
        raise PriorError(
            "Prior 'callable' has no target. Pass function= or the option target='package.module:name'; a branch that "
            "was trained with a function or module that has no such name is loaded with prior=CallablePrior(...)."
        )
    if not is_trusted(target):
        raise PriorError(
            f"Prior 'callable' names {target!r}, and importing it runs its code. If that code is yours, say so: pass "
            f"the function itself (prior=vega3d.load_prior('callable', function=...)), or the option trust: true. "
            "That a saved branch names it is not enough."
        )
    function = _imported(target)
    return CallablePrior.from_settings(function() if isinstance(function, type) else function, settings)


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise PriorError(
            f"Prior 'callable': {module!r} could not be imported ({type(error).__name__}: {error}). Is it installed, "
            "or its folder on PYTHONPATH?"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise PriorError(f"Prior 'callable': {module!r} has no {name!r}.{near_misses(part, dir(found))}")
        found = getattr(found, part)
    return found
