"""OpenVLA-OFT's real LIBERO evaluation on a tiny policy, made short: one task, few steps.

Nothing of the script, of LIBERO or of TensorFlow is replaced.
``libero_short.py STEPS TASK ARGS``, in a checkout of openvla-oft.
"""

import sys

from one_task import only  # isort: skip
from experiments.robot.libero import run_libero_eval as evaluation
from rows.openvla import register_towers

steps, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
# The vision towers of the tiny checkpoint.
register_towers()
only(number)
for suite in list(evaluation.TASK_MAX_STEPS):
    evaluation.TASK_MAX_STEPS[suite] = steps
evaluation.eval_libero()
