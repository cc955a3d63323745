"""`python cli.py ...` is the installed `medseg ...`."""

from medseg.commands import main

if __name__ == "__main__":
    main()
