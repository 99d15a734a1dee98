"""The fast path: exact reductions of the work, each on its own and each tested against the plain path.

A reduction changes how a frozen model computes, never what it computes: features agree with the plain path's within
1e-4 (float32, relative). Each puts small modules in the place of diffusers' own, which share their parameters under the
same names, so that fingerprints, casts and moves do not see a difference.
"""

from .reduction import Reduction, chosen

__all__ = ["Reduction", "chosen"]
