"""OpenVLA-OFT's real training on a tiny policy, with its own RLDS pipeline; only calls to a GPU are stood in for.

``libero_finetune.py ARGS``, in a checkout of openvla-oft.
"""

import runpy

import one_task  # noqa: F401
from rows.openvla import register_towers
from stand_ins import on_the_cpu, without_a_gpu

register_towers()
on_the_cpu()
without_a_gpu()
runpy.run_path("vla-scripts/finetune.py", run_name="__main__")
