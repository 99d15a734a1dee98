"""``vega3d analyse correspondence``: do features of one place agree between views?"""

from __future__ import annotations

from typing import Annotated

import typer

from ..output import print_json, yellow_warnings
from .asked import (
    OUT,
    Change,
    Contexts,
    Device,
    Out,
    Priors,
    Rule,
    Scenes,
    Seed,
    Store,
    Views,
    asked_priors,
    check_folder,
    opened_scenes,
    print_result,
    progress_bar,
    write_result,
)


def correspondence(
    priors: Priors,
    scenes: Scenes,
    contexts: Contexts = None,
    protocol: Rule = "visible",
    views: Views = 8,
    change: Change = None,
    seed: Seed = 0,
    device: Device = None,
    store: Store = None,
    folder: Out = OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score how well a prior's features of one place agree between views.

    \b
      visible   all pairs of views; tokens correspond where one view truly
                sees what the other shows (depth agrees)
      released  the paper's score: neighbouring views, tokens of a 14x14 grid
                that share a voxel of 0.1 m, seen or not
      probe3d   nearest neighbours at every pixel with depth, recall in pixels

    Every figure stands above its controls, with a 95% interval over scenes.
    The uncentred cosine is raised by any offset that all tokens share; the
    table says how much of it is one. In --out: the result as .json, the table
    as .txt, its picture as .png, and pictures/ of scores, matches and
    features over the frames. A run that was stopped goes on where it was.

    \b
      vega3d analyse correspondence tiny-wan --scenes room:0..7
      vega3d analyse correspondence 'wan2.1-t2v-1.3b?tap=10' wan2.1-t2v-1.3b
                                    --scenes scans/ --contexts views
    """
    from ...analysis import CorrespondenceResult
    from ...analysis import correspondence as run
    from ...analysis.protocols import protocol_of
    from ...analysis.report.scene_sheets import write_scene_sheets

    rule = protocol_of(protocol)
    asked = asked_priors(priors, change)
    check_folder(folder)
    places = opened_scenes(scenes)
    results = []
    with yellow_warnings(), progress_bar() as told:
        for number, (_, settings) in enumerate(asked):

            def tell(what: str, done: int, total: int, before: int = number) -> None:
                told(what, before * total + done, total * len(asked))

            results.append(
                run(
                    settings,
                    places,
                    contexts=contexts or None,
                    protocol=rule,
                    views=views,
                    seed=seed,
                    device=device,
                    store=store,
                    records=folder / "records",
                    pictures=folder / "pictures",
                    check=False,
                    progress=tell,
                )
            )
    write_scene_sheets(folder, places)
    files = []
    for (name, _), result in zip(asked, results, strict=True):
        stem = "_".join([name, *(contexts or []), rule.name])
        files += write_result(folder / stem, result, result.plot)
    together = results[0].model_copy(update={"priors": tuple(each for result in results for each in result.priors)})
    assert isinstance(together, CorrespondenceResult)
    if as_json:
        print_json(together.model_dump(mode="json"))
        return
    pictures = sorted((folder / "pictures").glob("*.png"))
    print_result(together.table(), [*files, *([folder / "pictures"] if pictures else [])])
