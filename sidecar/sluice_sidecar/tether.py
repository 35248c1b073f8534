"""Run a program that ends with its parent, even one that is killed: `python tether.py PARENT PROGRAM ARGUMENT...`.

A script of its own, because the kernel keeps such a wish per process and across `exec`, while to voice it between
`fork` and `exec` of a process with threads (gRPC's) is not safe. On other systems than Linux the program just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Become the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("the parent ended before its child began")
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
