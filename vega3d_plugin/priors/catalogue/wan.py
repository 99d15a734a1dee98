"""The Wan family without VACE."""

from __future__ import annotations

from .family import Rows

TEXT_TO_VIDEO = Rows("wan.checkpoint:TEXT_TO_VIDEO", presets={"released": {"tap": -1}})
TI2V = Rows("wan.variants:TI2V")
LOW_NOISE = Rows("wan.variants:LOW_NOISE")

SPECS = (
    TEXT_TO_VIDEO.row(
        "wan2.1-t2v-1.3b",
        "Wan 2.1 text-to-video, 1.3B, 30 blocks: the paper's generator",
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        width=1536,
        blocks=30,
        tap=20,
        size=(480, 832),
        # Trained on 81 frames, which are 21 latent steps.
        window=21,
        parameters=1.1,
    ),
    TEXT_TO_VIDEO.row(
        "wan2.1-t2v-14b",
        "Wan 2.1 text-to-video, 14B, 40 blocks; default tap at the relative depth of the 1.3B's",
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        width=5120,
        blocks=40,
        tap=27,
        size=(480, 832),
        window=21,
        parameters=10,
    ),
    TI2V.row(
        "wan2.2-ti2v-5b",
        "Wan 2.2 text-and-image-to-video, 5B, 30 blocks, one latent per 16x16 pixels: fewer tokens per frame",
        source="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        width=3072,
        blocks=30,
        tap=20,
        size=(704, 1280),
        # Trained on 121 frames, which are 31 latent steps.
        window=31,
        parameters=3.7,
    ),
    LOW_NOISE.row(
        "wan2.2-a14b",
        "Wan 2.2 text-to-video A14B, its low-noise expert, 40 blocks",
        source="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        width=5120,
        blocks=40,
        tap=27,
        size=(480, 832),
        window=21,
        parameters=10,
    ),
)
