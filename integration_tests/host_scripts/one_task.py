"""What makes OFT's scripts in LIBERO short, and lets them run where there is no GPU; imported before all else."""

import contextlib
import sys


@contextlib.contextmanager
def apart():
    """TensorFlow and Mesa, which renders where there is no GPU, each bring an LLVM; in one namespace they crash."""
    its_own, sys.setdlopenflags = sys.setdlopenflags, lambda flags: None
    try:
        yield
    finally:
        sys.setdlopenflags = its_own


with apart():
    import tensorflow  # noqa: F401


def only(number):
    """Every suite of LIBERO has this one task of its own."""
    from libero.libero import benchmark

    for suite in benchmark.get_benchmark_dict().values():

        def build(self, *args, its_own=suite.__init__, **options):
            its_own(self, *args, **options)
            self.tasks, self.n_tasks = [self.tasks[number]], 1

        suite.__init__ = build
