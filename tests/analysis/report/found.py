"""Results as the verbs of ``vega3d analyse`` write them, made of invented numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from vega3d_plugin.analysis.comparing import compare
from vega3d_plugin.analysis.protocols import Visible
from vega3d_plugin.analysis.readouts.judging import FIGURES, HIGHER
from vega3d_plugin.analysis.readouts.pictures import encode_depth, encode_frame
from vega3d_plugin.analysis.readouts.records import CONTROLS, DepthExample, PriorReadout, SceneFigures
from vega3d_plugin.analysis.readouts.results import ReadoutResult
from vega3d_plugin.analysis.records import ITSELF, PriorScores, SceneScores
from vega3d_plugin.analysis.results import CorrespondenceResult
from vega3d_plugin.analysis.sweep_records import Cell
from vega3d_plugin.analysis.sweeping import SweepResult

NAMES = tuple(f"room_{i:04d}" for i in range(8))
FINGERPRINT = "0123456789abcdef" * 4
_CONTROLS = (ITSELF, "untrained twin", "VAE alone", "pixels", "position only", "random")


def _number(*parts: object) -> float:
    """Between 0 and 1, from what it is a number of."""
    return sum(ord(character) for character in str(parts)) % 97 / 97


def correspondence(
    names: Sequence[str] = NAMES, prior: str = "some-prior", twin: float = 0.2, own: float = 0.6
) -> CorrespondenceResult:
    rule = Visible()

    def scene(name: str) -> SceneScores:
        wiggle = 0.05 * _number(name)
        levels = {ITSELF: own, "untrained twin": twin}
        values = {
            control: {figure: (levels.get(control, 0.1) + wiggle * (k + 1) / 9,) * 2 for figure in rule.figures}
            for k, control in enumerate(_CONTROLS)
        }
        return SceneScores(
            scene=name, source=f"scans/{name}", fingerprint=f"{_number(name):.6f}{name}"[:64], views=("a", "b", "c"),
            grid=(6, 10), seen=(96, 160), pairs=((0, 1), (1, 2)), angles=(10.0, 70.0), shared=(30, 12),
            values=values, absent={"same position": "nobody asked"},
        )  # fmt: skip

    scores = PriorScores(
        prior=prior, context="frame", fingerprint=FINGERPRINT, settings={"name": prior, "size": [96, 160]},
        feature_dim=96, scenes=tuple(scene(name) for name in names),
    )  # fmt: skip
    return CorrespondenceResult(
        protocol="visible", options=rule.options, figures=dict(rule.figures), headline=rule.headline, library="0.1.0",
        priors=(scores,),
    )  # fmt: skip


def readouts(
    names: Sequence[str] = NAMES, prior: str = "some-prior", twin: float = 0.5, own: float = 0.2
) -> ReadoutResult:
    def scene(name: str, side: str) -> SceneFigures:
        levels = {ITSELF: own, "untrained twin": twin}
        values = {
            control: {
                figure: (1 - level if figure in HIGHER else level) + 0.02 * _number(name, figure) for figure in FIGURES
            }
            for control in (ITSELF, *CONTROLS)
            for level in [levels.get(control, 0.45)]
        }
        return SceneFigures(scene=name, source=f"scans/{name}", fingerprint=f"{side}{name}"[:64], values=values)

    depth = torch.linspace(1, 5, 24 * 40).view(24, 40)
    predicted = {ITSELF: encode_depth(depth * 1.1), "position only": encode_depth(torch.full_like(depth, 3.0))}
    example = DepthExample(
        scene=names[0], view="00003", size=(24, 40), frame=encode_frame(torch.rand(3, 48, 80)),
        true=encode_depth(depth), predicted=predicted,
    )  # fmt: skip
    return ReadoutResult(
        options={"size": "small", "steps": 600, "views": 12}, figures=dict(FIGURES), higher=HIGHER, library="0.1.0",
        priors=(
            PriorReadout(
                prior=prior, context="frame", fingerprint=FINGERPRINT, settings={"name": prior}, feature_dim=96,
                grid=(6, 10), seen=(96, 160), held_out=tuple(scene(name, "held ") for name in names),
                training=tuple(scene(name, "trained ") for name in names), examples=(example,),
            ),
        ),
    )  # fmt: skip


def swept(names: Sequence[str] = NAMES, prior: str = "some-prior") -> SweepResult:
    of = correspondence(names, prior)
    scenes = of.priors[0].scenes

    def values(k: int) -> tuple[dict[str, tuple[float | None, ...]], ...]:
        return tuple({name: (0.3 + 0.01 * k + 0.1 * _number(s.scene, k),) * 2 for name in of.figures} for s in scenes)

    cells = [
        Cell(timestep=t, tap=tap, values=values(7 * i + j), readout={"depth d1": 0.4 + 0.01 * i})
        for i, t in enumerate((0, 300))
        for j, tap in enumerate((0, 1, 2))
    ]
    return SweepResult(
        prior=prior, context="frame", settings={"name": prior}, protocol=of.protocol, options=of.options,
        figures=of.figures, headline=of.headline, library="0.1.0", timesteps=(0, 300), taps=(0, 1, 2),
        cells=tuple(cells), scenes=scenes, readouts={"depth d1": "share of pixels that a head has right"},
    )  # fmt: skip


def write_all(folder: Path, names: Sequence[str] = NAMES, prior: str = "some-prior") -> Path:
    """A folder as a user has it after all verbs."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "scenes").mkdir()
    (folder / "records").mkdir()
    (folder / "records" / "0.json").write_text("{}")
    (folder / "a_visible.json").write_text(correspondence(names, prior).to_json())
    (folder / "b_readout.json").write_text(readouts(names, prior).to_json())
    (folder / "c_sweep.json").write_text(swept(names, prior).to_json())
    others = [correspondence(names, f"{prior}-{k}", own=0.3 + 0.1 * k) for k in range(3)]
    downstream = {f"{prior}-{k}": 50.0 + k for k in range(3)}
    (folder / "d_comparison.json").write_text(compare(others, downstream).to_json())
    Image.new("RGB", (300, 200), (90, 120, 200)).save(folder / "pictures" / f"room_some_{FINGERPRINT[:8]}.png")
    Image.new("RGB", (300, 200), (200, 120, 90)).save(folder / "pictures" / "room_other_ffffffff.png")
    Image.new("RGB", (400, 100), (120, 200, 90)).save(folder / "scenes" / "room_0000_00000000.jpg")
    return folder
