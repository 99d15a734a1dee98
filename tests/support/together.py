"""Running things in several threads at once, so that they meet where it matters."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Job = Callable[[], Any]
#: How long to wait for the others, in seconds: for ever, but a broken test should end.
PATIENCE = 60.0


def together(*jobs: Job) -> list[Any]:
    """Run all jobs, each in a thread of its own, from the same moment on; what they returned, or what one raised.

    Threads change places often.
    """
    with switching_often():
        results = outcomes(*jobs)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def outcomes(*jobs: Job) -> list[Any]:
    """As :func:`together`, with what a job raised in the place of what it would have returned."""
    start = threading.Barrier(len(jobs), timeout=PATIENCE)
    results: list[Any] = [None] * len(jobs)

    def run(index: int, job: Job) -> None:
        start.wait()
        try:
            results[index] = job()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


@contextmanager
def switching_often() -> Iterator[None]:
    """Let threads change places five hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Rendezvous:
    """Holds each of several threads at chosen modules of one model until all are there.

    Args:
        model: the model.
        stops: for each thread, names of modules, at whose beginnings it waits for the others; each thread as many.
    """

    def __init__(self, model: nn.Module, stops: Sequence[Sequence[str]]) -> None:
        self.barrier = threading.Barrier(len(stops), timeout=PATIENCE)
        self.stops, self._mine = stops, threading.local()
        self._hooks = [
            model.get_submodule(name).register_forward_pre_hook(self._arrived(name))
            for name in {name for names in stops for name in names}
        ]

    def job(self, index: int, job: Job) -> Job:
        """The job of one thread, which waits on its way; one that raises keeps nobody waiting."""

        def run() -> Any:
            self._mine.left = list(self.stops[index])
            try:
                return job()
            finally:
                if self._mine.left:
                    self.barrier.abort()

        return run

    def run(self, *jobs: Job) -> list[Any]:
        """Run the jobs; what each returned or raised."""
        try:
            return outcomes(*(self.job(index, job) for index, job in enumerate(jobs)))
        finally:
            for hook in self._hooks:
                hook.remove()

    def _arrived(self, name: str) -> Callable[[nn.Module, Any], None]:
        def arrived(module: nn.Module, args: Any) -> None:
            left = getattr(self._mine, "left", [])
            if left and left[0] == name:
                left.pop(0)
                try:
                    self.barrier.wait()
                except threading.BrokenBarrierError:
                    left.clear()

        return arrived


def order_of_calls(model: nn.Module, run: Job) -> list[str]:
    """Names of the modules in the order in which their calls begin."""
    order: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: order.append(name)

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return order


__all__ = ["Job", "Rendezvous", "order_of_calls", "outcomes", "switching_often", "together"]
