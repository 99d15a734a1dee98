"""``python stand_ins.py HOST run ...``: the command ``vega3d run|extract`` where packages of a script are absent.

Stands in for imports alone: data pipelines in tensorflow, parsers, trackers, the simulator LIBERO, and calls to a GPU
that is not there. The models, their code, PEFT, the optimisers and all that saves are the real ones.
``python stand_ins.py HOST SCRIPT ARGS`` runs a script without ``vega3d run``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import runpy
import sys
import types
import typing
from pathlib import Path
from typing import Any

import torch

#: Packages that the scripts import, and that are no part of what is tested.
ABSENT = {
    "llava": ("deepspeed", "trl"),
    "oft": (
        "draccus", "wandb", "tensorflow", "tensorflow_datasets", "tensorflow_graphics", "dlimp", "json_numpy",
        "absl", "jsonlines", "libero", "imageio", "robosuite", "sentencepiece",
    ),
    "llava3d": ("deepspeed", "trl", "matplotlib", "torch_scatter"),
    "vg": ("flash_attn", "decord", "cv2", "deepspeed"),
}  # fmt: skip


class Anything(types.ModuleType):
    """A module, class or function that gives more of itself, whatever is asked of it."""

    __path__: typing.ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        return sys.modules.get(full) or Anything(full)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As a decorator it leaves the function as it is.
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return (object,)

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __getitem__ = __or__


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install(host: str) -> None:
    # First, so that it finds out what is really there.
    import transformers.modeling_utils
    import transformers.trainer  # noqa: F401

    # LLaVA-NeXT brings a `trl` of its own, which needs `datasets`.
    absent = {name for name in ABSENT[host] if name == "trl" or importlib.util.find_spec(name) is None}
    if host == "oft" and importlib.util.find_spec("imageio_ffmpeg") is None:
        # Without it imageio, which comes with scikit-image, cannot write the script's videos.
        absent.add("imageio")
    sys.meta_path.insert(0, Finder(absent))
    {"llava": llava, "llava3d": llava3d, "oft": oft, "vg": vg}[host]()
    without_a_gpu()


def without_a_gpu() -> None:
    """Calls to a GPU that is not there do nothing, or are for the CPU."""
    if not torch.cuda.is_available():
        for name in ("synchronize", "empty_cache", "set_device"):
            # One function each, as torch.compile wants it.
            setattr(torch.cuda, name, lambda *_: None)
        to = torch.nn.Module.to
        torch.nn.Module.to = lambda self, *where, **how: to(self, *("cpu" if w == "cuda" else w for w in where), **how)


def llava() -> None:
    """What newer releases of transformers and accelerate moved or take otherwise.

    LLaVATrainer's loop is a copy of an older Trainer's that uses names which it never imports, so it runs nowhere;
    Trainer's own, which it would override, is left in its place. Its optimiser, sampler and saves are its own.
    """
    import accelerate
    import accelerate.utils
    import transformers

    transformers.trainer.GradientAccumulationPlugin = accelerate.utils.GradientAccumulationPlugin
    module = importlib.import_module("llava.train.llava_trainer")
    if "_inner_training_loop" in vars(module.LLaVATrainer) and not hasattr(module, "TrainerState"):
        del module.LLaVATrainer._inner_training_loop
    save = transformers.Trainer._save_checkpoint
    if "metrics" not in inspect.signature(save).parameters:
        transformers.Trainer._save_checkpoint = lambda self, model, trial, metrics=None: save(self, model, trial)
    module.Accelerator = lambda dispatch_batches=None, split_batches=None, **options: accelerate.Accelerator(**options)


def llava3d() -> None:
    """LLaVA-NeXT's, ``generate``, and tensors that an evaluation sends to a GPU by name."""
    llava()
    without_flash_attention()
    first_step_without_a_cache()
    meteor()
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self


def first_step_without_a_cache() -> None:
    """The checkouts' copy of Qwen2 knows the first step of ``generate`` by its lack of a cache.

    Newer releases of transformers give that step an empty one, and it would leave out the prompt's embeddings.
    """
    host = importlib.import_module("llava.model.language_model.qwen2.modeling_qwen2").Qwen2ForCausalLM
    prepare = host.prepare_inputs_for_generation

    def prepare_inputs(self: Any, input_ids: Any, past_key_values: Any = None, **options: Any) -> Any:
        empty = hasattr(past_key_values, "get_seq_length") and past_key_values.get_seq_length() == 0
        return prepare(self, input_ids, past_key_values=None if empty else past_key_values, **options)

    host.prepare_inputs_for_generation = prepare_inputs


def meteor() -> None:
    """The checkouts come without METEOR's program; that of pycocoevalcap is the same, and so is the code around it."""
    if importlib.util.find_spec("pycocoevalcap") is not None:
        sys.modules["llava.eval.caption_eval.meteor.meteor"] = importlib.import_module("pycocoevalcap.meteor.meteor")


def vg() -> None:
    """VG-LLM's script asks which of torchrun's processes it is."""
    without_flash_attention()
    if not torch.cuda.is_available() and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def without_flash_attention() -> None:
    """Scripts ask for it by name; it needs a GPU."""
    import transformers

    if torch.cuda.is_available():
        return
    build = transformers.PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: type, *args: Any, **options: Any) -> Any:
        asked = {"attn_implementation": "sdpa"} if options.get("attn_implementation") == "flash_attention_2" else {}
        return build(cls, *args, **{**options, **asked})

    transformers.PreTrainedModel.from_pretrained = classmethod(from_pretrained)


def oft() -> None:
    draccus = importlib.import_module("draccus")
    draccus.wrap = wrap
    draccus.ChoiceRegistry = type("ChoiceRegistry", (), {"register_subclass": classmethod(lambda *_: None)})
    on_the_cpu()
    # The tiny vision towers of the test's checkpoint.
    from rows.openvla import register_towers

    register_towers()
    datasets = importlib.import_module("prismatic.vla.datasets.datasets")
    datasets.get_oxe_dataset_kwargs_and_weights = lambda *_, **__: ([{}], [1.0])
    datasets.make_interleaved_dataset = lambda **_: (Steps(), len(Steps.rows()), statistics())
    # Without tensorflow's JPEG round trip.
    importlib.import_module("experiments.robot.openvla_utils").resize_image_for_policy = resized
    libero = importlib.import_module("libero.libero")
    libero.benchmark = types.SimpleNamespace(get_benchmark_dict=lambda: {"libero_spatial": Suite})
    libero.get_libero_path = str
    importlib.import_module("libero.libero.envs").OffScreenRenderEnv = Environment


def wrap() -> Any:
    """A parser for ``--name value`` into the dataclass that a function takes."""

    def decorate(function: Any) -> Any:
        cls = next(iter(typing.get_type_hints(function).values()))

        def call() -> Any:
            hints = typing.get_type_hints(cls)
            words = iter(sys.argv[1:])
            values = {}
            for word in words:
                name = word.removeprefix("--")
                values[name] = parse(next(words), hints[name])
            return function(cls(**values))

        return call

    return decorate


def parse(word: str, hint: Any) -> Any:
    kind = next((k for k in typing.get_args(hint) if k is not type(None)), hint)
    return json.loads(word.lower()) if kind in (bool, int, float) else kind(word)


def on_the_cpu() -> None:
    """The script asks for a GPU by its number."""
    if torch.cuda.is_available():
        return
    import accelerate
    from torch.nn import parallel

    class State(accelerate.PartialState):
        def __init__(self) -> None:
            # Without a GPU it would take each process for the only one.
            super().__init__(cpu=True)
            self.local_process_index: Any = torch.device("cpu")

    class Wrapped(parallel.DistributedDataParallel):
        def __init__(self, module: Any, device_ids: Any = None, **options: Any) -> None:
            super().__init__(module, **options)

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, **options: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, **options)

    accelerate.PartialState, parallel.DistributedDataParallel, torch.autocast = State, Wrapped, Autocast


class Steps:
    """What the tensorflow pipeline would give: steps of an episode, with the next actions."""

    @staticmethod
    def rows() -> range:
        return range(8)

    def as_numpy_iterator(self) -> Any:
        import numpy as np

        rng = np.random.default_rng(0)
        for _ in self.rows():
            views = {
                name: rng.integers(0, 255, (1, 56, 56, 3), dtype=np.uint8) for name in ("image_primary", "image_wrist")
            }
            yield {
                "dataset_name": b"libero", "action": rng.uniform(-1, 1, (8, 7)).astype(np.float32),
                "observation": {**views, "proprio": rng.uniform(-1, 1, (1, 8)).astype(np.float32)},
                "task": {"language_instruction": b"lift the cup"},
            }  # fmt: skip


def statistics() -> dict[str, Any]:
    """Limits of actions and proprioception, as the pipeline computes them from a data set."""

    def limits(count: int) -> dict[str, Any]:
        low, high = [-1.0] * count, [1.0] * count
        return {"min": low, "q01": low, "max": high, "q99": high, "mask": [True] * count}

    return {"libero_spatial_no_noops": {"action": limits(7), "proprio": limits(8)}}


def resized(image: Any, size: int) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


class Suite:
    """One task with one start."""

    n_tasks = 1

    def get_task(self, index: int) -> Any:
        return types.SimpleNamespace(language="Lift the cup", problem_folder="folder", bddl_file="file")

    def get_task_init_states(self, index: int) -> list[None]:
        return [None]


class Environment:
    """Stands in for the simulator: pictures of noise, and an end after so many actions, which are kept in a file."""

    def __init__(self, **options: Any) -> None:
        self.actions: list[list[float]] = []
        self.side = options["camera_heights"]

    def seed(self, seed: int) -> None:
        pass

    def reset(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        import numpy as np

        rng = np.random.default_rng(len(self.actions))
        shape = (self.side, self.side, 3)
        views = {name: rng.integers(0, 255, shape, dtype=np.uint8) for name in ("agentview", "robot0_eye_in_hand")}
        return {
            **{f"{name}_image": view for name, view in views.items()},
            "robot0_eef_pos": rng.uniform(-1, 1, 3), "robot0_eef_quat": rng.uniform(-0.5, 0.5, 4),
            "robot0_gripper_qpos": rng.uniform(-1, 1, 2),
        }  # fmt: skip

    def step(self, action: list[float]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        self.actions.append(action)
        # Ten of waiting, then more than a chunk of eight.
        done = len(self.actions) == 22
        if done:
            torch.save(torch.tensor(self.actions, dtype=torch.float64), os.environ["VEGA3D_TEST_ACTIONS"])
        return self.get_observation(), 0.0, done, {}


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    here = Path(__file__).resolve().parent
    with contextlib.suppress(ValueError):
        sys.path.remove(str(here))
    sys.argv = ["vega3d", *rest]
    install(name)
    if rest[0] in ("run", "extract"):
        from vega3d_plugin.cli import main

        main()
    else:
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")
