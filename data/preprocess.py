"""`python -m data.preprocess`: unpack and verify (kinetics400/commands/preprocess.py)."""

import sys

from kinetics400.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("preprocess", sys.argv[1:]))
