"""The command `faasrt`: needs the extra `cli`, and `local` for the embedded FaaS."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or say how to install what it needs."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        sys.stderr.write(f"faasrt: the command line needs {error.name}: pip install 'faasrt[cli]'\n")
        sys.exit(2)
    from faasrt.cli.main import run

    sys.exit(run(sys.argv[1:]))
