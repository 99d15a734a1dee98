"""``vega3d doctor``: is everything here, and does it work on this host?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..contracts.errors import Vega3dWarning
from ..hosts.extras import Extra, extras
from .ls import plugin_cell
from .output import GAP, err, out, print_json, print_table, stacked, table

if TYPE_CHECKING:
    from ..evaluation.doctor.checks import Check
    from ..hosts.installed import HostClasses, Package, PluginState

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "dim"}


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Folder or hub id of a host. Without it: what is installed.")
    ] = None,
    branch: Annotated[str | None, typer.Option(metavar="DIR", help="A saved branch, to be checked on MODEL.")] = None,
    prior: Annotated[
        str | None, typer.Option(help="Patch with this prior; the default, tiny-wan, downloads nothing.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="Folder or hub id of the prior's weights.")] = None,
    processor: Annotated[str | None, typer.Option(help="Folder or hub id of MODEL's processor, if elsewhere.")] = None,
    device: Annotated[str | None, typer.Option(help="Device; default: CUDA if there is any.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Adapter to use if none matches MODEL by itself (`vega3d ls hosts`).")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Allow code that comes with MODEL to run (OpenVLA has such code)."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Check the installation, or that the branch works on a host.

    Without MODEL: versions, plugins, and which hosts the installed
    transformers has.

    \b
    With MODEL: loads it, patches it and measures:
      vision    does the host itself see its images?
      pixels    does the branch get the very picture the host was given?
      seam      is the branch called, for an image and for a video?
      identity  is a fresh patch invisible?
      branch    do the branch's frames reach the answer?
      unpatch   is everything as before?

    With --branch: the same of a branch that you trained.

    Exit code 1 when a check fails or a plugin is broken.
    """
    if model is None:
        if branch or prior or pretrained or processor or host or trust_remote_code:
            raise typer.BadParameter(
                "--branch, --prior, --pretrained, --processor, --host and --trust-remote-code need a MODEL."
            )
        _installation(as_json)
        return
    if branch and prior:
        raise typer.BadParameter("A saved branch has its own prior: leave out --prior. --pretrained may differ.")
    options = {"processor": processor, "prior": prior, "pretrained": pretrained, "branch": branch, "device": device}
    _host(model, as_json, **options, host=host, trust_remote_code=trust_remote_code)


def _installation(as_json: bool) -> None:
    from ..hosts.installed import host_classes, package_versions, platform_versions, plugin_states

    platform, packages, plugins = platform_versions(), package_versions(), plugin_states()
    problem, needed = "", extras()
    hosts: list[HostClasses] = []
    try:
        hosts = host_classes()
    except Exception as error:
        problem = f"transformers cannot be imported: {type(error).__name__}: {error}"
    good = not problem and all(p.fits for p in packages) and not any(p.error for p in plugins)
    if as_json:
        print_json(
            {
                "platform": platform,
                "packages": [asdict(p) for p in packages],
                "plugins": [asdict(p) for p in plugins],
                "hosts": [asdict(h) for h in hosts],
                "extras": [{**asdict(e), "install": e.install} for e in needed],
                "problem": problem or None,
                "ok": good,
            }
        )
    else:
        print_table(_versions(platform, packages))
        print_table(_plugins(plugins))
        if problem:
            out.print(Text(problem, style="red"))
        else:
            print_table(_hosts(hosts, packages))
        print_table(_extras(needed))
        out.print(_conclusion(good, needed), soft_wrap=True)
    if not good:
        raise typer.Exit(1)


def _extras(needed: list[Extra]) -> Table:
    made = table("commands", "state", title="Commands that need more")
    for extra in needed:
        lacks = f"{' and '.join(extra.missing)} missing: {extra.install}"
        made.add_row(extra.purpose, Text(lacks, style="yellow") if extra.missing else Text("ready", style="green"))
    return made


def _conclusion(good: bool, needed: list[Extra]) -> str:
    if not good:
        return "[bold red]Something is broken. See the red lines above.[/]"
    # The others are for few, this one is for most.
    first = next((extra for extra in needed if extra.name == "qwen" and extra.missing), None)
    if first is not None:
        return escape(f"The library is installed. For `vega3d demo`, `train` and hosts with videos: {first.install}")
    return "Everything is in place. [dim]`vega3d doctor MODEL` checks a host.[/]"


def _versions(platform: dict[str, str], packages: list[Package]) -> Table:
    made = table("package", "version", "needs", title="Versions")
    for name, value in platform.items():
        made.add_row(name, Text(value), "")
    for package in packages:
        style = "" if package.fits else "red"
        made.add_row(package.name, Text(package.version or "not installed", style=style), Text(package.needs, style))
    return made


def _plugins(plugins: list[PluginState]) -> Table:
    made = table("plugin", "registered", title="Plugins")
    for plugin in plugins:
        made.add_row(stacked(plugin.name, plugin.source), plugin_cell(plugin.registered, plugin.error))
    return made


def _hosts(hosts: list[HostClasses], packages: list[Package]) -> Table:
    version = next((p.version for p in packages if p.name == "transformers"), "")
    made = table("host", f"classes in transformers {version}", title="Patchable")
    for host in hosts:
        absent = [f"{name} (not in transformers)" for name in host.absent]
        seen = f"tested with {host.seen_with}" if host.seen_with else ""
        made.add_row(host.host, stacked("\n".join(host.present) or "-", *absent, seen))
    return made


def _host(model: str, as_json: bool, **options: Any) -> None:
    from ..evaluation.doctor.examine import BRANCH_STEPS, HOST_STEPS, diagnose
    from ..hosts.loading import quiet_transformers

    steps = BRANCH_STEPS if options["branch"] else HOST_STEPS
    if options["prior"] is None:
        del options["prior"]
    checks: list[Check] = []
    with warnings.catch_warnings(), quiet_transformers():
        # Others' deprecation notes would bury ours.
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", Vega3dWarning)
        if not as_json:
            out.print(Text(f"Checking {model}", style="bold"), soft_wrap=True)
        for check in _with_spinner(diagnose(model, **options), steps, model, err if as_json else out):
            checks.append(check)
            if not as_json and check.status != "SKIP":
                out.print(_row(check.status, check.name, check.measured, check.advice))
    failed = [check.name for check in checks if check.status == "FAIL"]
    if as_json:
        print_json({"model": model, "checks": [asdict(check) for check in checks], "ok": not failed})
    else:
        for reason, skipped in groupby((c for c in checks if c.status == "SKIP"), key=lambda c: c.measured):
            out.print(_row("SKIP", "", f"{', '.join(check.name for check in skipped)}: {reason}", ""))
        out.print()
        out.print(_verdict(checks))
    if failed:
        raise typer.Exit(1)


def _verdict(checks: list[Check]) -> Text:
    failed, warned = ([c.name for c in checks if c.status == status] for status in ("FAIL", "WARN"))
    if failed:
        return Text(f"Failed: {', '.join(failed)}.", style="bold red")
    if warned:
        return Text(f"Works on this host, with a warning: {', '.join(warned)}.", style="yellow")
    return Text("Works on this host.", style="green")


def _with_spinner(checks: Iterator[Check], steps: dict[str, str], model: str, console: Console) -> Iterator[Check]:
    """Say what is being done until the next check is there."""
    todo = list(steps)
    while True:
        # A download shows its own progress, which a spinner would tear apart.
        silent = todo[:1] == ["load"] and not Path(model).is_dir()
        with nullcontext() if silent or not todo else console.status(f"{steps[todo[0]]} ..."):
            check = next(checks, None)
        if check is None:
            return
        todo = todo[todo.index(check.name) + 1 :] if check.name in todo else todo
        yield check


def _row(status: str, name: str, measured: str, advice: str) -> Table:
    """One check as a line of a table whose columns keep their width, since rows appear one by one."""
    grid = Table.grid(padding=(0, GAP))
    grid.add_column(width=4)
    grid.add_column(width=9)
    grid.add_column()
    grid.add_row(Text(status, style=COLOURS[status]), name, stacked(measured, f"-> {advice}" if advice else ""))
    return grid
