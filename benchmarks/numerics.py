"""What the figures of every layer cost: the laptop job's step with and without them, in alternating rounds.

`python benchmarks/numerics.py [--rounds 4] [--steps 24]`. With `observe.numerics_every = 1` every step is measured; the cost of
the default is that over its interval. `--quick`: a few steps, nothing written.
"""

from __future__ import annotations

import argparse
import functools
import sys

import measure
import recipe
import runs

WITHOUT, WITH = "never", "every step"


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="a few steps, nothing written")
    options = parser.parse_args()
    from argosy.job.schema import ObserveSection

    every = int(ObserveSection().numerics_every)
    steps, rounds, small = (4, 1, runs.SMALL) if options.quick else (options.steps, options.rounds, [])
    table = measure.Table("numerics", "seconds a step")
    table.settings = {"what": "the laptop job, two workers, compiled: median seconds of a step"}
    measure.alternate(
        table,
        {
            WITHOUT: functools.partial(recipe.pace, [*small, "observe.numerics_every=never"], steps),
            WITH: functools.partial(recipe.pace, [*small, "observe.numerics_every=1"], steps),
        },
        rounds,
    )
    middle, low, high = table.ratio(WITH, WITHOUT)
    lines = ["### numerics: figures of every layer", "", *measure.markdown(table, 4), ""]
    lines.append(
        f"A step that is measured takes {middle - 1:+.1%} (quartiles {low - 1:+.1%} to {high - 1:+.1%}): every {every} steps, "
        f"the default, {(middle - 1) / every:+.2%}."
    )
    measure.finish(table, lines, write=not options.quick)


if __name__ == "__main__":
    sys.exit(main())
