"""`medseg ...` and `python -m medseg ...`: where the command line begins."""

from __future__ import annotations

import sys


def main() -> None:
    """See `medseg.commands.main`; an interrupt while that is still being imported ends in a line, too."""
    try:
        from medseg.garbage import ending, importing, own_process

        own_process()
        with importing():
            from medseg.commands import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    try:
        run()
    finally:
        ending()


if __name__ == "__main__":
    main()
