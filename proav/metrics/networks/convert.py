"""From the published weights of a feature network to the safetensors file that proav reads.

python -m proav.metrics.networks.convert NETWORK SOURCE DST.safetensors
"""

import sys

from proav.errors import UserError
from proav.metrics.networks.load import MODULES


def main(words: list[str]) -> int:
    """Returns the exit status: 0, or 2 for a mistake, which one line on stderr explains."""
    if len(words) != 3 or words[0] not in MODULES:
        print(
            f"usage: python -m proav.metrics.networks.convert {'|'.join(MODULES)} SOURCE DST.safetensors",
            file=sys.stderr,
        )
        return 2
    try:
        MODULES[words[0]].convert_weights(*words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote the weights of {words[0]} to {words[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
