"""What extraction and a store cost beside the prior and the disk: the figures to read are the ratios.

    python benchmarks/extraction.py                 # 2 CPU cores, some minutes; OMP_NUM_THREADS=1
    python benchmarks/extraction.py extract         # clips a second against bare calls of the prior
    python benchmarks/extraction.py read            # entries a second against raw safetensors
    python benchmarks/extraction.py step            # a training step with everything stored against the bare host
    python benchmarks/extraction.py rounding        # what bf16 and int8 change

Both sides of a ratio are measured in turn in one run, so that a busy machine disturbs both.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

import vega3d
from vega3d_plugin.features.extraction.shard import Worker
from vega3d_plugin.features.forms import FORMS, Form, entry_bytes
from vega3d_plugin.features.store import FeatureStore
from vega3d_plugin.training.extraction import RecipeUnits, make_request
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

app = typer.Typer(add_completion=False)
out = Console(width=116)
RECIPE = "qwen_vl/smoke"


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
    table = _table("32 frames of Wan 1.3B for LLaVA-Video (14x14 tokens a frame)", "form", "a clip", "100,000 clips")
    for form in FORMS:
        shape = (32, 1536, 14, 14) if form.aligned else (32, 1536, 45, 80)
        for item, name in ((4, "float32"), (2, "bfloat16")):
            if form.numbers and item == 4:
                continue
            count = entry_bytes(shape, form, item)
            label = f"{form}" + ("" if form.numbers else f", computed in {name}")
            table.add_row(label, f"{count / 1e6:.1f} MB", f"{count * 1e5 / 1e12:.2f} TB")
    out.print(table)


@app.command("extract")
def extract(
    clips: Annotated[int, typer.Option(help="Clips of each length.")] = 6,
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 3,
    side: Annotated[str, typer.Option(help="Size of the prior's frames.")] = "[192, 320]",
    lengths: Annotated[str, typer.Option(help="Frames of the clips.")] = "8,32",
) -> None:
    """Clips a second of one and two processes against bare calls of the prior, on the same frames."""
    table = _table(
        f"extraction, {RECIPE}, frames for the prior {side}",
        "frames", "bare calls", "one process", "ratio", "CPU seconds, ratio", "two ranks",
    )  # fmt: skip
    for frames in map(int, lengths.split(",")):
        folder = Path(tempfile.mkdtemp())
        rows = _videos(folder, clips, frames)
        settings = ["projector.hidden_dim=16", f"prior.size={side}", f"data.frames={frames}", "host.max_pixels=50176"]
        bare: list[tuple[float, float]] = []
        ours: list[tuple[float, float]] = []
        ranks: list[float] = []
        for number in range(repeats):
            units = _units(folder / f"{number}", settings, rows)
            worker = Worker(units)
            found = [clip for unit in range(len(units)) for clip in worker.opened.clips(unit)]
            prior = worker.opened.prior  # type: ignore[attr-defined]  # OpenedRows
            prior(found[0].frames)
            bare.append(_timed(lambda found=found, prior=prior: [prior(clip.frames) for clip in found]))
            ours.append(_timed(lambda worker=worker, units=units: (list(worker.run(range(len(units)))), worker.pack())))
            ranks.append(_two_ranks(folder / f"ranks{number}", settings, rows))
        base, own = (median(each[0] for each in side) for side in (bare, ours))
        ratio = median(b[0] / o[0] for b, o in zip(bare, ours, strict=True))
        processor = median(b[1] / o[1] for b, o in zip(bare, ours, strict=True))
        table.add_row(
            str(frames), f"{clips / base:.3f}/s", f"{clips / own:.3f}/s", f"{ratio:.1%}", f"{processor:.1%}",
            f"{clips / median(ranks):.3f}/s",
        )  # fmt: skip
        shutil.rmtree(folder)
    out.print(table)


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
    ways = {"raw safetensors": Raw(folder / "raw", keys)}
    ways |= {f"store, {name}": Stored(folder / name, keys) for name in ("loose", "shards")}
    table = _table(
        f"reading {entries} maps {list(shape)} bfloat16 in random order", "way", "workers", "disk", "entries/s", "MB/s"
    )
    times: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(repeats):
        for workers in (0, 2):
            for disk in ("cold", "warm"):
                for name, way in ways.items():
                    if disk == "cold":
                        _forget(folder)
                    times.setdefault((name, workers, disk), []).append(_pass(way, workers))
    for (name, workers, disk), seconds in times.items():
        best = median(seconds)
        table.add_row(name, str(workers), disk, f"{entries / best:.0f}", f"{total / best:.0f}")
    out.print(table)
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
    table = _table(
        f"training step, random Qwen2.5-VL, hidden {hidden_size}, {layers} layers, features in files",
        "frames", "form", "bare host", "with the branch", "projector and fuser", "all else", "all else, of the host",
    )  # fmt: skip
    for frames in map(int, lengths.split(",")):
        batch = _batch(frames)
        for form in ("native", "aligned-bf16"):
            folder = Path(tempfile.mkdtemp())
            bare = tiny_model(hidden_size=hidden_size, layers=layers).train()
            store = FeatureStore(folder, memory_bytes=0, form=form)
            model = vega3d.patch(copy.deepcopy(bare), Given(feature_dim), projector={"name": "mlp"}, store=store)
            branch = vega3d.get_handle(model).branch
            own: list[float] = []
            sides: dict[str, list[float]] = {"bare": [], "patched": []}
            _step(model, batch)
            _step(bare, batch)
            store._recent.clear()
            for _ in range(repeats):
                sides["bare"].append(_timed(partial(_step, bare, batch))[0])
                # As of a clip that another one has pushed out of memory.
                store._recent.clear()
                with _sharing(branch) as seconds:
                    whole = _timed(partial(_step, model, batch))[0]
                sides["patched"].append(whole)
                own.append(seconds[0])
            base, whole, share = (median(each) for each in (sides["bare"], sides["patched"], own))
            rest = median(p - o - b for p, o, b in zip(sides["patched"], own, sides["bare"], strict=True))
            table.add_row(
                str(frames), form, f"{base * 1e3:.0f} ms", f"{whole * 1e3:.0f} ms", f"{share * 1e3:.0f} ms",
                f"{rest * 1e3:.0f} ms", f"{rest / base:.1%}",
            )  # fmt: skip
            shutil.rmtree(folder)
    out.print(table)


@app.command("rounding")
def rounding(scenes: Annotated[int, typer.Option(help="Rendered rooms, for correspondence.")] = 4) -> None:
    """What rounding features does to a trained host's logits, and to correspondence of the trained small generator."""
    logits = _logits_by_form()
    found = _correspondence_by_form(scenes)
    table = _table(
        "rounding of features: native float32 is the reference",
        "form", "features, error", "logits, error", "largest answer changes", "correspondence",
    )  # fmt: skip
    for form in FORMS:
        features, change, flips = logits[str(form)]
        score = "" if form.aligned else f"{found[form.numbers]:.4f}"
        table.add_row(str(form), f"{features:.1e}", f"{change:.1e}", f"{flips:.2%}", score)
    out.print(table)


def _logits_by_form() -> dict[str, tuple[float, float, float]]:
    """Errors relative to the largest value, and the share of tokens whose likeliest successor changes."""
    batch = _batch(8)
    del batch["labels"]
    prior = vega3d.load_prior("small-world")
    logits: dict[str, torch.Tensor] = {}
    errors = {}
    for form in FORMS:
        torch.manual_seed(0)
        store = FeatureStore(form=form)
        model = vega3d.patch(tiny_model(hidden_size=256), prior, init="released", store=store).eval()
        with torch.no_grad():
            logits[str(form)] = model(**batch).logits.float()
        (kept,) = store._recent.values()
        plain = FeatureStore(form=Form(form.aligned))
        vega3d.get_handle(model).branch.store = plain
        with torch.no_grad():
            model(**batch)
        (whole,) = plain._recent.values()
        errors[str(form)] = float((kept.float() - whole).abs().max() / whole.abs().max())
    base = logits["native"]
    off = base - _bare_logits(batch)
    return {
        name: (
            errors[name],
            float((value - base).abs().max() / off.abs().max()),
            float((value.argmax(-1) != base.argmax(-1)).float().mean()),
        )
        for name, value in logits.items()
    }


def _bare_logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return tiny_model(hidden_size=256).eval()(**batch).logits.float()  # type: ignore[no-any-return]


def _correspondence_by_form(scenes: int) -> dict[str, float]:
    """The mean score of ``vega3d analyse correspondence`` for the prior and for the prior with rounded features."""
    from vega3d_plugin.analysis import correspondence
    from vega3d_plugin.analysis.records import ITSELF
    from vega3d_plugin.features.forms import NUMBERS, decode, encode
    from vega3d_plugin.scenes.opening import open_scenes

    opened = open_scenes([f"room:0..{scenes - 1}?views=6&size=96x128"])
    found = {}
    for numbers in NUMBERS:
        prior = vega3d.load_prior("small-world")
        extract = prior.extract
        prior.extract = lambda *a, e=extract, n=numbers: decode(encode(e(*a), n)).float()
        found[numbers] = _score(correspondence, prior, opened, ITSELF)
    return found


def _score(correspondence: Any, prior: Any, scenes: Any, itself: str) -> float:
    result = correspondence(prior, scenes, contexts=["views"], controls=False, check=False)
    (scores,) = result.priors
    return float(scores.figure(result.headline, itself).value)


class Given(vega3d.Prior):
    """Features of the right shape that cost nothing."""

    fingerprint = "given"

    def __init__(self, feature_dim: int) -> None:
        self.feature_dim = feature_dim

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(frames.shape[0], self.feature_dim, 30, 52, generator=generator)


class Raw(Dataset[torch.Tensor]):
    """The least that reading can cost: a file, a copy."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self.folder, self.keys = folder, random.Random(0).sample(keys, len(keys))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> torch.Tensor:
        return load_file(self.folder / f"{self.keys[index]}.safetensors")["features"].clone()


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
def _sharing(branch: Any) -> Iterator[list[float]]:
    """Seconds of projector and fuser, forward and backward."""
    total = [0.0]
    begun: dict[str, float] = {}
    hooks = []
    for module in (branch.projector, branch.fuser):
        hooks += [
            module.register_forward_pre_hook(lambda m, a: begun.__setitem__("f", time.perf_counter())),
            module.register_forward_hook(lambda m, a, o: _add(total, begun["f"])),
            module.register_full_backward_pre_hook(lambda m, g: begun.__setitem__("b", time.perf_counter())),
            module.register_full_backward_hook(lambda m, gi, go: _add(total, begun["b"])),
        ]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def _add(total: list[float], begun: float) -> None:
    total[0] += time.perf_counter() - begun


def _step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)


def _batch(frames: int) -> dict[str, Any]:
    """One video in one prompt."""
    processor = tiny_processor(max_pixels=224 * 224)
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (frames, 3, 224, 224), dtype=torch.uint8, generator=generator)
    options = {"do_sample_frames": False} if hasattr(processor, "video_processor") else {}
    text = "<|vision_start|><|video_pad|><|vision_end|>Left or right?"
    batch = dict(processor(text=[text], videos=[video], return_tensors="pt", **options))
    batch = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in batch.items()}
    return {**batch, "labels": batch["input_ids"].clone()}


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


def _two_ranks(store: Path, settings: list[str], rows: Path) -> float:
    """Seconds from the first clip to the last of two processes, without the start of Python."""
    command = [sys.executable, "-W", "ignore", __file__, "rank", str(store), str(rows), *settings]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "RANK": rank, "WORLD_SIZE": "2"}
        )
        for rank in ("0", "1")
    ]
    times = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return max(end for _, end in times) - min(begin for begin, _ in times)


@app.command("rank", hidden=True)
def rank(store: Path, rows: Path, settings: list[str]) -> None:
    """One of two ranks."""
    units = _units(store, settings, rows)
    worker = Worker(units)
    worker.opened.keep(worker.opened.clips(0)[0])
    shutil.rmtree(store / "x", ignore_errors=True)
    begun = time.time()
    mine = range(int(os.environ["RANK"]), len(units), 2)
    list(worker.run(mine))
    worker.pack()
    print(json.dumps([begun, time.time()]))


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of this process's processor time."""
    gc.collect()
    begun, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - begun, time.process_time() - used


def _table(title: str, *columns: str) -> Table:
    table = Table(title=f"{title}; torch {torch.__version__}", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


if __name__ == "__main__":
    app()
