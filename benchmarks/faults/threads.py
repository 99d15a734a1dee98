"""Many threads at once, in every host and with every kind of prior and store: does each call give what it gives alone?

Wrong is an answer that is not bit for bit the one the call has alone, and an error or warning of the library's that it
has not alone. Left over is what outlasts the calls: a branch that stays off, pixels that stay in memory, bookkeeping
that does not add up.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vega3d

# After whatever is on the path, so that the same attack can be run on another checkout.
sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("tests", "integration_tests")]

import hosts
from support.together import outcomes, switching_often
from threaded import at_once, other_pictures, requests, tensors_of

PRIORS: tuple[dict[str, Any], ...] = (
    {}, {"fast": False}, {"context": "views"}, {"context": "video"}, {"offload": True},
)  # fmt: skip


@dataclass
class Row:
    """What came of one attack."""

    attack: str
    trials: int = 0
    wrong: int = 0
    raw: int = 0
    leftovers: int = 0

    def count(self, found: list[Any], expected: list[Any]) -> None:
        """Compare what came out of each thread with what it should be."""
        for result, alone in zip(found, expected, strict=True):
            self.trials += 1
            if isinstance(result, vega3d.errors.Vega3dError | Warning):
                self.wrong += 1
            elif isinstance(result, BaseException):
                self.raw += 1
            else:
                self.wrong += not same(result, alone)


def same(found: Any, alone: Any) -> bool:
    """Bit for bit."""
    if isinstance(found, list):
        return len(found) == len(alone) and all(map(same, found, alone))
    return torch.equal(found, alone) if isinstance(found, Tensor) else bool(found == alone)


def run(seconds: float) -> list[dict[str, Any]]:
    """All attacks, for about so many seconds together."""
    share = seconds / (len(hosts.HOSTS) + len(PRIORS) + 8)
    with warnings.catch_warnings(), switching_often():
        warnings.simplefilter("ignore")
        # A warning that a call has not alone is a fault; in all threads.
        warnings.filterwarnings("error", message="Host '.* (received|encoded)")
        return [asdict(row) for row in _rows(share)]


def _rows(share: float) -> Iterator[Row]:
    yield requests_to_every_host(len(hosts.HOSTS) * share)
    for settings in PRIORS:
        yield one_prior(settings, time.monotonic() + share)
    for attack in (
        two_models_with_one_prior, store_on_disk, store_in_memory, switches_that_overlap, recordings_in_each_other,
        loading_beside_building, calls_that_break_off, a_policy_for_each_thread,
    ):  # fmt: skip
        yield attack(time.monotonic() + share)


def repeated(until: float, act: Callable[[], object]) -> None:
    """At least once, and until the time has come."""
    while True:
        act()
        if time.monotonic() > until:
            return


def served(host: hosts.Host, **settings: Any) -> nn.Module:
    """A patched host whose branch changes the answers."""
    return hosts.patch(host.build(), **{"init": "released", **host.options, **settings})


def requests_to_every_host(seconds: float) -> Row:
    """Two requests that meet where one's pixels could be taken for the other's, and three that run freely."""
    row = Row(f"3 threads in one model, {len(hosts.HOSTS)} hosts")
    for host in hosts.HOSTS:
        until = time.monotonic() + seconds / len(hosts.HOSTS)
        model = served(host)
        batches = requests(host)
        alone = [hosts.logits(model, batch) for batch in batches]
        pairs = iter([(0, 1), (0, 2), (2, 1)] * 100)

        def act(model: nn.Module = model, batches: Any = batches, alone: Any = alone, pairs: Any = pairs) -> None:
            pair = next(pairs)
            row.count(at_once(model, *(batches[i] for i in pair), hosts.logits), [alone[i] for i in pair])
            row.count(outcomes(*(partial(hosts.logits, model, batch) for batch in batches)), alone)

        repeated(until, act)
    return row


def clips(count: int = 3) -> list[Tensor]:
    """Five frames each, of 48 x 80 noise."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(5, 3, 48, 80, generator=generator) for _ in range(count)]


def tiny(**settings: Any) -> vega3d.Prior:
    """The tiny prior, at a size of 48 x 80."""
    return vega3d.load_prior("tiny-wan", size=(48, 80), **settings)


def one_prior(settings: dict[str, Any], until: float) -> Row:
    """Several threads call one prior, each with a clip of its own."""
    named = ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"
    row, given, prior, alone = Row(f"3 threads, one prior ({named})"), clips(), tiny(**settings), tiny(**settings)
    expected = [alone(clip) for clip in given]
    repeated(until, lambda: row.count(outcomes(*(partial(prior, clip) for clip in given)), expected))
    return row


def two_models_with_one_prior(until: float) -> Row:
    """Two models, patched with one prior, a thread for each."""
    row, prior, host = Row("2 models that share a prior, 2 threads"), tiny(), hosts.named("qwen2_5_vl")
    models = [vega3d.patch(host.build(), prior, projector=hosts.PROJECTOR, init="released") for _ in range(2)]
    batches = requests(host)[:2]
    alone = [hosts.logits(model, batch) for model, batch in zip(models, batches, strict=True)]
    jobs = [partial(hosts.logits, model, batch) for model, batch in zip(models, batches, strict=True)]
    repeated(until, lambda: row.count(outcomes(*jobs), alone))
    return row


def store_on_disk(until: float) -> Row:
    """Three threads fill a store on disk by way of one model; each entry is read back and compared."""
    row, prior, alone = Row("store on disk, filled by 3 threads"), tiny(), tiny()
    given = clips(6)
    expected = [alone(clip) for clip in given]
    keys = [vega3d.clip_key(clip) for clip in given]

    def act() -> None:
        with tempfile.TemporaryDirectory(prefix="vega3d-faults-") as folder:
            model = vega3d.patch(hosts.named("qwen2_5_vl").build(), prior, projector=hosts.PROJECTOR, store=folder)
            branch = vega3d.get_handle(model).branch
            grid = vega3d.TokenGrid(1, 3, 5)

            def fill(seed: int) -> int:
                for index in random.Random(seed).sample(range(len(given)), len(given)):
                    branch.features(vega3d.Clip(given[index], grid))
                return 0

            for failed in [r for r in outcomes(*(partial(fill, seed) for seed in range(3))) if r != 0]:
                row.count([failed], [0])
            kept = vega3d.FeatureStore(folder)
            row.count([kept.get(key) for key in keys], expected)
            named = {f"{key}.safetensors" for key in keys} | {"store.json"}
            row.leftovers += sum(path.is_file() and path.name not in named for path in Path(folder).rglob("*"))

    repeated(until, act)
    return row


def store_in_memory(until: float) -> Row:
    """Six threads put into and get from a memory that holds a few entries."""
    row = Row("store in memory, 6 threads")
    maps = {f"{number:032x}": torch.full((1, 2, 1, 1 + number % 7), float(number)) for number in range(12)}

    def act() -> None:
        store = vega3d.FeatureStore(memory_bytes=300)

        def work(seed: int) -> bool:
            right = True
            for key in random.Random(seed).choices(list(maps), k=2000):
                kept = store.get(key)
                if kept is None:
                    store.put(key, maps[key])
                else:
                    right &= torch.equal(kept, maps[key])
            return right

        row.count(outcomes(*(partial(work, seed) for seed in range(6))), [True] * 6)
        held = sum(tensor.nbytes for tensor in store._recent.values())
        row.leftovers += store._held != held or held > 300

    repeated(until, act)
    return row


def switches_that_overlap(until: float) -> Row:
    """Blocks of two threads that overlap and end in another order, beside a thread without any."""
    row, host = Row("disabled and zeroed in 3 threads, overlapping"), hosts.named("qwen2_5_vl")
    model, batch = served(host), host.batch()
    on = hosts.logits(model, batch)
    alone = {}
    for switch in (vega3d.disabled, vega3d.zeroed):
        with switch(model):
            alone[switch] = hosts.logits(model, batch)

    def inside(switch: Any, step: threading.Barrier, first: bool) -> list[Tensor]:
        if not first:
            step.wait()
        block = switch(model)
        block.__enter__()
        if first:
            step.wait()
        answer = hosts.logits(model, batch)
        if not first:
            step.wait()
        block.__exit__(None, None, None)
        if first:
            step.wait()
        return [answer, hosts.logits(model, batch)]

    def act() -> None:
        for switch, off in alone.items():
            step = threading.Barrier(2, timeout=60)
            jobs = [partial(inside, switch, step, first) for first in (True, False)]
            found = outcomes(*jobs, lambda: [hosts.logits(model, batch)])
            row.count(found, [[off, on], [off, on], [on]])
            row.leftovers += not torch.equal(hosts.logits(model, batch), on)

    repeated(until, act)
    return row


def recordings_in_each_other(until: float) -> Row:
    """Nested recordings of gates, in three threads."""
    row, host = Row("nested record_gates in 3 threads"), hosts.named("qwen2_5_vl")
    model, batch = served(host), host.batch()
    clip_count = len(host.grids)

    def record() -> tuple[int, int]:
        with vega3d.record_gates(model) as outer:
            hosts.logits(model, batch)
            with vega3d.record_gates(model) as inner:
                hosts.logits(model, batch)
            hosts.logits(model, batch)
        return len(outer), len(inner)

    repeated(until, lambda: row.count(outcomes(*[record] * 3), [(3 * clip_count, clip_count)] * 3))
    return row


def loading_beside_building(until: float) -> Row:
    """Priors are loaded while hosts are built; both have the weights that they have alone."""
    row, host = Row("2 threads load a prior, 1 builds a host"), hosts.named("qwen2_5_vl")
    fingerprint, weights = tiny().fingerprint, list(host.build().parameters())
    state = torch.random.get_rng_state()

    def build() -> list[Tensor]:
        return list(host.build().parameters())

    def act() -> None:
        found = outcomes(*[lambda: tiny().fingerprint] * 2, build)
        row.count(found, [fingerprint, fingerprint, weights])
        row.leftovers += not torch.equal(torch.random.get_rng_state(), state)

    repeated(until, act)
    return row


def calls_that_break_off(until: float) -> Row:
    """Calls that raise between calls that do not, in three threads; no pixels stay in memory."""
    row, host = Row("calls that raise beside calls that do not, 3 threads"), hosts.named("llava_onevision")
    model = served(host)
    batches = requests(host)
    alone = [hosts.logits(model, batch) for batch in batches]
    fails = threading.local()

    def give_up(module: nn.Module, args: Any) -> None:
        if getattr(fails, "now", False):
            raise KeyError("given up")

    last = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")][-1]
    last.register_forward_pre_hook(give_up)

    def work(index: int) -> Tensor:
        fails.now = True
        broken = other_pictures(host.batch(), by=3)
        pixels.extend(weakref.ref(tensor) for tensor in tensors_of(broken))
        try:
            hosts.logits(model, broken)
        except KeyError:
            fails.now = False
        del broken
        return hosts.logits(model, batches[index])

    def act() -> None:
        pixels.clear()
        row.count(outcomes(*(partial(work, index) for index in range(3))), alone)
        gc.collect()
        row.leftovers += sum(ref() is not None for ref in pixels)

    pixels: list[weakref.ref[Tensor]] = []
    repeated(until, act)
    return row


def a_policy_for_each_thread(until: float) -> Row:
    """Two robots in two threads act on one policy with a history; each sees its own observations."""
    row, host = Row("a policy with history, 2 threads"), hosts.named("openvla_double")
    settings = {"history": 3, "context": "views"}
    observations = [[other_pictures(host.batch(), by=3 * step + robot) for step in range(4)] for robot in range(2)]

    def episode(model: nn.Module, robot: int) -> list[Tensor]:
        vega3d.get_handle(model).reset()
        return [hosts.logits(model, batch) for batch in observations[robot]]

    model = served(host, **settings)
    alone = [episode(model, robot) for robot in range(2)]
    vega3d.get_handle(model).reset()
    repeated(until, lambda: row.count(outcomes(*(partial(episode, model, r) for r in range(2))), alone))
    return row
