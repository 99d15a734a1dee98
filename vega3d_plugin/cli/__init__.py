"""The command ``vega3d``. One file per verb; what a verb does is in the library."""

from __future__ import annotations

import os
import sys

from ..contracts.errors import Vega3dError, was_interrupted


def main() -> None:
    """Run the command; an error of this library is one message and exit code 1, Ctrl-C one line and exit code 130.

    ``VEGA3D_TRACEBACK=1`` shows where it was raised.
    """
    try:
        # Imports take a moment, in which Ctrl-C may come too; within a verb the application itself catches it.
        from .app import app
        from .output import print_error
    except (Exception, KeyboardInterrupt) as error:
        if not was_interrupted(error):
            raise
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    try:
        app()
    # What the system says of a file that the user named, such as a full disk, is no bug either.
    except (Vega3dError, OSError) as error:
        if os.environ.get("VEGA3D_TRACEBACK") == "1":
            raise
        print_error(error)
        raise SystemExit(1) from None
