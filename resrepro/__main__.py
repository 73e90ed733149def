"""`python -m resrepro` is the same as the command `resrepro`."""

from resrepro.cli import app

if __name__ == "__main__":
    app(prog_name="resrepro")
