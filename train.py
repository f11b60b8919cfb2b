"""Trains a network, or with -m a sweep of them: `python train.py --help`."""

import sys

from octnet.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
