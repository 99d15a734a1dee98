"""What extraction and a store cost beside the prior and the disk: the figures to read are the ratios.

    python benchmarks/extraction.py                 # 2 CPU cores, some minutes; OMP_NUM_THREADS=1
    python benchmarks/extraction.py extract         # clips a second against bare calls of the prior
    python benchmarks/extraction.py read            # entries a second against raw safetensors
    python benchmarks/extraction.py step            # a training step with everything stored against the bare host
    python benchmarks/extraction.py rounding        # what bf16 and int8 change, kept and computed

Both sides of a ratio are measured in turn in one run, so that a busy machine disturbs both.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from figures import clock, free_prior, table, video_batch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

import vega3d
from vega3d_plugin.contracts.clips import Clip
from vega3d_plugin.features.extraction.shard import Worker, extract_shard
from vega3d_plugin.features.forms import FORMS, Form, entry_bytes
from vega3d_plugin.features.store import FeatureStore
from vega3d_plugin.training.extraction import OpenedRows, RecipeUnits, make_request
from vega3d_qwen_vl.tiny import tiny_model

app = typer.Typer(add_completion=False)
out = Console(width=116)
RECIPE = "qwen_vl/smoke"
#: Frames of a clip, and their size for the prior.
SIZES = "8@192x320,32@96x160"


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Everything, one after the other."""
    warnings.simplefilter("ignore")
    if context.invoked_subcommand is None:
        for part in (sizes, extract, read, step, rounding):
            part()


@app.command("sizes")
def sizes() -> None:
    """Bytes of 32 frames of Wan 1.3B for LLaVA-Video, from shapes."""
    made = table("32 frames of Wan 1.3B for LLaVA-Video (14x14 tokens a frame)", "form", "a clip", "100,000 clips")
    for form in FORMS:
        shape = (32, 1536, 14, 14) if form.aligned else (32, 1536, 45, 80)
        for item, name in ((4, "float32"), (2, "bfloat16")):
            if form.numbers and item == 4:
                continue
            count = entry_bytes(shape, form, item)
            label = f"{form}" + ("" if form.numbers else f", computed in {name}")
            made.add_row(label, f"{count / 1e6:.1f} MB", f"{count * 1e5 / 1e12:.2f} TB")
    out.print(made)


@app.command("extract")
def extract(
    clips: Annotated[int, typer.Option(help="Clips of each size; Ray hands four at once to an actor.")] = 12,
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 1,
    sizes: Annotated[str, typer.Option(help="Frames of a clip, and their size for the prior.")] = SIZES,
    launchers: Annotated[str, typer.Option(help="Of two processes: torchrun, ray.")] = "torchrun,ray",
) -> None:
    """Clips a second of one and two processes against bare calls of the prior, on the same frames."""
    chosen = {name: LAUNCHERS[name] for name in launchers.split(",") if name}
    made = table(
        f"extraction, {RECIPE} with {clips} clips on {len(os.sched_getaffinity(0))} core(s)",
        "frames@size", "bare calls", "clip by clip", "ratio", "CPU seconds, ratio", "beside the prior",
        "bare again", "one process", "ratio",
        *(f"2 by {name}" for name in chosen),
    )  # fmt: skip
    for size in sizes.split(","):
        frames, _, side = size.partition("@")
        folder = Path(tempfile.mkdtemp())
        rows = _videos(folder, clips, int(frames))
        settings = [
            "projector.hidden_dim=16", f"prior.size=[{side.replace('x', ', ')}]", f"data.frames={frames}",
            "host.max_pixels=50176",
        ]  # fmt: skip
        bare: list[tuple[float, float]] = []
        ours: list[tuple[float, float]] = []
        packing: list[float] = []
        whole: list[tuple[float, float]] = []
        rates: dict[str, list[float]] = {name: [] for name in chosen}
        for number in range(repeats):
            units = _units(folder / f"{number}", settings, rows)
            worker = Worker(units)
            opened = _rows_of(worker)
            found = [clip for unit in range(len(units)) for clip in opened.clips(unit)]
            opened.prior(found[0].frames)
            for unit, clip in enumerate(found):
                # In turn, so that what else runs on the machine disturbs both sides alike.
                bare.append(clock(partial(opened.prior, clip.frames)))
                ours.append(clock(partial(_one, worker, unit)))
            packing.append(clock(worker.pack)[1] / clips)
            whole.append(_whole_run(_units(folder / f"whole{number}", settings, rows), [clip.frames for clip in found]))
            for name, launch in chosen.items():
                rates[name].append(launch(folder / f"{name}{number}", settings, rows))
        base, own = (median(each[0] for each in side) for side in (bare, ours))
        packed = median(packing)
        ratio, of_cpu = (median(b[i] / (o[i] + packed) for b, o in zip(bare, ours, strict=True)) for i in (0, 1))
        beside = median(o[1] - b[1] for b, o in zip(bare, ours, strict=True)) + packed
        again, run = (clips / median(each[side] for each in whole) for side in (0, 1))
        made.add_row(
            size, f"{1 / base:.3f}/s", f"{1 / (own + packed):.3f}/s", f"{ratio:.1%}", f"{of_cpu:.1%}",
            f"{beside * 1e3:.0f} ms a clip", f"{again:.3f}/s", f"{run:.3f}/s",
            f"{median(b / r for b, r in whole):.1%}", *(f"{median(found):.3f}/s" for found in rates.values()),
        )  # fmt: skip
        shutil.rmtree(folder)
    out.print(made)


@app.command("read")
def read(
    entries: Annotated[int, typer.Option(help="Maps in the store.")] = 48,
    repeats: Annotated[int, typer.Option(help="Reads of the whole store.")] = 5,
) -> None:
    """Entries and MB a second of a store against raw safetensors: cold and warm, with 0 and 2 workers."""
    shape = (8, 1536, 14, 14)
    folder = Path(tempfile.mkdtemp())
    store = FeatureStore(folder / "loose", memory_bytes=0)
    keys = [f"{number:032x}" for number in range(entries)]
    (folder / "raw").mkdir()
    for key in keys:
        features = torch.randn(shape).to(torch.bfloat16)
        store.put(key, features)
        save_file({"features": features}, folder / "raw" / f"{key}.safetensors")
    shutil.copytree(folder / "loose", folder / "shards")
    FeatureStore(folder / "shards").pack(shard_bytes=64 << 20)
    total = entries * entry_bytes(shape, Form(numbers="bf16")) / 1e6
    ways = {
        "raw safetensors": Raw(folder / "raw", keys),
        "raw, in the branch's layout": Raw(folder / "raw", keys, True),
    }
    ways |= {f"store, {name}": Stored(folder / name, keys) for name in ("loose", "shards")}
    made = table(
        f"reading {entries} maps {list(shape)} bfloat16 in random order", "way", "workers", "disk", "entries/s", "MB/s"
    )
    times: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(repeats):
        for workers in (0, 2):
            for disk in ("cold", "warm"):
                for name, way in ways.items():
                    if disk == "cold":
                        _forget(folder)
                    else:
                        _pass(way, 0)
                    times.setdefault((name, workers, disk), []).append(_pass(way, workers))
    for (name, workers, disk), seconds in times.items():
        best = median(seconds)
        made.add_row(name, str(workers), disk, f"{entries / best:.0f}", f"{total / best:.0f}")
    out.print(made)
    shutil.rmtree(folder)


@app.command("step")
def step(
    hidden_size: Annotated[int, typer.Option(help="Of the host.")] = 512,
    layers: Annotated[int, typer.Option(help="Of the host.")] = 8,
    lengths: Annotated[str, typer.Option(help="Frames of the clips.")] = "8,32",
    feature_dim: Annotated[int, typer.Option(help="Channels of the features.")] = 1536,
    repeats: Annotated[int, typer.Option(help="Steps of each side.")] = 5,
) -> None:
    """A training step with all features stored against the bare host; projector's and fuser's own share apart."""
    made = table(
        f"training step, CPU time, random Qwen2.5-VL, hidden {hidden_size}, {layers} layers",
        "frames", "form", "in", "bare host", "with the branch", "projector and fuser", "all else", "of the host",
    )  # fmt: skip
    for frames in map(int, lengths.split(",")):
        batch = video_batch(frames, labels=True)
        for form, place in (("native", "files"), ("aligned-bf16", "files"), ("aligned-bf16", "memory")):
            folder = Path(tempfile.mkdtemp())
            bare = tiny_model(hidden_size=hidden_size, layers=layers).train()
            store = FeatureStore(folder, memory_bytes=0, form=form)
            model = vega3d.patch(copy.deepcopy(bare), free_prior(feature_dim), projector={"name": "mlp"}, store=store)
            branch = vega3d.get_handle(model).branch
            sides: dict[str, list[float]] = {"bare": [], "patched": [], "own": []}
            with _inputs_of(branch.projector, branch.fuser) as inputs:
                _step(model, batch)
            _step(bare, batch)
            for _ in range(repeats):
                sides["bare"].append(clock(partial(_step, bare, batch))[1])
                if place == "files":
                    # As of a clip that another one has pushed out of memory.
                    store._recent.clear()
                sides["patched"].append(clock(partial(_step, model, batch))[1])
                sides["own"].append(clock(partial(_alone, inputs))[1])
            # The best of each: what else runs on the machine only ever adds.
            base, whole, share = (min(sides[name]) for name in ("bare", "patched", "own"))
            rest = whole - share - base
            made.add_row(
                str(frames), form, place, f"{base * 1e3:.0f} ms", f"{whole * 1e3:.0f} ms", f"{share * 1e3:.0f} ms",
                f"{rest * 1e3:.0f} ms", f"{rest / base:.1%}",
            )  # fmt: skip
            shutil.rmtree(folder)
    out.print(made)


@app.command("rounding")
def rounding(scenes: Annotated[int, typer.Option(help="Rendered rooms, for correspondence.")] = 4) -> None:
    """What rounding does to a host's logits, and to correspondence of the trained small generator."""
    logits = _logits_by_way()
    found = _correspondence_by_way(scenes)
    made = table(
        "rounding: native, computed in float32, is the reference",
        "form", "features, error", "logits, error", "largest answer changes", "correspondence",
    )  # fmt: skip
    for way, (features, change, flips) in logits.items():
        score = f"{found[way]:.4f}" if way in found else ""
        made.add_row(way, f"{features:.1e}", f"{change:.1e}", f"{flips:.2%}", score)
    out.print(made)


#: Not kept in fewer bits, but computed in them.
HALF = "native, computed in bfloat16"


def _logits_by_way() -> dict[str, tuple[float, float, float]]:
    """Errors relative to the largest value, and the share of tokens whose likeliest successor changes."""
    batch = video_batch(8)
    ways = [(str(form), form, "float32") for form in FORMS] + [(HALF, Form(), "bfloat16")]
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for way, form, dtype in ways:
        torch.manual_seed(0)
        prior, store = vega3d.load_prior("small-world", dtype=dtype), FeatureStore(form=form)
        model = vega3d.patch(tiny_model(hidden_size=256), prior, init="released", store=store).eval()
        with torch.no_grad():
            logits = model(**batch).logits.float()
        (kept,) = store._recent.values()
        found[way] = kept.float(), logits
    base = found["native"][1]
    off = (base - _bare_logits(batch)).abs().max()
    whole = {aligned: found[str(Form(aligned))][0] for aligned in (False, True)}
    return {
        way: (
            _error(found[way][0], whole[form.aligned]),
            float((found[way][1] - base).abs().max() / off),
            float((found[way][1].argmax(-1) != base.argmax(-1)).float().mean()),
        )
        for way, form, _ in ways
    }


def _error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


def _bare_logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = tiny_model(hidden_size=256).eval()(**batch).logits
    return logits.float()


def _correspondence_by_way(scenes: int) -> dict[str, float]:
    """The mean score of ``vega3d analyse correspondence`` for the prior and for the prior with rounded features."""
    from vega3d_plugin.analysis import correspondence
    from vega3d_plugin.analysis.records import ITSELF
    from vega3d_plugin.features.forms import NUMBERS, decode, encode
    from vega3d_plugin.scenes.opening import open_scenes

    opened = open_scenes([f"room:0..{scenes - 1}?views=6&size=96x128"])
    found = {}
    for way, numbers, dtype in [(str(Form(False, n)), n, "float32") for n in NUMBERS] + [(HALF, "", "bfloat16")]:
        prior = vega3d.load_prior("small-world", dtype=dtype)
        extract = prior.extract
        prior.extract = lambda *a, e=extract, n=numbers: decode(encode(e(*a), n)).float()
        found[way] = _score(correspondence, prior, opened, ITSELF)
    return found


def _score(correspondence: Any, prior: Any, scenes: Any, itself: str) -> float:
    result = correspondence(prior, scenes, contexts=["views"], controls=False, check=False)
    (scores,) = result.priors
    return float(scores.figure(result.headline, itself).value)


class Raw(Dataset[torch.Tensor]):
    """The least that reading can cost: a file, a copy, in the layout of the file or in the branch's."""

    def __init__(self, folder: Path, keys: list[str], last: bool = False) -> None:
        self.folder, self.keys = folder, random.Random(0).sample(keys, len(keys))
        self.layout = torch.channels_last if last else torch.preserve_format

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> torch.Tensor:
        return load_file(self.folder / f"{self.keys[index]}.safetensors")["features"].clone(memory_format=self.layout)


class Stored(Raw):
    """The same from a store: checked, and in the branch's layout."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        super().__init__(folder, keys)
        self.store = FeatureStore(folder, memory_bytes=0)

    def __getitem__(self, index: int) -> torch.Tensor:
        found = self.store.get(self.keys[index])
        assert found is not None
        return found


def _pass(way: Raw, workers: int) -> float:
    if isinstance(way, Stored):
        way.store._recent.clear()
    loader = DataLoader(way, batch_size=None, num_workers=workers)
    items = iter(loader)
    next(items)
    # Without the start of the workers.
    begun = time.perf_counter()
    count = sum(1 for _ in items)
    return (time.perf_counter() - begun) * len(way) / count


def _forget(folder: Path) -> None:
    """Ask the system to drop the files from its memory, where it can be asked."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file, suppress(OSError, AttributeError):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _inputs_of(*modules: torch.nn.Module) -> Iterator[list[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]]:
    """The arguments of modules, while a step is made."""
    found: list[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, args, kwargs: found.append((m, args, kwargs)), with_kwargs=True)
        for module in modules
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _alone(inputs: list[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]) -> None:
    """Projector and fuser forward and backward, without the host: hooks see no gradients of weights being made."""

    def fresh(value: Any) -> Any:
        return value.detach().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value

    for module, args, kwargs in inputs:
        made = module(*map(fresh, args), **{name: fresh(value) for name, value in kwargs.items()})
        made.backward(torch.ones_like(made))
        module.zero_grad(set_to_none=True)


def _step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)


def _videos(folder: Path, count: int, frames: int) -> Path:
    """Rows of videos, as folders of pictures."""
    from PIL import Image

    rows = []
    for number in range(count):
        names = []
        generator = torch.Generator().manual_seed(number)
        for place in range(frames):
            small = torch.rand(1, 3, 12, 20, generator=generator)
            picture = torch.nn.functional.interpolate(small, (240, 400), mode="bicubic")[0].clamp(0, 1)
            name = f"v{number}_{place}.jpg"
            Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(folder / name)
            names.append(name)
        turns = [{"from": "human", "value": "<video>\n?"}, {"from": "gpt", "value": "!"}]
        rows.append({"video": names, "conversations": turns})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def _units(store: Path, settings: list[str], rows: Path) -> RecipeUnits:
    return RecipeUnits(make_request(RECIPE, settings, store=str(store), files=[str(rows)]))


def _one(worker: Worker, unit: int) -> None:
    for done in worker.run([unit]):
        assert done.made == 1, done


def _whole_run(units: RecipeUnits, frames: list[torch.Tensor]) -> tuple[float, float]:
    """Seconds of bare calls for all clips, and of a run that does them all: it decodes the next ones meanwhile.

    Half of the bare calls come before the run and half behind it, so that a machine that slows down slows down both.
    """
    worker = Worker(units)
    prior = _rows_of(worker).prior
    half = len(frames) // 2
    bare = sum(clock(partial(prior, some))[0] for some in frames[:half])
    begun = time.perf_counter()
    for done in worker.run(range(len(units))):
        assert done.made == 1, done
    worker.pack()
    run = time.perf_counter() - begun
    return bare + sum(clock(partial(prior, some))[0] for some in frames[half:]), run


def _rows_of(worker: Worker) -> OpenedRows:
    assert isinstance(worker.opened, OpenedRows)
    return worker.opened


class TimedUnits(RecipeUnits):
    """Units whose workers note when each clip is done, so that all launchers are measured alike."""

    def open(self) -> OpenedRows:
        return TimedRows(self)


class TimedRows(OpenedRows):
    """A line for each clip, in a file of each process."""

    def keep(self, clip: Clip) -> None:
        super().keep(clip)
        with _notes(Path(self.units.request.store.url)).joinpath(str(os.getpid())).open("a") as file:
            file.write(f"{time.time()}\n")


def _notes(store: Path) -> Path:
    folder = store.with_name(f"{store.name}.times")
    folder.mkdir(exist_ok=True)
    return folder


def _timed(store: Path, settings: list[str], rows: Path) -> TimedUnits:
    return TimedUnits(make_request(RECIPE, settings, store=str(store), files=[str(rows)]))


def _rate(store: Path) -> float:
    """Clips a second while both processes work: neither's start counts, nor what one does alone at the end."""
    times = [sorted(map(float, path.read_text().split())) for path in _notes(store).iterdir()]
    if len(times) != 2:
        raise typer.BadParameter(f"{len(times)} process(es) did all clips, expected 2: ask for more --clips.")
    begin, end = max(own[0] for own in times), min(own[-1] for own in times)
    both = [[at for at in own if begin <= at <= end] for own in times]
    if min(map(len, both)) < 3:
        raise typer.BadParameter("The two processes hardly worked at the same time: ask for more --clips.")
    # Each process from a clip's end to a clip's end: counting both in one window is wrong by up to a clip.
    return sum((len(own) - 1) / (own[-1] - own[0]) for own in both)


def _by_torchrun(store: Path, settings: list[str], rows: Path) -> float:
    """Two ranks, as ``torchrun ... vega3d extract`` makes them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, __file__, "rank", str(store), str(rows), *settings]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONGEST)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return _rate(store)


@app.command("rank", hidden=True)
def rank(store: Path, rows: Path, settings: list[str]) -> None:
    """One of two ranks."""
    extract_shard(_timed(store, settings, rows), rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]))


def _by_ray(store: Path, settings: list[str], rows: Path) -> float:
    """Two actors on this machine."""
    from vega3d_plugin.features.extraction.with_ray import extract_with_ray

    extract_with_ray(_timed(store, settings, rows), actors=2)
    return _rate(store)


#: Seconds that ranks may take before they are given up.
LONGEST = 900
LAUNCHERS = {"torchrun": _by_torchrun, "ray": _by_ray}


if __name__ == "__main__":
    app()
