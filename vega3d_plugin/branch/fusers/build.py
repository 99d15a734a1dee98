"""Build a fuser by name."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from ...contracts.errors import FusionError, Vega3dError, near_misses
from ...contracts.fusers import Fuser
from ...contracts.printable import brief, first_line
from ...contracts.tables import FUSERS, starts_as_identity

Init = Literal["identity", "released"]


def build_fuser(name: str, hidden_size: int, *, init: Init = "released", **options: Any) -> Fuser:
    """Build a fuser.

    Args:
        name: a registered fuser, see :func:`list_fusers`.
        hidden_size: size ``D`` of the tokens.
        init: ``released``: as the released code starts; ``identity``: so that the output equals the semantic tokens
            (``add``: for zero features).
        options: of the method, by the released names: ``num_heads``, ``num_layers``, ``dropout``
            (``cross_attention``), ``residual_scale`` (``token_gated_residual``). The released configuration carries
            the first three for every method, so a method without attention accepts and ignores them.

    Raises:
        UnknownNameError: no such fuser; the message names close matches.
        FusionError: unknown option, or ``init="identity"`` for a method that cannot start as one.
    """
    fuser_class = FUSERS.get(name)
    accepted = {p for p in inspect.signature(fuser_class).parameters if p not in ("self", "hidden_size")}
    released = {"num_heads", "num_layers", "dropout"}
    unknown = sorted(set(options) - accepted - released)
    if unknown:
        hints = "".join(near_misses(key, accepted | released) for key in unknown)
        raise FusionError(
            f"Fusion {name!r} has no option {', '.join(map(repr, unknown))}.{hints} "
            f"Options: {', '.join(sorted(accepted)) or 'none'}."
        )
    if init == "identity" and fuser_class.identity is None:
        able = ", ".join(n for n in FUSERS.names() if starts_as_identity(n))
        raise FusionError(
            f"Fusion {name!r} cannot start as identity: it replaces or normalises the semantic tokens. "
            f"Use init='released', or one of: {able}."
        )
    if init not in ("identity", "released"):
        raise FusionError(f"Unknown init {init!r}. Known: 'identity', 'released'.")
    chosen = {key: value for key, value in options.items() if key in accepted}
    try:
        fuser = fuser_class(hidden_size, **chosen)
        if init == "identity":
            fuser.make_identity()
    except Vega3dError:
        raise
    except Exception as error:
        raise FusionError(
            f"Fusion {name!r} cannot be built for tokens of size {hidden_size} with {brief(chosen)} "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error
    return fuser


def list_fusers() -> list[str]:
    """Names of all registered fusers."""
    return FUSERS.names()
