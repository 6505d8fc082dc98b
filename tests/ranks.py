"""One of several processes that train a list of configurations, one after the other.

Starting Python and importing everything takes longer than a tiny run, so tests start the processes
once and let them run all there is. Norms and gates are made again in the backward pass whatever
their size, as in a large model: ZeRO 3 has given weights back by then. Arguments are JSON files, a
port for each behind a colon.
"""

from __future__ import annotations

import os
import sys

from onellm import light
from onellm.train.launch import run_training
from onellm.train.packaged import read_config


def main(arguments: list[str]) -> None:
    """Run each configuration."""
    light.SMALL = 0
    for argument in arguments:
        file, _, port = argument.rpartition(":")
        os.environ["MASTER_PORT"] = port
        run_training(read_config(file))


if __name__ == "__main__":
    main(sys.argv[1:])
