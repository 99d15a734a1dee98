"""OpenVLA-OFT's real script that replays LIBERO's HDF5 demonstrations and leaves out idle steps, for one task.

``libero_replay.py TASK ARGS``, in a checkout of openvla-oft.
"""

import runpy
import sys

from one_task import only

only(int(sys.argv.pop(1)))
runpy.run_module("experiments.robot.libero.regenerate_libero_dataset", run_name="__main__", alter_sys=False)
