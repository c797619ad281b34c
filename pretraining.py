"""`python -m pretraining`: pretrain a video model (kinetics400/commands/pretrain.py)."""

import sys

from kinetics400.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("pretrain", sys.argv[1:]))
