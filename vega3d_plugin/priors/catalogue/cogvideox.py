"""CogVideoX."""

from __future__ import annotations

from .family import Rows

FAMILY = Rows(
    "generators.cogvideox:FAMILY", licence="CogVideoX licence: research free, commercial use after registration"
)

SPECS = (
    FAMILY.row(
        "cogvideox-2b",
        "CogVideoX text-to-video, 2B, 30 blocks",
        source="THUDM/CogVideoX-2b",
        width=1920,
        blocks=30,
        tap=20,
        size=(480, 720),
        # 49 frames are 13 latent steps.
        window=13,
        overlap=3,
        # Its schedule is noisier than the 5B's: this timestep has as much noise as 300 there.
        timestep=165,
        parameters=1.3,
        licence="Apache 2.0",
    ),
    FAMILY.row(
        "cogvideox-5b",
        "CogVideoX text-to-video, 5B, 42 blocks",
        source="THUDM/CogVideoX-5b",
        width=3072,
        blocks=42,
        tap=28,
        size=(480, 720),
        window=13,
        overlap=3,
        timestep=300,
        parameters=3.9,
    ),
    FAMILY.row(
        "cogvideox1.5-5b",
        "CogVideoX 1.5 text-to-video, 5B, 42 blocks, for larger frames",
        source="THUDM/CogVideoX1.5-5B",
        width=3072,
        blocks=42,
        tap=28,
        size=(768, 1360),
        # 81 frames are 11 tokens of two latent steps each.
        window=11,
        overlap=3,
        timestep=300,
        parameters=3.9,
    ),
)
