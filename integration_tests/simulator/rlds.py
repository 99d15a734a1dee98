"""LIBERO's HDF5 demonstrations as the RLDS data set that OpenVLA-OFT trains on, written by TensorFlow Datasets.

``python -m simulator.rlds OUT FILE...`` in ``integration_tests``; a process of its own, since TensorFlow and Mesa crash
in one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Name of the data set in OFT's registry.
NAME = "libero_spatial_no_noops"


def write_rlds(folder: Path, files: list[Path]) -> Path:
    """Write ``folder/libero_spatial_no_noops/1.0.0``; pictures are turned by 180 degrees, as OFT's are."""
    import tensorflow_datasets as tfds

    class LiberoSpatialNoNoops(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = NAME

        def _info(self) -> Any:
            return self.dataset_info_from_configs(features=_features(tfds))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, Any]]:
            for file in files:
                yield from _episodes(file)

    builder = LiberoSpatialNoNoops(data_dir=folder)
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _features(tfds: Any) -> Any:
    picture = tfds.features.Image(shape=(256, 256, 3), dtype=np.uint8, encoding_format="jpeg")

    def numbers(count: int) -> Any:
        return tfds.features.Tensor(shape=(count,), dtype=np.float32)

    step = {
        "observation": {"image": picture, "wrist_image": picture, "state": numbers(8), "joint_state": numbers(7)},
        "action": numbers(7), "discount": np.float32, "reward": np.float32, "is_first": np.bool_, "is_last": np.bool_,
        "is_terminal": np.bool_, "language_instruction": tfds.features.Text(),
    }  # fmt: skip
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": {"file_path": tfds.features.Text()}}
    )


def _episodes(file: Path) -> Iterator[tuple[str, Any]]:
    import h5py

    instruction = " ".join(file.stem.removesuffix("_demo").split("_"))
    with h5py.File(file) as opened:
        told = opened["data"].attrs.get("problem_info")
        instruction = instruction if told is None else json.loads(told)["language_instruction"]
        for name in opened["data"]:
            demo = opened["data"][name]
            yield (
                f"{file.stem}_{name}",
                {"steps": _steps(demo, instruction), "episode_metadata": {"file_path": str(file)}},
            )


def _steps(demo: Any, instruction: str) -> list[dict[str, Any]]:
    last = len(demo["actions"]) - 1
    seen = demo["obs"]
    states = np.concatenate([seen["ee_states"][()], seen["gripper_states"][()]], axis=1).astype(np.float32)
    return [
        {
            "observation": {
                "image": seen["agentview_rgb"][i][::-1, ::-1], "wrist_image": seen["eye_in_hand_rgb"][i][::-1, ::-1],
                "state": states[i], "joint_state": seen["joint_states"][i].astype(np.float32),
            },
            "action": demo["actions"][i].astype(np.float32), "discount": 1.0, "reward": float(i == last),
            "is_first": i == 0, "is_last": i == last, "is_terminal": i == last, "language_instruction": instruction,
        }
        for i in range(last + 1)
    ]  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args()
    # TensorFlow Datasets looks up the package of a builder's class, and `__main__` has none.
    from simulator import rlds

    print(f"Wrote {rlds.write_rlds(given.out, given.files)}")


if __name__ == "__main__":
    main()
