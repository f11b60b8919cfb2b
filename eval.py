"""Evaluates a checkpoint, or each run of a sweep: `python eval.py --help`."""

import sys

from octnet.evaluation import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
