"""The whole job: read the recipe, wrap, run the script, put everything back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...contracts.settings import BranchSettings
from ...recipes.library import branch_settings, read_recipe
from ..stores import feature_store
from .episodes import Start, waiting_places, watched
from .optimizers import nothing_built
from .script import Command, RunError, run_command
from .session import Session
from .wrapped_places import explain, wrapped

#: Shows names and purposes of what is wrapped.
Shown = Callable[[list[tuple[str, str]]], None]


def make_session(
    recipe: str | Path,
    say: Callable[[str], None],
    *,
    overrides: Sequence[str] = (),
    store: str | Path | None = None,
    record: Path | None = None,
) -> Session | None:
    """A session with the settings of a recipe; None when it has no branch (``prior: null``).

    Args:
        recipe: name or file.
        say: takes one line for the user.
        overrides: such as ``prior.tap=16``.
        store: folder or URL of features; default: what the recipe says.
        record: folder for videos of what the hosts saw.

    Raises:
        RunError: ``record``, but there is no branch whose shares could be drawn.
        UnknownNameError, SettingsError: see :func:`~vega3d_plugin.recipes.library.read_recipe`.
    """
    # What the recipe says of data and the host's weights is the script's business.
    settings = read_recipe(recipe, overrides, blocks={*BranchSettings.model_fields, "tune", "store"})
    if settings.prior is None:
        if record is not None:
            raise RunError(f"--record draws what the branch does, and {recipe} has none (prior: null).")
        return None
    part = None if settings.tune is None else settings.tune.branch
    return Session(
        adapter=settings.host.adapter,
        settings=branch_settings(settings),
        store=feature_store(settings, store),
        branch_lr=None if part is None else part.learning_rate,
        frozen=part is not None and part.mode == "frozen",
        master_float32=settings.train is None or settings.train.master_float32 is not False,
        seed=0 if settings.train is None else settings.train.seed,
        say=say,
        record=record,
    )


def run(
    session: Session | None, command: Command | None, show: Shown | None = None, *, starts: Sequence[Start] = ()
) -> None:
    """Run a script with the branch in the hosts that it builds.

    Args:
        session: of this run; one for each. None: nothing is wrapped.
        command: what to run; None: nothing, for ``show`` alone.
        show: called with all that is wrapped, before the script begins.
        starts: methods that begin an episode, beside those that are known.

    Raises:
        RunError: the script ended, but built no host.
        SystemExit and whatever else the script raises.
    """
    if session is None:
        if command is not None:
            run_command(command)
        return
    with wrapped(session), _recorded(session), watched(session, starts):
        if show is not None:
            show([*explain(session), *waiting_places(starts)])
        if command is None:
            return
        try:
            run_command(command)
        except SystemExit as end:
            if end.code in (None, 0):
                _check(session, command)
            raise
    _check(session, command)


@contextmanager
def _recorded(session: Session) -> Iterator[None]:
    """The last episodes end with the run, however it ends."""
    with session.until_the_end:
        try:
            yield
        finally:
            if session.videos is not None:
                session.videos.close()
            if session.videos is not None and session.hosts:
                count = len(session.videos.written)
                session.tell(f"{count} episode{'s' * (count != 1)} recorded in {session.record}")


def _check(session: Session, command: Command) -> None:
    """After a script that ended well: did the branch take part?"""
    if not session.hosts:
        raise RunError(f"{command} ended, but {nothing_built(session)}")
    restored = any(host.restored for host in session.hosts)
    if session.made_for and not session.begun and not restored:
        # Scripts of Video-3D LLM print what stopped their training, and end as if all were well.
        raise RunError(
            f"{command} ended without an error, but made an optimiser for the host and no step with it: nothing was "
            "trained. What stopped it should be among the lines above."
        )
    if not session.begun and not restored:
        session.tell(
            "note: nothing was trained or restored, so the branch is a new one"
            + (", and the results are the host's own." if session.settings.fusion.init == "identity" else ".")
        )
