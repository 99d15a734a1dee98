"""OpenVLA-OFT's real LIBERO evaluation on a tiny policy, made short: one task, few steps.

Nothing of the script, of LIBERO or of TensorFlow is replaced.
``libero_short.py STEPS TASK ARGS``, in a checkout of openvla-oft.
"""

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

from experiments.robot.libero import run_libero_eval as evaluation  # noqa: E402
from libero.libero import benchmark  # noqa: E402
from rows.openvla import register_towers  # noqa: E402

steps, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
# The vision towers of the tiny checkpoint.
register_towers()
for suite in list(evaluation.TASK_MAX_STEPS):
    evaluation.TASK_MAX_STEPS[suite] = steps
for suite in benchmark.get_benchmark_dict().values():
    its_own = suite.__init__

    def one_task(self, *args, its_own=its_own, **options):
        its_own(self, *args, **options)
        self.tasks, self.n_tasks = [self.tasks[number]], 1

    suite.__init__ = one_task
evaluation.eval_libero()
