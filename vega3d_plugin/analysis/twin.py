"""The untrained twin of a prior: its class, its size and its settings, with weights drawn from a seed.

What a twin reaches comes from the architecture, the positions and the pixels that pass through; only what a trained
prior reaches beyond it was learned.
"""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts.errors import AnalysisError
from ..contracts.priors import Prior
from ..priors.diffusion.prior import DiffusionPrior
from ..priors.frozen.prior import FrozenPrior
from ..priors.yours.function import CallablePrior

_MULTIPLIERS = ("weight", "gamma")
_SUMMANDS = ("bias", "beta")


def untrained_twin(prior: Prior, seed: int = 0) -> Prior:
    """A prior of the same class, size and settings with weights from a seed. The given one is left as it is.

    Every parameter is drawn as its kind of layer is begun with: matrices and kernels uniformly in plus or minus the
    root of 1 over their inputs (and their biases too), the multipliers of norms 1 and their summands 0, embeddings and
    free parameters (tables, tokens) normally, these divided by the root of their width. Running means and variances
    of batch norms are those of a new one: trained ones would spoil the twin, and so flatter the prior. Draws depend on
    the seed and on a parameter's name and shape alone. Latents of the untrained VAE are brought to mean 0 and variance
    1 for each channel of a clip, as those of a trained one are; else the noise would drown the picture, and the twin
    would be blamed for a wrong scale.

    Args:
        prior: built in, or a ``CallablePrior`` of an ``nn.Module``.
        seed: of the weights.

    Raises:
        AnalysisError: a prior without weights to draw: a plain function, stored features, or a class of its own.
    """
    if isinstance(prior, CallablePrior) and prior.module is not None:
        module = copy.deepcopy(prior.module)
        redraw({"module": module}, seed)
        settings = prior.settings
        return CallablePrior(
            module,
            prior.feature_dim,
            fingerprint=f"{prior.fingerprint}-untrained-{seed}",
            size=settings.size,
            resize=settings.resize,
            dtype=settings.dtype,
            device=settings.device,
        )
    if not isinstance(prior, FrozenPrior):
        raise AnalysisError(
            f"Prior {name_of(prior)!r} has no untrained twin: {type(prior).__name__} holds no modules whose weights "
            "could be drawn anew. Wrap an nn.Module in vega3d.CallablePrior to have one."
        )
    return _twin_of(prior, seed)


def name_of(prior: Prior) -> str:
    """What a prior is called."""
    return prior.settings.name if prior.settings else type(prior).__name__


def redraw(models: dict[str, nn.Module], seed: int) -> None:
    """Draw all parameters of modules anew and forget running statistics, in place; see :func:`untrained_twin`."""
    for key, model in models.items():
        for path, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                # Learned too: means and variances of the trained weights' activations, which no others have.
                module.reset_running_stats()
            for name, parameter in module.named_parameters(recurse=False):
                generator = torch.Generator().manual_seed(_seed(f"{key}.{path}.{name}", seed))
                # In place: what shares a parameter goes on sharing it.
                parameter.data.copy_(_drawn(module, name, parameter, generator))


def _drawn(module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    shape = tuple(parameter.shape)
    if isinstance(module, nn.Embedding):
        return torch.randn(shape, generator=generator)
    inputs = _inputs(module)
    if inputs and name in ("weight", "bias"):
        return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(inputs)
    if name in _MULTIPLIERS:
        return torch.ones(shape)
    if name in _SUMMANDS:
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(shape[-1] if shape else 1)


def _inputs(module: nn.Module) -> int:
    """Inputs of each output of a linear layer or a convolution; 0 for any other module."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or isinstance(module, nn.Embedding):
        return 0
    # A norm may keep its multipliers as [C, 1, 1].
    return math.prod(weight.shape[1:]) if weight.numel() > weight.shape[0] else 0


def _seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest(), "big")


def _twin_of(prior: FrozenPrior, seed: int) -> FrozenPrior:
    kind = _twin_class(type(prior))
    twin = kind.__new__(kind)
    # A prior's own deepcopy gives the prior itself.
    twin.__dict__.update({key: value for key, value in prior.__dict__.items() if key != "models"})
    twin.__dict__.update(
        models={key: copy.deepcopy(model) for key, model in prior.models.items()},
        tensors=dict(prior.tensors),
        untrained_seed=seed,
        # Nothing that was computed from the trained weights stays: the fast path is put in place anew.
        _ready=None,
        _busy=False,
        _fingerprint=None,
        _reload=None,
        progress=None,
    )
    redraw(twin.models, seed)
    return twin


def _twin_class(kind: type[FrozenPrior]) -> type[FrozenPrior]:
    class UntrainedTwin(kind):  # type: ignore[misc, valid-type]
        untrained_seed: int

        def more_identity(self) -> dict[str, Any]:
            return {**super().more_identity(), "untrained": self.untrained_seed}

        if issubclass(kind, DiffusionPrior):

            def encode(self, frames: Tensor) -> Tensor:
                latents: Tensor = super().encode(frames)
                variance, mean = torch.var_mean(latents, dim=(0, 2, 3), keepdim=True)
                return (latents - mean) / variance.clamp(min=1e-12).sqrt()

    UntrainedTwin.__name__ = UntrainedTwin.__qualname__ = f"Untrained{kind.__name__}"
    return UntrainedTwin
