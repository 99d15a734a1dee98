"""Modules that launchers, other programs, plugins and messages open by name, as ``vega3d_plugin.NAME``.

This folder is on the package's path, so ``doors/run.py`` is ``vega3d_plugin.run``. What a door opens lives in its room;
nothing in the library imports a door.
"""
