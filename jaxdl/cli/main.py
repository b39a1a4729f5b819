"""The command line: which commands there are, and how their errors look."""

import argparse
from collections.abc import Sequence
import sys

from jaxdl.cli import chat, doctor, generate, plan
from jaxdl.hub.files import HubError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; what it returns is the exit status."""
    parser = argparse.ArgumentParser(prog="jaxdl", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate.add(commands)
    chat.add(commands)
    plan.add(commands)
    doctor.add(commands)
    given = parser.parse_args(arguments)
    try:
        return given.run(given)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read has gone: `| head`
        sys.stderr.close()
        return 141
    except (HubError, OSError, ValueError) as error:
        print(f"jaxdl: {error}", file=sys.stderr)
        return 2
