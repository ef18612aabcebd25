"""The program that times pieces of a model (`trial.py`), bound to its starter: it ends when that is killed, whatever it does.

`python -m argosy.train.bound_trial PID`, the starter's. A module of its own: loading torch takes seconds, and that is too late.
"""

from __future__ import annotations

import sys

from argosy.run import guardian


def main() -> None:
    """The program."""
    guardian.bind(int(sys.argv[1]))
    from argosy.train import trial

    trial.main()


if __name__ == "__main__":
    main()
