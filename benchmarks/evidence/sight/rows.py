"""Correspondence of a single pair of views, judged row by row of tokens, so that it has an interval."""

from __future__ import annotations

from dataclasses import replace

from vega3d_plugin.analysis.partners import Partners, SharedViews
from vega3d_plugin.analysis.protocols import Pairs, Visible
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.scenes.scene import Scene


class VisibleByRows(Visible):
    """As ``visible``; each row of tokens counts as a pair of its own, since neighbours are alike."""

    name = "visible, by rows"

    def pairs(self, scene: Scene, prior: Prior, grid: tuple[int, int]) -> Pairs:
        """See :class:`~vega3d_plugin.analysis.protocols.Protocol`."""
        whole = super().pairs(scene, prior, grid)
        rows = [part for pair in whole.data for row in range(grid[0]) if (part := _row(pair, row, grid[1])).shared]
        return replace(
            whole,
            views=[(part.first, part.second) for part in rows],
            angles=[part.angle for part in rows],
            shared=[part.shared for part in rows],
            data=rows,
        )


def _row(pair: SharedViews, row: int, width: int) -> SharedViews:
    def cut(partners: Partners) -> Partners:
        inside = partners.tokens // width == row
        return Partners(partners.tokens[inside], partners.places[inside])

    return replace(pair, there=cut(pair.there), back=cut(pair.back))
