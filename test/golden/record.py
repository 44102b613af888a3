"""Records the golden answers of the present code.

  ./scripts/run python test/golden/record.py            all areas
  ./scripts/run python test/golden/record.py motion     the named ones

Answers are recorded anew only for a change of behaviour that is wanted, one area at a time, in a
commit of its own. A move or a rename changes `api.py` and no answer. The differences from the
stored answers are printed first.
"""

import argparse
import sys
import time

import torch
from golden_areas import AREAS
from golden_store import ANSWERS, differences, flatten, load, save


def main() -> None:
    """Compute and store the named areas."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; default all"
    )
    names = parser.parse_args().areas or list(AREAS)
    unknown = [name for name in names if name not in AREAS]
    if unknown:
        parser.error(f"no area '{unknown[0]}'; there are {', '.join(AREAS)}.")
    torch.set_num_threads(1)
    for name in names:
        begin = time.monotonic()
        answers = AREAS[name]()
        if (ANSWERS / f"{name}.json").exists():
            changed = differences(load(name), dict(flatten(answers)), exact=False)
            sys.stdout.write("".join(f"{name}: {line}\n" for line in changed))
        size = save(name, answers)
        sys.stdout.write(f"{name}: {size / 1000:.1f} kB in {time.monotonic() - begin:.1f} s\n")


if __name__ == "__main__":
    main()
