"""Extraction on a Ray cluster, or on this machine's cores: Ray Data hands units to a pool of actors.

Retries, stragglers and back-pressure are Ray's. An actor that dies is started again, and its units with it, of which
those that it had stored are found in the store.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ...contracts.errors import StoreError
from ..shards import SHARD_BYTES
from .shard import Counter, Done, Journal, Tally, Units, Worker

#: Units that an actor is given at once, so that it can decode the next while it works.
TOGETHER = 4
#: Times as many that an actor holds: those that it works on, and those that come next.
IN_FLIGHT = 2
#: Parts that the units are cut into at most; the last one decides how long the others wait.
PARTS = 1000
#: Of a CPU, for an actor without a GPU: two fit on a laptop's core, and Ray's own reading beside them.
CPUS = 0.5


class Actor:
    """A worker in a process of its own. Ray makes it, and calls it with units."""

    def __init__(self, units: Any, shard_bytes: int) -> None:
        self.worker = Worker(units, shard_bytes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Extract some units; what became of each, as JSON."""
        return {"done": [json.dumps(asdict(done)) for done in self.worker.run(int(unit) for unit in batch["unit"])]}


def extract_with_ray(
    units: Units,
    address: str = "auto",
    *,
    actors: int | None = None,
    gpus: bool = False,
    shard_bytes: int = SHARD_BYTES,
    told: Callable[[Done], None] = lambda done: None,
) -> Tally:
    """Extract all units with Ray.

    Args:
        units: what to extract; every machine of the cluster must find the same files under the same names.
        address: of the cluster; ``auto``: the one that is running, else one of this machine's cores.
        actors: at most; default: as many as GPUs, or CPUs.
        gpus: one for each actor.
        shard_bytes: see :class:`~.shard.Worker`.
        told: called after every unit.

    Raises:
        StoreError: Ray is not installed, there is no such cluster, or the workers fail for good.
    """
    ray = _ray()
    _connect(ray, address)
    # Units are counted here; Ray's own bars and log lines would bury that.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    have = ray.cluster_resources()
    most = actors or max(1, int(have.get("GPU", 0) if gpus else have.get("CPU", 1)))
    places = {"num_gpus": 1} if gpus else {"num_cpus": CPUS}
    numbers = ray.data.from_items([{"unit": n} for n in range(len(units))], override_num_blocks=min(len(units), PARTS))
    done = numbers.map_batches(
        Actor,
        fn_constructor_args=(units, shard_bytes),
        batch_size=TOGETHER,
        compute=_pool(ray.data.ActorPoolStrategy, most, len(units)),
        **places,
    )
    # The driver needs the store too: it notes what was found, and packs what the actors have left.
    opened = units.store()
    count = Counter(Journal(opened), told)
    try:
        for row in done.iter_rows():
            values = json.loads(row["done"])
            count(Done(**{**values, "names": tuple(values["names"])}))
    except Exception as error:
        raise StoreError(
            f"Ray stopped after {count.tally.units:,} of {len(units):,} units: {type(error).__name__}: {error}. What "
            "is stored stays; the same command resumes."
        ) from error
    finally:
        count.journal.write()
    if shard_bytes:
        opened.pack(shard_bytes=shard_bytes)
    return count.tally


def _pool(strategy: Any, most: int, units: int) -> Any:
    """A pool that begins with all the actors that there is work for, as far as this Ray can.

    Ray by itself adds actors one by one, when those there are have more than enough: a short list is done by one alone.
    """
    sizes = {"min_size": 1, "max_size": most, "max_tasks_in_flight_per_actor": IN_FLIGHT}
    if "initial_size" in inspect.signature(strategy).parameters:
        sizes["initial_size"] = min(most, math.ceil(units / TOGETHER))
    return strategy(**sizes)


def _ray() -> Any:
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise StoreError(
            f"--ray takes the package Ray ({error}): pip install 'vega3d-plugin[ray]'. Without it, start one process "
            "for each GPU: torchrun --nproc-per-node N --no-python vega3d extract ..."
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Use the cluster of that address, or begin one on this machine."""
    if ray.is_initialized():
        return
    quiet = {"ignore_reinit_error": True, "log_to_driver": False, "logging_level": "warning"}
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        if address != "auto":
            raise StoreError(f"There is no Ray cluster at {address}: {error}.") from error
        ray.init(include_dashboard=False, **quiet)
