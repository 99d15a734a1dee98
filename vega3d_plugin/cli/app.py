"""The application: its verbs, and what holds for all of them."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..contracts.errors import was_interrupted
from ..storage.versions import library_version
from .ablate import ablate
from .analyse import analyse
from .answer import answer
from .compare import compare
from .convert import convert
from .data import data
from .demo import demo
from .doctor import doctor
from .export import export
from .extract import extract
from .info import info
from .look import look
from .ls import ls
from .output import err, out
from .prior import prior
from .recipes import recipes
from .report import report
from .run import CONTEXT as RUN
from .run import run
from .scene import scene
from .score import score
from .store import store
from .train import train

# Lines are kept by some versions of typer and joined by others, save in a paragraph that begins with \b; so are those
# of the verbs' docstrings. Short ones look right either way.
HELP = """Give an existing multimodal LLM a frozen video generator's sense of space.

In Python: [bold]import vega3d; vega3d.patch(model)[/]. This command shows what
there is, checks that it works on your host, and looks into what was trained.

\b
[bold]Examples[/]
  vega3d demo                            the whole job once, offline
  vega3d doctor                          versions, plugins, hosts
  vega3d doctor Qwen/Qwen2.5-VL-3B-Instruct
                                         does it work on this host?
  vega3d ls priors                       or: hosts, fusers, plugins, recipes
  vega3d info outputs/checkpoint-500     what a saved branch holds
  vega3d convert released --out branch   a released checkpoint as a branch
  vega3d answer MODEL --data mine.json --out answers.jsonl
                                         answers of a model to your questions
  vega3d ablate MODEL --data mine.json   does the branch help, on your data?
  vega3d compare with=out/a without=out/b --data mine.json
                                         runs against each other and controls
  vega3d score scanqa answers.jsonl      answers to a benchmark's figures
  vega3d data scanqa train.json --out rows.jsonl
                                         a benchmark's annotations as rows
  vega3d scene clip room:0               a scene's views, from above and by eye
  vega3d analyse correspondence tiny-wan --scenes room:0..3
                                         does a prior know space?
  vega3d extract qwen_vl/smoke --store features
                                         encode its clips once, beforehand
  vega3d train qwen_vl/smoke             train as a recipe says, here offline
  vega3d report outputs/mine             a run's losses, shares and answers
  vega3d look CHECKPOINT --video mine.mp4 --question "..."
                                         answers and shares on your own video
  vega3d export embeddings MODEL --data mine.json --out fused
                                         for vLLM and SGLang
  vega3d run --recipe R -- train.py ARGS  a host's own script, with the branch
  vega3d prior info wan2.1-t2v-1.3b      what a prior is, before loading it
  vega3d store info features             what a feature store holds
  vega3d recipes show qwen_vl/smoke      settings of an experiment
  vega3d prior features kitchen.mp4 --prior tiny-wan
                                         what it sees in a video, as a picture
"""


class Verbs(TyperGroup):
    """The verbs. Ctrl-C ends each with one line and exit code 130; some say themselves what they leave."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if not was_interrupted(error):
                raise
            err.print("Interrupted.")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Verbs,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"vega3d-plugin {library_version()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    from ..plugins import plugin_manager

    # A broken plugin is told in one line below, not in the middle of the output.
    logging.getLogger("vega3d").addHandler(logging.NullHandler())
    broken = plugin_manager().broken
    if broken and context.invoked_subcommand != "doctor":
        names = ", ".join(broken)
        err.print(f"Not loaded: {names}. `vega3d doctor` says why.", style="yellow", markup=False, soft_wrap=True)


# In the order of `vega3d --help`.
app.command()(demo)
app.command()(doctor)
app.command()(ls)
app.command()(info)
app.command()(convert)
app.command()(answer)
app.command()(ablate)
app.command()(compare)
app.command()(score)
app.command()(data)
app.command()(extract)
app.command()(train)
app.command()(report)
app.command()(look)
app.command(context_settings=RUN)(run)
app.add_typer(analyse, name="analyse")
app.add_typer(prior, name="prior")
app.add_typer(scene, name="scene")
app.add_typer(store, name="store")
app.add_typer(export, name="export")
app.add_typer(recipes, name="recipes")
