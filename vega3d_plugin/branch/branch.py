"""The generative branch: clip -> feature map -> align -> project -> fuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts.clips import Clip
from ..contracts.errors import AlignmentError, FramesError, FrozenBranchError, HostError, PriorError
from ..contracts.pixel_statistics import out_of_range
from ..contracts.priors import Prior, turn
from ..contracts.settings import BranchSettings
from ..contracts.shares import measured_shares
from ..features.store import FeatureStore, dtype_key
from ..storage.record import RECORD_BYTES, encode_record, make_record
from . import calls
from .alignment import align_clip, cut_of, grid_of, together
from .blocks import Recorder, open_blocks, switches
from .copies import running
from .first_step import watch_first_steps
from .fusers.build import build_fuser
from .history import History
from .positions import SinusoidEmbedding, discretised
from .projectors import build_projector, parameter_dtype, project
from .records import check_loaded

if TYPE_CHECKING:
    from ..contracts.seams import Seam


class GenerativeBranch(nn.Module):
    """What ``patch`` adds, as ONE submodule ``vega3d`` of the seam's module.

    Trains: ``projector`` and ``fuser``. Frozen and not registered: the prior. The buffer ``record`` holds what is
    needed to build the branch again, so that any checkpoint of the host or of PEFT is enough by itself.

    Args:
        settings: of the branch.
        prior: the frozen prior; copies of the branch share it.
        seam: where the branch sits.
        host: name of the host's adapter.
        store: features already computed, or None.
    """

    record: Tensor

    def __init__(
        self, settings: BranchSettings, prior: Prior, seam: Seam, host: str, store: FeatureStore | None = None
    ) -> None:
        super().__init__()
        # Tracing a frozen model in every host's graph takes minutes; and what is asked of a branch from outside must be
        # looked at in every call. Not done at import, where it would load dynamo, which takes a second.
        keep_out_of_graphs(GenerativeBranch, "features", "aligned", "switches", "_recorders")
        settings = settings.with_prior(settings.prior if prior.settings is None else prior.settings)
        fusion = settings.fusion
        self.settings, self.prior, self.seam, self.host, self.store = settings, prior, seam, host, store
        self.projector = build_projector(
            settings.projector.name,
            prior.feature_dim,
            seam.hidden_size,
            hidden_dim=settings.projector.hidden_dim,
            merge=seam.merge,
        )
        self.fuser = build_fuser(fusion.name, seam.hidden_size, init=fusion.init, **fusion.options_for())
        if fusion.init == "identity" and self.fuser.identity == "zero_generative":
            self.projector.zero_output()
        self.register_buffer("record", torch.zeros(RECORD_BYTES, dtype=torch.uint8))
        #: Off: tokens pass unchanged. Zeroed: the generative tokens are zero. For all threads, until they are set
        #: back; ``vega3d.disabled`` and ``vega3d.zeroed`` are for the calls inside a block.
        self.enabled = True
        self.zeroed = False
        #: False after ``handle.freeze()``: then a frozen branch in training is no mistake.
        self.trainable = True
        #: Earlier observations of a policy, see :mod:`~vega3d_plugin.branch.history`.
        self.history = History(settings.history)
        #: Under which the state of calls and open blocks are found; the branch itself has none.
        self.key = calls.BranchKey()
        #: Record of a branch with another prior that was loaded on purpose (``allow_prior``).
        self.accepts: dict[str, Any] | None = None
        watch_first_steps(self)

    @property
    def fired(self) -> int:
        """How often the seam has fused tokens in this thread since the host's forward last returned."""
        return calls.fired(self.key)

    @property
    def uses_instruction(self) -> bool:
        """Whether the fuser has to be told what is asked."""
        return self.fuser.uses_context

    def switches(self) -> frozenset[str]:
        """Those of ``disabled`` and ``zeroed`` that are on for a call in this thread."""
        everywhere = {"disabled": not self.enabled, "zeroed": self.zeroed}
        return switches(self.key) | {name for name, on in everywhere.items() if on}

    def forward(
        self,
        tokens: Tensor | None,
        clips: Sequence[Clip] = (),
        *,
        acting: bool = True,
        context: Tensor | None = None,
        points: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Fuse the prior's features into a host's visual tokens.

        Args:
            tokens: ``[L, D]``, all clips one after the other, each in raster order (t, h, w); None for a batch
                without any, which gives a scalar zero that depends on every parameter (DDP waits for their
                gradients).
            clips: the clips of these tokens.
            acting: False for rows that are no step of an episode, so that no history is kept.
            context: ``[len(clips), D]``, the instruction of each clip, for a fuser that uses it.
            points: of each clip the world points of its tokens ``[t, h, w, 3]`` in metres, for ``positions="sin3d"``.

        Returns:
            ``[L, D]`` in the dtype of ``tokens``.

        Raises:
            AlignmentError: the clips' grids do not have ``L`` tokens.
            FrozenBranchError: training, but something else froze the branch.
            FramesError, PriorError: frames or features that cannot be used.
            HostError: the branch adds positions and got no points.
        """
        if tokens is None:
            return self._touch(self.parameters())
        if not clips or "disabled" in self.switches():
            return tokens
        if points is None and self.settings.positions != "none":
            raise HostError(
                f"This branch adds positions ({self.settings.positions!r}) and was called without points: pass the "
                "world points of each clip's tokens, [t, h, w, 3]."
            )
        self._check_tokens(tokens, clips)
        self._check_trainable()
        clips = self.history.extend(clips, keep=acting and not (self.training or torch.is_grad_enabled()))
        dtype = parameter_dtype(self) or tokens.dtype
        fused = []
        start = first = 0
        # Clips of one frame size go through projector and fuser together.
        for size, group in groupby(clips, key=lambda clip: (clip.grid.h, clip.grid.w)):
            members = list(group)
            rows = sum(clip.grid.t for clip in members)
            count = rows * size[0] * size[1]
            semantic = tokens[start : start + count].to(dtype).reshape(rows, *size, -1)
            generative = self.generative_tokens(members, tokens.device, dtype)
            asked = None if context is None else context[first : first + len(members)]
            fused.append(self._fused(semantic, generative, members, asked).reshape(count, -1))
            start, first = start + count, first + len(members)
        idle = list(self.fuser.idle_parameters(context))
        out = torch.cat(fused) if len(fused) > 1 else fused[0]
        if dtype.itemsize < tokens.dtype.itemsize:
            # What the branch changes is added, so that a branch that changes nothing leaves every bit of them.
            out = tokens + (out - tokens.to(dtype)).to(tokens.dtype)
        if idle and torch.is_grad_enabled():
            out = out + self._touch(idle).to(out.dtype)
        out = out.to(tokens.dtype)
        if points is None:
            return out
        places = torch.cat([each.reshape(-1, 3) for each in points]).to(out.device)
        embedded: Tensor = SinusoidEmbedding(self.seam.hidden_size)(discretised(places))
        return out + embedded.to(out.dtype)

    def generative_tokens(self, clips: Sequence[Clip], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Projected features of clips that share one frame size: ``[sum of t, h, w, D]``."""
        maps = []
        for clip in clips:
            maps.append(self.aligned(clip, device)[clip.past :])
        generative = project(self.projector, torch.cat(maps).to(dtype))
        return generative * 0 if "zeroed" in self.switches() else generative

    def aligned(self, clip: Clip, device: torch.device) -> Tensor:
        """A clip's features on its grid of patches, ``[past + t, C, h, w]``; from the store when it has them."""
        whole = self._whole(clip)
        if whole is not clip:
            # On this view's grid, as one of them.
            return self.aligned(whole, device)[clip.place : clip.place + 1]

        def resample(features: Tensor) -> Tensor:
            space, placement, merge = self.settings.space, self.settings.placement, self.projector.merge
            return align_clip(features.to(device), clip, self.prior, merge, space, placement)

        if self.store is None or not self.store.form.aligned:
            return resample(self.features(clip))
        return self._kept(clip, self.store, resample).to(device)

    def features(self, clip: Clip) -> Tensor:
        """The prior's feature map ``[T', C, h, w]`` of a clip, from the store when it has it."""
        clip = self._whole(clip)
        if self.store is None or self.store.form.aligned:
            with _undisturbed(clip), turn(self.prior):
                return self._computed(clip)
        return self._kept(clip, self.store, lambda features: features)

    def _whole(self, clip: Clip) -> Clip:
        """The clip; for a view among views of other sizes all of them, as the prior sees them."""
        return clip if clip.scene is None or clip.frames is clip.scene.seen else together(clip, self.prior)

    def entry_name(self, clip: Clip, store: FeatureStore) -> str:
        """The name of a clip's entry in a store, by the store's form."""
        clip = self._whole(clip)
        key = dtype_key(clip.key, self.prior.dtype_on(clip.frames.device))
        # A map of a part is another where it was moved to its own place.
        placed = self.settings.placement != "stretched" and cut_of(clip, self.prior) is not None
        space = self.settings.space + ("_placed" if placed else "")
        return store.form.name(key, grid_of(clip, self.projector.merge), space)

    def fill(self, clip: Clip) -> None:
        """Have the store keep a clip's map in its form, as a forward would."""
        if self.store is not None and self.store.form.aligned:
            self.aligned(clip, clip.frames.device)
        else:
            self.features(clip)

    def _kept(self, clip: Clip, store: FeatureStore, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """The store's map of a clip, else the prior's, finished in the store's form, and then kept."""
        with _undisturbed(clip):
            name = self.entry_name(clip, store)
            features = store.get(name)
            if features is None:
                with turn(self.prior):
                    # Another thread may have been there while this one waited.
                    features = store.get(name)
                    if features is None:
                        features = finish(self._computed(clip))
                        kept = store.put(name, features)
                        # What the next epoch will read.
                        features = kept if store.form.numbers else features
            return _channels_last(features)

    def _computed(self, clip: Clip) -> Tensor:
        """The prior's map; of views of several sizes it is computed once for all of them."""
        views = clip.scene
        if views is None:
            return _channels_last(self._extract(clip))
        if views.features is None:
            views.features = _channels_last(self._extract(clip))
        return views.features

    def _fused(self, semantic: Tensor, generative: Tensor, clips: Sequence[Clip], context: Tensor | None) -> Tensor:
        """Tokens ``[sum of t, h, w, D]`` of these clips, fused; their shares go to whoever records them."""
        recorders = self._recorders()
        if context is not None:
            rows = torch.tensor([clip.grid.t for clip in clips], device=context.device)
            context = context.repeat_interleave(rows, dim=0).to(semantic.device)
        if not recorders:
            return self.fuser(semantic, generative, context=context)  # type: ignore[no-any-return]
        with measured_shares() as found:
            fused: Tensor = self.fuser(semantic, generative, context=context)
        shares = found[-1].split([clip.grid.t for clip in clips])
        for recorder in recorders:
            recorder(clips, shares)
        return fused

    def _recorders(self) -> list[Recorder]:
        return [block.recorder for block in open_blocks(self.key) if block.recorder is not None]

    def _extract(self, clip: Clip) -> Tensor:
        # The prior checks its frames; a stub or a third party's may take what it likes.
        try:
            features = self.prior(clip.frames)
        except FramesError as error:
            problem = out_of_range(clip.frames, self.seam.statistics, self.seam.statistics_source)
            raise (FramesError(f"Host {self.host!r}: {problem}") if problem else error) from error
        if features.ndim != 4 or features.shape[1] != self.prior.feature_dim:
            raise PriorError(
                f"Prior {type(self.prior).__name__} returned {list(features.shape)}, "
                f"expected a feature map [T', {self.prior.feature_dim}, h, w]."
            )
        if not bool(torch.isfinite(features).all()):
            if not bool(torch.isfinite(clip.frames).all()):
                raise FramesError(
                    f"Host {self.host!r} was given pixels with NaN or infinity, in a clip of frames "
                    f"{list(clip.frames.shape)}. Look at what the data pipeline makes of this image or video."
                )
            raise PriorError(
                f"Prior {type(self.prior).__name__} returned NaN or infinity in {features.dtype}. "
                "Use dtype bfloat16 or float32 for the prior."
            )
        return features

    def _check_tokens(self, tokens: Tensor, clips: Sequence[Clip]) -> None:
        expected = sum(clip.grid.tokens for clip in clips)
        if tokens.ndim != 2 or tokens.shape[0] != expected or tokens.shape[1] != self.seam.hidden_size:
            grids = ", ".join(f"({c.grid.t}, {c.grid.h}, {c.grid.w})" for c in clips[:6])
            raise AlignmentError(
                f"Host {self.host!r} gave tokens {list(tokens.shape)} at {self.seam.path!r}, but its {len(clips)} "
                f"clip(s) with grids (t, h, w) {grids}{', ...' if len(clips) > 6 else ''} have {expected} tokens of "
                f"size {self.seam.hidden_size}."
            )

    def _check_trainable(self) -> None:
        if not (self.training and self.trainable and torch.is_grad_enabled()):
            return
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise FrozenBranchError(
                "The branch is in training, but all its parameters are frozen, so it would not learn: most likely "
                "PEFT froze it. Add modules_to_save=['vega3d'] to the LoraConfig (it is then trained and saved with "
                "the adapter), or call vega3d.get_handle(model).freeze() if that is what you want."
            )

    def _touch(self, parameters: Iterator[nn.Parameter] | Sequence[nn.Parameter]) -> Tensor:
        terms = [parameter.float().sum() * 0 for parameter in parameters if parameter.requires_grad]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def make_record(self) -> dict[str, Any]:
        """What is needed to build this branch again, and to tell whether it fits; see ``storage/record.py``."""
        return make_record(
            self.settings,
            host=self.host,
            hidden_size=self.seam.hidden_size,
            merge=self.seam.merge,
            feature_dim=self.prior.feature_dim,
            fingerprint=self.prior.fingerprint,
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.record.copy_(encode_record(self.make_record()).to(self.record.device))
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        where = f"{prefix}record of the state dictionary"
        check_loaded(state_dict.get(f"{prefix}record"), where, self.make_record, self.accepts)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and unpickled branches; those of earlier versions lack what is newer.
        super().__setstate__({"accepts": None, **state})  # type: ignore[no-untyped-call]
        watch_first_steps(self)

    def extra_repr(self) -> str:
        """Host, prior and state."""
        state = "".join(f", {name}" for name in sorted(self.switches()))
        return f"host={self.host!r}, prior={self.prior!r}, space={self.settings.space!r}{state}"


@contextmanager
def _undisturbed(clip: Clip) -> Iterator[None]:
    """Features outlive a call in the store, so they must not be inference tensors; nor does autocast change them."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(clip.frames.device.type, enabled=False):
        yield


def _channels_last(features: Tensor) -> Tensor:
    """One memory layout, whether computed now or read from a store: kernels round by layout.

    Channels last is what transformers give and projectors take, and in it resampling is 14 times faster (32 maps of
    1536 x 30 x 52 to 16 x 16 on two CPU cores).
    """
    return features.contiguous(memory_format=torch.channels_last)


def keep_out_of_graphs(owner: Any, *names: str) -> None:
    """Have ``torch.compile`` run these methods of a class, or functions of a module, as they are."""
    for name in names:
        function = getattr(owner, name)
        if not hasattr(function, "_torchdynamo_orig_callable"):
            setattr(owner, name, torch.compiler.disable(function))


def active_branch(child: nn.Module) -> GenerativeBranch:
    """The branch itself, when PEFT has wrapped it (``modules_to_save``) the copy that is active."""
    return running(child)  # type: ignore[return-value]
