"""`python -m train`: finetune a video classifier (kinetics400/commands/train.py)."""

import sys

from kinetics400.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
