"""What is shown while the Python sandbox is compiled, which takes most of a minute, once on a machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from faasrt.cli.output import note
from faasrt.languages import Language


@contextlib.contextmanager
def compiling(languages: tuple[Language, ...]) -> Iterator[None]:
    """Show that, and for how long, the sandbox is being compiled; nothing when it need not be."""
    from faasrt.local.cache import is_compiled, module_dir

    if Language.PYTHON not in languages or is_compiled(module_dir()):
        yield
        return
    words = "compiling the Python sandbox, once (about 45 s)"
    if not sys.stderr.isatty():
        note(words)
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(f"faasrt: {words}", total=None)
        yield
