"""`medseg ...` and `python -m medseg ...`: where the command line begins."""

from __future__ import annotations

import sys


def main() -> None:
    """See `medseg.commands.main`; an interrupt while that is still being imported, or late in it, ends in a line, too."""
    try:
        from medseg.garbage import ending, importing, own_process

        own_process()
        with importing():
            from medseg.commands import main as run
        try:
            run()
        finally:
            ending()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
