"""Run by ms-swift, under a name of its own: see :mod:`vega3d_plugin.swift_plugin`."""

from vega3d_plugin.training.for_ms_swift import install

install()
