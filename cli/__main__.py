"""`python -m aludel.cli`: the command, where it is not on the path."""

from .commands import main

if __name__ == "__main__":
    main()
