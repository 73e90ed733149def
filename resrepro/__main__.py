"""`python -m resrepro` is the same as the command `resrepro`."""

from resrepro.cli import main

if __name__ == "__main__":
    main()
