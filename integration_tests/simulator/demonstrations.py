"""Invented demonstrations: a scripted policy that knows where everything is, run in the simulator.

``python -m simulator.demonstrations OUT --suite libero_spatial --task 0 --episodes 2`` in ``integration_tests`` writes
them in LIBERO's own HDF5 layout, as ``OUT/TASK_demo.hdf5``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.tasks import environment_of

Floats = NDArray[np.float64]

#: Metres that the arm is asked to move in a step by an action of 1, and the gripper's two states.
REACH, OPEN, SHUT = 0.05, -1.0, 1.0
#: Things are held by their rim, this far from their middle (metres), and put down as high above the goal.
RIM, DOWN, ABOVE = np.array([0.0, 0.05, 0.0]), np.array([0.0, 0.0, 0.03]), np.array([0.0, 0.0, 0.15])


@dataclass
class Episode:
    """What one demonstration holds, step by step.

    Attributes:
        states: the simulator's before each action.
        actions: ``[7]`` each: translation, rotation, gripper.
        observations: what was seen before each action.
        success: whether the task was done by the last action.
    """

    states: list[Floats] = field(default_factory=list)
    actions: list[Floats] = field(default_factory=list)
    observations: list[dict[str, Any]] = field(default_factory=list)
    success: bool = False


class Scripted:
    """Puts the first object of interest of a task on the second.

    Args:
        environment: LIBERO's, with things at rest.
        episode: receives every step.
        seen: the present observation.
    """

    def __init__(self, environment: Any, episode: Episode, seen: dict[str, Any]) -> None:
        self.environment, self.episode, self.seen = environment, episode, seen

    def act(self) -> None:
        """From beginning to end."""
        thing, goal = self.environment.obj_of_interest[:2]
        self._go(lambda: self._place(thing) + RIM + ABOVE, OPEN, 60)
        self._go(lambda: self._place(thing) + RIM + DOWN, OPEN, 60)
        self._hold(SHUT)
        self._rise(0.2, SHUT)
        held = self.hand - self._place(thing)
        self._go(lambda: self._place(goal) + held + ABOVE, SHUT, 80)
        self._go(lambda: self._place(goal) + held + DOWN, SHUT, 60)
        self._hold(OPEN)
        self._rise(0.15, OPEN)

    @property
    def hand(self) -> Floats:
        return np.array(self.seen["robot0_eef_pos"])

    def _place(self, name: str) -> Floats:
        inner = self.environment.env
        return np.array(self.environment.sim.data.body_xpos[inner.obj_body_id[name]])

    def _rise(self, by: float, gripper: float) -> None:
        top = self.hand + np.array([0.0, 0.0, by])
        self._go(lambda: top, gripper, 60)

    def _hold(self, gripper: float) -> None:
        here = self.hand
        for _ in range(12):
            self._step(here - self.hand, gripper)

    def _go(self, target: Callable[[], Floats], gripper: float, longest: int) -> None:
        for _ in range(longest):
            way = target() - self.hand
            self._step(way, gripper)
            if np.linalg.norm(way) < 0.008:
                return

    def _step(self, way: Floats, gripper: float) -> None:
        if self.episode.success:
            return
        action = np.array([*np.clip(way / REACH, -1, 1), 0.0, 0.0, 0.0, gripper])
        self.episode.states.append(self.environment.get_sim_state())
        self.episode.observations.append(self.seen)
        self.episode.actions.append(action)
        self.seen, _, done, _ = self.environment.step(action.tolist())
        self.episode.success = bool(done)


def demonstrate(environment: Any) -> Episode:
    """One episode, from the state that the environment is in."""
    seen = environment.first
    for _ in range(10):
        seen = environment.step([0.0] * 6 + [OPEN])[0]
    episode = Episode()
    Scripted(environment, episode, seen).act()
    return episode


def demonstrations(suite: str, number: int, states: range, size: int = 128) -> Iterator[tuple[Any, Episode]]:
    """One episode for each of a task's initial states, with its environment."""
    for state in states:
        environment = environment_of(suite, number, size=size, state=state)
        try:
            yield environment, demonstrate(environment)
        finally:
            environment.close()


def write_hdf5(folder: Path, suite: str, number: int, states: range, size: int = 128) -> Path:
    """Write ``TASK_demo.hdf5`` with the episodes that reached their goal, as LIBERO's own files are laid out.

    Pictures lie upside down, as the simulator gives them (OpenGL's convention, which the file names).
    """
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    path, kept = None, 0
    file: Any = None
    try:
        for environment, episode in demonstrations(suite, number, states, size):
            if file is None:
                path = folder / f"{environment.task.name}_demo.hdf5"
                file = h5py.File(path, "w")
                data = file.create_group("data")
                _describe(data, environment)
            if episode.success:
                _write_episode(data.create_group(f"demo_{kept}"), episode)
                kept += 1
        data.attrs["num_demos"] = kept
        data.attrs["total"] = sum(len(data[name]["actions"]) for name in data)
    finally:
        if file is not None:
            file.close()
    assert path is not None
    return path


def _describe(data: Any, environment: Any) -> None:
    inner = environment.env
    data.attrs["tag"] = "libero-v1"
    data.attrs["macros_image_convention"] = "opengl"
    data.attrs["bddl_file_name"] = os.fspath(inner.bddl_file_name)
    data.attrs["env_name"] = type(inner).__name__
    data.attrs["env_args"] = json.dumps(
        {"type": 1, "env_name": type(inner).__name__, "env_kwargs": {"robots": ["Panda"]}}
    )
    data.attrs["problem_info"] = json.dumps(
        {
            "problem_name": environment.problem_name,
            "domain_name": environment.domain_name,
            "language_instruction": environment.task.language,
        }
    )


def _write_episode(group: Any, episode: Episode) -> None:
    from robosuite.utils.transform_utils import quat2axisangle

    seen = episode.observations
    count = len(episode.actions)
    last = np.arange(count) == count - 1
    position = np.stack([o["robot0_eef_pos"] for o in seen])
    turn = np.stack([quat2axisangle(np.array(o["robot0_eef_quat"])) for o in seen])
    gripper = np.stack([o["robot0_gripper_qpos"] for o in seen])
    values = {
        "actions": np.stack(episode.actions),
        "states": np.stack(episode.states),
        "dones": last.astype(np.uint8),
        "rewards": last.astype(np.uint8),
        "robot_states": np.concatenate([gripper, position, np.stack([o["robot0_eef_quat"] for o in seen])], axis=1),
        "obs/agentview_rgb": np.stack([o["agentview_image"] for o in seen]),
        "obs/eye_in_hand_rgb": np.stack([o["robot0_eye_in_hand_image"] for o in seen]),
        "obs/ee_pos": position,
        "obs/ee_ori": turn,
        "obs/ee_states": np.concatenate([position, turn], axis=1),
        "obs/gripper_states": gripper,
        "obs/joint_states": np.stack([o["robot0_joint_pos"] for o in seen]),
    }
    for name, array in values.items():
        group.create_dataset(name, data=array)
    group.attrs["num_samples"] = count
    group.attrs["init_state"] = episode.states[0]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=1)
    given = parser.parse_args()
    print(f"Wrote {write_hdf5(given.out, given.suite, given.task, range(given.episodes))}")


if __name__ == "__main__":
    main()
