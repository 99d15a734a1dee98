"""The command ``vega3d``. One file per verb; what a verb does is in the library."""

from __future__ import annotations

import os

from ..contracts.errors import Vega3dError


def main() -> None:
    """Run the command; an error of this library is one message and exit code 1.

    ``VEGA3D_TRACEBACK=1`` shows where it was raised.
    """
    from .app import app
    from .output import print_error

    try:
        app()
    except Vega3dError as error:
        if os.environ.get("VEGA3D_TRACEBACK") == "1":
            raise
        print_error(error)
        raise SystemExit(1) from None
