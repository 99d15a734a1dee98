"""Files under attack: every kind that the library reads, damaged in its bytes, its keys and its values.

Wrong is what costs more than a second and 100 MB beyond what the whole file costs, an error that does not name the
damaged file or its folder, and content that is not what was saved where a checksum stands beside it.
"""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from _damage import damaged
from _rows import Row
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.analysis.comparing import _downstream
from vega3d_plugin.analysis.report.analysis_report import analysis_page
from vega3d_plugin.analysis.report.page import render
from vega3d_plugin.analysis.report.results import read_results
from vega3d_plugin.checkpoints import branch_files
from vega3d_plugin.checkpoints.branch_files import read_branch, write_branch
from vega3d_plugin.checkpoints.fitting import check_fit
from vega3d_plugin.checkpoints.reading import holds_branch, read_saved
from vega3d_plugin.checkpoints.released.loading import read_released
from vega3d_plugin.checkpoints.trainer_folder import check_adapter, find_trained
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import Vega3dError
from vega3d_plugin.contracts.settings import BranchSettings
from vega3d_plugin.evaluation.annotations import Sources, annotation_rows
from vega3d_plugin.evaluation.metrics.benchmarks.scanrefer import read_label_ids
from vega3d_plugin.evaluation.metrics.reading import read_rows
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.recipes.library import examine_recipe, read_recipe
from vega3d_plugin.scenes.images import read_image
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.video import sample_video, write_video
from vega3d_plugin.scenes.worlds import rendered_scene
from vega3d_plugin.storage.arrays import read_array, read_arrays
from vega3d_plugin.storage.record import encode_record, make_record
from vega3d_plugin.training.data import ConversationData
from vega3d_plugin.training.manifest import newest_whole, read_manifest, seal_checkpoint, step_of
from vega3d_plugin.training.rows.encoding import Encoder
from vega3d_plugin.training.rows.files import Rows

# After whatever is on the path, so that the same attack can be run on another checkout.
sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("tests", "tests/analysis/report")]

import found
from support import released, scene_layouts
from support.saved_branches import record, tensors
from support.toys.wan import TOYS

#: What reading a damaged file may cost beyond reading the whole one: processor time in seconds, and memory in bytes.
SECONDS, BYTES = 1.0, 100 << 20
#: Trials of each kind, however little time there is.
LEAST = 6
# A trial that takes longer is ended; one that takes more memory than this is refused it.
_ENDED, _ROOM = 20.0, 4 << 30


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: for the table.
        write: writes a whole one into a folder, or several.
        use: reads what is there as the library does, and returns what it found.
        sealed: what was saved carries a checksum: anything else than it is wrong.
    """

    name: str
    write: Callable[[Path], object]
    use: Callable[[Path], object]
    sealed: bool = False
    hidden: tuple[str, ...] = ()


class _EndedError(BaseException):
    """A trial took too long."""


def run(seconds: float) -> list[dict[str, Any]]:
    """All kinds, for about so many seconds together."""
    share = seconds / len(KINDS)
    least = LEAST if seconds else 3
    before, branch_files._PATIENCE = branch_files._PATIENCE, 0.0
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="vega3d-faults-") as folder:
            warnings.simplefilter("ignore")
            return [asdict(attacked(kind, Path(folder) / str(i), share, least)) for i, kind in enumerate(KINDS)]
    finally:
        branch_files._PATIENCE = before


def attacked(kind: Kind, home: Path, seconds: float, least: int) -> Row:
    """Damage one file of a kind at a time, for about so many seconds."""
    home.mkdir()
    row, rng, until = Row(f"damaged: {kind.name}"), random.Random(kind.name), time.monotonic() + seconds
    kind.write(home)
    files = sorted(path for path in home.rglob("*") if path.is_file() and path.name not in kind.hidden)
    whole = kind.use(home)
    _, seconds_used, bytes_used = measured(lambda: kind.use(home))
    there = {path.relative_to(home) for path in home.rglob("*")}
    with room():
        while time.monotonic() < until or row.trials < least:
            row.trials += 1
            path = rng.choice(files)
            data = path.read_bytes()
            new = damaged(path.name, data, rng)
            # Another file: the old one may still be mapped into memory.
            replaced(path, new)
            problem = judged(kind, home, path, whole if kind.sealed else None, seconds_used, bytes_used, row)
            if problem:
                print(f"{kind.name}: {path.name}: {problem}", file=sys.stderr)
            left = {path.relative_to(home) for path in home.rglob("*")} - there
            row.leftovers += len(left)
            replaced(path, data)
    shutil.rmtree(home)
    return row


def judged(kind: Kind, home: Path, path: Path, whole: object, seconds: float, size: int, row: Row) -> str:
    """Read a damaged file; count what came of it, and say what was wrong."""
    found, took, grew = measured(lambda: kind.use(home))
    if isinstance(found, Exception | _EndedError) and not isinstance(found, Vega3dError):
        row.raw += 1
        return f"{type(found).__name__}: {str(found)[:300]}"
    if took > SECONDS + 3 * seconds or grew > BYTES + 3 * max(size, 0):
        row.wrong += 1
        return f"took {took:.1f} s and {grew >> 20} MB"
    if isinstance(found, Vega3dError):
        told = str(found)
        if not any(name in told for name in (path.name, str(path.parent), path.stem)):
            row.wrong += 1
            return f"no file in: {told[:300]}"
    elif whole is not None and not same(found, whole):
        row.wrong += 1
        return "something else than was saved"
    return ""


def measured(act: Callable[[], object]) -> tuple[object, float, int]:
    """What came of it, its processor time, and by how much memory grew at its peak."""
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak(), time.process_time()
    found: object
    try:
        with ended_after(_ENDED), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            found = act()
    except (Exception, _EndedError) as error:
        found = error
    return found, time.process_time() - began, peak() - before


def peak() -> int:
    """The largest memory of this process since the mark was reset, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    def end(*_: object) -> None:
        raise _EndedError(f"it was ended after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def room() -> Iterator[None]:
    """A bound on memory, so that an allocation of the size that a file claims fails here instead of on the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def replaced(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def same(found: object, whole: object) -> bool:
    if isinstance(whole, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, whole)
    if isinstance(whole, dict):
        return isinstance(found, dict) and found.keys() == whole.keys() and all(same(found[k], whole[k]) for k in whole)
    return found == whole


# Settings and recipes


def settings(folder: Path) -> None:
    chosen = BranchSettings.parse({"prior": {"name": "tiny-wan", "timestep": 300, "size": [48, 80]}})
    (folder / "a.yaml").write_text(chosen.to_yaml())
    (folder / "b.json").write_text(chosen.to_json())


def recipe(folder: Path) -> None:
    (folder / "base.yaml").write_text(
        "version: 1\nhost:\n  model: tiny\n  adapter: qwen_vl\nprior:\n  name: tiny-wan\n  size: [48, 80]\ndata:\n"
        "  files: [rows.json]\n"
        "train:\n  max_steps: 2\n  learning_rate: 1e-4\n  batch_size: 2\n"
    )
    (folder / "mine.yaml").write_text(
        "extends: ./base.yaml\nprior:\n  timestep: 700\nlora:\n  r: 4\n  modules_to_save: [vega3d]\n"
    )


def use_recipe(folder: Path) -> object:
    examine_recipe(folder / "mine.yaml")
    return read_recipe(folder / "mine.yaml")


# Branches and checkpoints


def branch(folder: Path) -> None:
    write_branch(folder, record(300), tensors(300))


def whole_branch(folder: Path) -> None:
    """One whose tensors fit its settings."""
    chosen = BranchSettings.parse({"prior": {"name": "tiny-wan"}, "projector": {"hidden_dim": 8}})
    parts = {
        "projector": vega3d.build_projector("mlp", 96, 8, hidden_dim=8),
        "fuser": vega3d.build_fuser("token_gated_residual", 8),
    }
    made = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    sizes = {"hidden_size": 8, "merge": 2, "feature_dim": 96}
    write_branch(folder, make_record(chosen, host="qwen_vl", fingerprint="f", **sizes), made)


def use_branch(folder: Path) -> object:
    holds_branch(folder)
    saved = read_branch(folder)
    return {"record": saved.record, "tensors": saved.tensors}


def use_info(folder: Path) -> object:
    for options in ([], ["--json"]):
        found = CliRunner().invoke(app, ["info", str(folder), *options])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        if found.exit_code not in (0, 1):
            raise RuntimeError(f"exit code {found.exit_code}: {found.output[:200]}")
        if "Traceback" in found.output or any(ord(c) < 32 and c not in "\n\t" for c in found.output):
            raise RuntimeError(f"what it prints acts on the terminal: {found.output[:200]!r}")
    return None


def in_host(timestep: int) -> dict[str, torch.Tensor]:
    inside = {**tensors(timestep), "record": encode_record(record(timestep))}
    return {f"model.visual.vega3d.{key}": tensor for key, tensor in inside.items()}


def adapter(folder: Path) -> None:
    lora = {
        "base_model.model.q_proj.lora_A.weight": torch.ones(4, 8),
        "base_model.model.q_proj.lora_B.weight": torch.ones(8, 4),
    }
    save_file(
        {**lora, **{f"base_model.model.{k}": t for k, t in in_host(300).items()}}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["q_proj"],
                "modules_to_save": ["vega3d"],
                "rank_pattern": {},
            }
        )
    )


def adapter_bin(folder: Path) -> None:
    adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({f"base_model.model.{k}": t for k, t in in_host(300).items()}, folder / "adapter_model.bin")


def use_adapter(folder: Path) -> object:
    found = find_trained("somebody/host", folder)
    check_adapter(folder)
    return found, read_saved(folder).record


def sharded(folder: Path) -> None:
    released.shards(folder, in_host(300), save_file, "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "hidden_size": 8}))


def pickled_shards(folder: Path) -> None:
    released.shards(folder, in_host(300), torch.save, "pytorch_model.bin")


def use_saved(folder: Path) -> object:
    holds_branch(folder)
    saved = read_saved(folder)
    check_fit(saved.where, saved.record, saved.tensors)
    return None


def read_only(folder: Path) -> object:
    holds_branch(folder)
    return read_saved(folder).record


def released_one(folder: Path) -> None:
    released.write(folder, released.llava_tensors(), released.LLAVA)


def released_bin(folder: Path) -> None:
    released.write(folder, released.qwen_tensors(), released.TOWER, "pytorch_model.bin")


def released_shards(folder: Path) -> None:
    released.shards(folder, released.qwen_tensors(), save_file, "model.safetensors")
    (folder / "config.json").write_text(json.dumps(released.TOWER))


def checkpoint(folder: Path) -> None:
    place = folder / "checkpoint-2"
    place.mkdir()
    torch.save({"state": {0: {"exp_avg": torch.ones(500)}}, "param_groups": []}, place / "optimizer.pt")
    torch.save({"last_epoch": 2}, place / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, place / "rng_state.pth")
    save_file({"weight": torch.ones(300)}, place / "adapter_model.safetensors")
    (place / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": [{"loss": 1.0}]}))
    seal_checkpoint(
        place, {"format": 1, "settings": {"data": {"files": ["a"]}}, "data": {"files": [{"rows": 1, "bytes": 2}]}}, 2
    )


def use_checkpoint(folder: Path) -> object:
    newest_whole(folder)
    read_manifest(folder / "checkpoint-2")
    return step_of(folder / "checkpoint-2")


# Priors and features


def prior(folder: Path) -> None:
    TOYS[0].write(folder)


def use_prior(folder: Path) -> object:
    return vega3d.load_prior("wan2.1-t2v-1.3b", pretrained=folder, size=(32, 48), tap=2).fingerprint


def external(folder: Path) -> None:
    np.save(folder / f"{'ab' * 16}.npy", np.ones((2, 3, 4, 5), dtype=np.float32))
    save_file({"features": torch.ones(2, 3, 4, 5)}, folder / f"{'cd' * 16}.safetensors")


def use_external(folder: Path) -> object:
    found = vega3d.load_prior("external", pretrained=folder)
    for file in sorted(folder.iterdir()):
        found._read(file)  # type: ignore[attr-defined]
    return None


class Plain(vega3d.Prior):
    """For a store."""

    feature_dim, fingerprint = 3, "plain"

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, :, ::4, ::4] + 1


KEY = "ab" * 16


def store(folder: Path) -> None:
    made = vega3d.FeatureStore(folder)
    made.bind(Plain())
    made.put(KEY, torch.arange(120.0).reshape(2, 3, 4, 5))


def use_store(folder: Path) -> object:
    made = vega3d.FeatureStore(folder)
    made.bind(Plain())
    found = made.get(KEY)
    # None: told, and computed again.
    return torch.arange(120.0).reshape(2, 3, 4, 5) if found is None else found


def arrays(folder: Path) -> None:
    np.save(folder / "a.npy", np.arange(24.0).reshape(4, 6))
    np.savez(folder / "b.npz", first=np.arange(4), second=np.ones((2, 3), dtype=np.float32))
    np.savez_compressed(folder / "c.npz", first=np.zeros((200, 300)))


def use_arrays(folder: Path) -> object:
    read_array(folder / "a.npy", Vega3dError)
    return [len(read_arrays(folder / name, Vega3dError)) for name in ("b.npz", "c.npz")]


# Rows, answers, annotations


def rows(folder: Path) -> None:
    Image.new("RGB", (56, 56), (9, 90, 200)).save(folder / "a.png")
    said = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "There."}]
    chat = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "!"},
    ]
    plain = {"id": 1, "image": "a.png", "conversations": said}
    marked = {**plain, "spar_info": {"type": "depth_prediction_oc", "red_point": [[5, 6]], "blue_point": [[90, 6]]}}
    (folder / "rows.json").write_text(json.dumps([plain, {"messages": chat}, marked], indent=1))
    (folder / "rows.jsonl").write_text(
        "\n".join(
            map(json.dumps, [plain, {"messages": chat}, {"scene": "room:3?views=2&size=48x64", "conversations": said}])
        )
    )


def use_rows(folder: Path) -> object:
    read = Rows([folder / "rows.json", folder / "rows.jsonl"])
    data = ConversationData(read, Encoder(None, DataSettings(files=["rows.json"])))
    data.check()
    return len(read)


def answers(folder: Path) -> None:
    one = {"id": "a", "prediction": "left", "answer": "left", "question_type": "x"}
    (folder / "a.jsonl").write_text("\n".join(json.dumps({**one, "id": f"a{i}"}) for i in range(4)))
    (folder / "b.json").write_text(json.dumps([one]))


def use_answers(folder: Path) -> object:
    return [len(read_rows(folder / name)[0]) for name in ("a.jsonl", "b.json")]


SCENE = "scene9001_00"


def annotations(folder: Path) -> None:
    referred = {
        "scene_id": SCENE,
        "object_id": "1",
        "object_name": "stool",
        "ann_id": "0",
        "description": "the stool",
        "token": [],
    }
    (folder / "annotations.json").write_text(json.dumps([referred]))
    boxes = [[3.0, 1.0, 0.3, 0.4, 0.4, 0.6], [0.5, 1.0, 0.3, 0.4, 0.4, 0.6]]
    (folder / "boxes.json").write_text(json.dumps({f"scannet/{SCENE}": boxes}))
    (folder / "labels.tsv").write_text("id\traw_category\tnyu40id\n1\tstool\t5\n2\tdesk\t14\n")


def use_annotations(folder: Path) -> object:
    labels = folder / "labels.tsv"
    read_label_ids(labels)
    sources = Sources("val", boxes=folder / "boxes.json", proposals=folder / "boxes.json", labels=labels)
    return len(annotation_rows("scanrefer", [folder / "annotations.json"], sources).rows)


# Analyses


def analysis(folder: Path) -> None:
    for name, made in (("a", found.correspondence()), ("b", found.readouts()), ("c", found.swept())):
        (folder / f"{name}.json").write_text(made.to_json())
    (folder / "scores.csv").write_text("prior,score\nsome-prior,0.5\nother,0.7\n")


def use_analysis(folder: Path) -> object:
    _downstream(folder / "scores.csv", None)
    results = read_results(folder)
    render(analysis_page(results))
    return len(results.found)


# Pictures, videos, scenes


def pictures(folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for end in ("png", "jpg", "webp", "bmp", "tif", "ppm"):
        picture.save(folder / f"a.{end}")
    picture.save(folder / "b.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")


def use_pictures(folder: Path) -> object:
    return [read_image(path).shape for path in sorted(folder.iterdir())]


def videos(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    write_video(folder / "a.mp4", frames)
    for name, codec, form in (("b.avi", "mpeg4", "yuv420p"), ("c.mkv", "ffv1", "yuv420p"), ("d.gif", "gif", "rgb8")):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=5)
            stream.width, stream.height, stream.pix_fmt = 48, 32, form
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))


def use_videos(folder: Path) -> object:
    return [len(sample_video(path, 3)[1]) for path in sorted(folder.iterdir())]


def room_in(layout: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        scene = rendered_scene(2, 3, (48, 64))
        match layout:
            case "embodiedscan":
                scene_layouts.write_embodiedscan(scene, folder / "scene")
            case "colmap":
                scene_layouts.write_colmap(scene, folder / "scene", True)
            case "colmap_text":
                scene_layouts.write_colmap(scene, folder / "scene", False)
            case "transforms":
                scene_layouts.write_transforms(scene, folder / "scene", ".npy")
            case "tum":
                scene_layouts.write_tum(scene, folder / "scene")
            case "stereo":
                generator = np.random.default_rng(0)
                pair = generator.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
                scene_layouts.write_middlebury(folder / "scene", generator.uniform(1, 9, (24, 32)), pair)
            case _:
                scene_layouts.write_posed_images(scene, folder / "scene")

    return write


def use_scene(folder: Path) -> object:
    infos = sorted(folder.rglob("*infos*.pkl"))
    address = f"{infos[0]}#room_0002" if infos else str(folder / "scene")
    # What a check of geometry reads is read below; its own rules are no matter of bytes.
    scene = open_scene(
        address, check=False, **({"sparse_depth": True} if (folder / "scene" / "sparse").exists() else {})
    )
    for view in scene.views:
        view.frame()
        view.depth()
    return scene.fingerprint


LAYOUTS = ("posed_images", "transforms", "tum", "colmap", "colmap_text", "embodiedscan", "stereo")
KINDS = (
    Kind("settings, YAML and JSON", settings, lambda f: [BranchSettings.read(f / n) for n in ("a.yaml", "b.json")]),
    Kind("a recipe and its base", recipe, use_recipe),
    Kind("a saved branch", branch, use_branch, sealed=True, hidden=("README.md",)),
    Kind("vega3d info", whole_branch, use_info, hidden=("README.md",)),
    Kind("a PEFT adapter", adapter, use_adapter),
    Kind("a PEFT adapter, pickled", adapter_bin, use_adapter),
    Kind("a whole model in shards, with its index", sharded, read_only),
    Kind("a whole model in pickled shards", pickled_shards, read_only),
    Kind("a released checkpoint", released_one, lambda f: read_released(f).summary),
    Kind("a released checkpoint, pickled", released_bin, lambda f: read_released(f).summary),
    Kind("a released checkpoint in shards", released_shards, lambda f: read_released(f).summary),
    Kind("a checkpoint of a run", checkpoint, use_checkpoint),
    Kind("a prior's folder", prior, use_prior),
    Kind("features from elsewhere", external, use_external),
    Kind("a feature store", store, use_store, sealed=True),
    Kind("arrays", arrays, use_arrays),
    Kind("rows", rows, use_rows),
    Kind("answers to score", answers, use_answers),
    Kind("annotations, boxes, labels", annotations, use_annotations),
    Kind("results of analyses", analysis, use_analysis),
    Kind("pictures", pictures, use_pictures),
    Kind("videos", videos, use_videos),
    *(Kind(f"a scene, {layout}", room_in(layout), use_scene) for layout in LAYOUTS),
)  # fmt: skip
