"""`python cli.py ...` is the installed `medseg ...`."""

from medseg.__main__ import main

if __name__ == "__main__":
    main()
