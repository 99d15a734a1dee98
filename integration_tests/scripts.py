"""Run the scripts of ``host_scripts`` through ``vega3d run`` in this process."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning
from vega3d_plugin.training.scripts import Start, make_session, parse_command, run
from vega3d_qwen_vl.tiny import tiny_processor

SCRIPTS = Path(__file__).parent / "host_scripts"
RECIPE: dict[str, Any] = {
    "host": {"adapter": "qwen_vl", "model": "tiny", "dtype": "float32"},
    "prior": {"name": "tiny-wan", "context": "views", "tap": 2, "size": [96, 160]},
    "projector": {"name": "mlp", "hidden_dim": 64},
}

#: Script and arguments to the lines that were said.
Script = Callable[..., list[str]]


def write_recipe(path: Path, **blocks: object) -> Path:
    """A small recipe; ``blocks`` replace its own."""
    path.write_text("# A recipe for tests\n" + yaml.safe_dump({**RECIPE, **blocks}))
    return path


def run_script(
    recipe: Path, name: str | Path, *arguments: object, starts: Sequence[Start] = (), **options: Any
) -> list[str]:
    """Run a script by its path or its name in ``host_scripts``; the lines that were said.

    ``starts`` go to ``run``, ``options`` to ``make_session``. An exit code other than 0 is raised.
    """
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            words = [str(SCRIPTS / name), *map(str, arguments)]
            run(make_session(recipe, lines.append, **options), parse_command(words), starts=starts)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
    return lines


def said(stderr: str) -> list[str]:
    """What ``vega3d run`` told a user, among all that a script and its processes wrote."""
    # Not at the start of a line where another process is in the middle of a progress bar.
    return re.findall(r"vega3d: (.*)", stderr)


@contextmanager
def scripts_own() -> Iterator[None]:
    """Take back what scripts put into transformers: VG-LLM's optimiser, and classes that come with a checkpoint."""
    create = transformers.Trainer.create_optimizer
    registered = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING._extra_content
    classes = dict(registered)
    try:
        yield
    finally:
        transformers.Trainer.create_optimizer = create
        registered.clear()
        registered.update(classes)


def logits(model: nn.Module) -> Tensor:
    """On the pictures and the question that the scripts train on."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        from tiny_rows import batch
    finally:
        sys.path.remove(str(SCRIPTS))
    with torch.no_grad():
        out: Tensor = model.eval()(**batch(tiny_processor())).logits
    return out


def saved_branch(folder: Path) -> dict[str, Tensor]:
    """The tensors of the branch that was written to a folder."""
    return load_file(folder / "vega3d.safetensors")


def moved(tensors: dict[str, Tensor]) -> bool:
    """Whether a branch has trained: it starts with a residual scale of zero."""
    return bool(tensors["fuser.residual_scale"].abs() > 0)
