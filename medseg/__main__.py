"""`medseg ...` and `python -m medseg ...`: where the command line begins."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """See `medseg.commands.main`; an interrupt while that is still being imported ends in a line, too."""
    try:
        from medseg.parallel import importing

        with importing():
            from medseg.commands import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    try:
        run()
    finally:
        gc.freeze()  # the process ends: to look for garbage once more in all that torch has imported takes half a second


if __name__ == "__main__":
    main()
