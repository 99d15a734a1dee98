"""A read-out result as text and as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import ITSELF
from ..tables import aligned
from .results import CONTROLS, FEW, PriorReadout, ReadoutResult

#: Controls that features with anything learned of space should beat.
_RIVALS = ("untrained twin", "VAE alone", "pixels", "position only", "random")


def readout_table(result: ReadoutResult) -> str:
    """See :meth:`ReadoutResult.table`."""
    first = result.priors[0]
    lines = [
        f"Read-outs ({result.options.get('size', 'small')}), trained on {len(first.training)} scenes, judged on "
        f"{len(first.held_out)} others. 95% intervals by bootstrap over these.",
        "",
    ]
    rows = []
    for readout, control, figures in result.rows():
        label = readout.label if control == ITSELF else f"  {control}"
        rows.append([label, *(str(value) for value in figures.values())])
    lines += aligned([["", *result.figures], *rows])
    for readout in result.priors:
        lines += [f"  {readout.label}, no {name}: {reason}" for name, reason in readout.absent.items()]
    lines += ["", *(f"{name}: {what}." for name, what in result.figures.items())]
    return "\n".join([*lines, "", *readout_findings(result)])


def readout_findings(result: ReadoutResult) -> list[str]:
    """See :meth:`ReadoutResult.findings`."""
    found = list(result.notes)
    for readout in result.priors:
        if len(readout.held_out) < FEW:
            found.append(
                f"{readout.label}: {len(readout.held_out)} scenes are held out, too few to tell it from its controls."
            )
        else:
            found += [line for name in result.headlines for line in _against(result, readout, name)]
        found += _by_heart(result, readout)
        missing = [control for control in CONTROLS if control not in readout.controls]
        if missing:
            found.append(f"{readout.label}: judged without these controls: {', '.join(missing)}.")
    found.append(
        "A good read-out says that a small head can read space from the features. It does not say that a language "
        "model would: that is what `vega3d ablate` measures."
    )
    return found


def _against(result: ReadoutResult, readout: PriorReadout, figure: str) -> list[str]:
    """Whether a figure is better than its controls."""
    rivals = [control for control in _RIVALS if control in readout.controls]
    verdicts = {c: result.better(figure, readout.difference(figure, c)) for c in rivals}
    better = [c for c in rivals if verdicts[c]]
    worse = [c for c in rivals if verdicts[c] is False]
    open_ones = [c for c in rivals if verdicts[c] is None]
    parts = []
    if better:
        parts.append(f"better than {_listed(better)}")
    if worse:
        parts.append(f"WORSE than {_listed(worse)}")
    if open_ones:
        parts.append(f"NOT clearly better than {_listed(open_ones)}")
    return [f"{readout.label}: {figure} {readout.figure(figure)} is {', '.join(parts)}."] if parts else []


def _by_heart(result: ReadoutResult, readout: PriorReadout) -> list[str]:
    """How much better the read-out is on the scenes that it was trained on."""
    own, known = readout.figure("points"), readout.figure("points", training=True)
    if not (own.units and known.units) or own.value < 1.25 * known.value:
        return []
    return [
        f"{readout.label}: points are {known.value:.3f} on the scenes of the training and {own.value:.3f} on others: "
        "the head learned part of them by heart. More scenes would tell more."
    ]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
