"""``vega3d export``: what was trained, for programs that do not run a host's own forward."""

from __future__ import annotations

import typer

from .embeddings import embeddings
from .host import host

HELP = """Write what was trained for servers such as vLLM and SGLang.

They do not run the host's own forward, so a patched model cannot be served as
it is. [bold]embeddings[/] writes the fused visual tokens of your questions, which
they take in place of pictures. [bold]host[/] writes the host without its branch, with
an adapter merged, as plain transformers weights.

\b
[bold]Examples[/]
  vega3d export embeddings Qwen/Qwen2.5-VL-3B-Instruct \\
      --branch out/checkpoint-500 --data rows.jsonl --out fused
  vega3d export host out/checkpoint-500 served
"""

export = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")

export.command("embeddings")(embeddings)
export.command("host")(host)
