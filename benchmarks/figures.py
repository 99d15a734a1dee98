"""What the benchmarks share: clocks, tables, a host's batch, and a prior that costs nothing."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.table import Table


def clock(action: Callable[[], object], *, children: bool = False) -> tuple[float, float]:
    """Seconds on the clock, and of processor time: of this process, or of the children that end meanwhile."""
    gc.collect()
    _synchronize()
    begun, used = time.perf_counter(), _used(children)
    action()
    _synchronize()
    return time.perf_counter() - begun, _used(children) - used


def table(title: str, *columns: str) -> Table:
    """An empty table; the first column is of words, the others of figures."""
    torch = sys.modules.get("torch")
    made = Table(title=title + (f"; torch {torch.__version__}" if torch else ""), title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right")
    return made


def free_prior(feature_dim: int) -> Any:
    """Features of the right shape that cost nothing, ``[T, feature_dim, 30, 52]``."""
    import torch

    import vega3d

    class Given(vega3d.Prior):
        """The same numbers for every clip."""

        fingerprint = "given"

        def __init__(self) -> None:
            self.feature_dim = feature_dim

        def __call__(self, frames: torch.Tensor) -> torch.Tensor:
            generator = torch.Generator().manual_seed(0)
            return torch.randn(frames.shape[0], feature_dim, 30, 52, generator=generator)

    return Given()


def video_batch(frames: int, size: int = 224, *, labels: bool = False) -> dict[str, Any]:
    """One video of random frames in one prompt, as Qwen-VL's processor gives it."""
    import torch

    from vega3d_qwen_vl.tiny import tiny_processor

    processor = tiny_processor(max_pixels=size * size)
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8, generator=generator)
    options = {"do_sample_frames": False} if hasattr(processor, "video_processor") else {}
    text = "<|vision_start|><|video_pad|><|vision_end|>Left or right?"
    batch = dict(processor(text=[text], videos=[video], return_tensors="pt", **options))
    batch = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in batch.items()}
    return {**batch, "labels": batch["input_ids"].clone()} if labels else batch


def _used(children: bool) -> float:
    times = os.times()
    return times.children_user + times.children_system if children else time.process_time()


def _synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
