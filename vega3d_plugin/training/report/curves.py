"""Lines over the steps of a run: losses, learning rates, shares."""

from __future__ import annotations

from collections.abc import Sequence

from ...analysis.report.blocks import Line, Lines
from ..run_log import Logged
from ..samples import evenly
from ..validation import LOSS

#: Points of a line at most; more cannot be told apart on a screen.
MOST = 600
STEPS = "optimiser steps"
KINDS = ("image", "video", "scene")


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most :data:`MOST` points, evenly spread, the last among them."""
    return evenly(points, MOST)


def loss_lines(logged: Logged) -> Lines:
    """Training and validation loss."""
    lines = [Line("training", thinned(logged.points("loss")))]
    validation = logged.points(LOSS)
    if validation:
        lines.append(Line("validation", thinned(validation), dashed=True))
    return Lines("Loss", lines, STEPS, "Mean negative log-likelihood of a token of the answers, in nats.")


def rate_lines(logged: Logged) -> Lines:
    """Learning rate of each part."""
    names = [name for name in logged.names if name.startswith("learning_rate/")] or ["learning_rate"]
    lines = [Line(name.partition("/")[2] or "all parts", thinned(logged.points(name))) for name in names]
    return Lines("Learning rates", lines, STEPS)


def share_lines(logged: Logged) -> list[Lines]:
    """Effective share of the prior, relative change and scale; none where there is no branch."""
    charts = []
    shares = [Line(kind, thinned(logged.points(f"share/{kind}/generative"))) for kind in KINDS]
    if any(line.points for line in shares):
        about = "Mean effective share of the generative tokens in a fused one. The host's share is the rest."
        charts.append(Lines("Share of the prior", [line for line in shares if line.points], STEPS, about))
    changes = [Line(kind, thinned(logged.points(f"change/{kind}"))) for kind in KINDS]
    if any(line.points for line in changes):
        about = "Mean of |fused - host| / |host| over the tokens."
        charts.append(Lines("Relative change of a token", [line for line in changes if line.points], STEPS, about))
    scale = thinned(logged.points("branch/a"))
    if scale:
        charts.append(Lines("Learned scale a", [Line("a", scale)], STEPS, "The branch changes nothing at a = 0."))
    return charts
