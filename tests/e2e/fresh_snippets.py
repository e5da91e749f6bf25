"""Run every snippet of the README and the guide in a new environment with only the packages that the text installs.

    cd tests && python -m e2e.fresh_snippets

Not run by pytest, because it installs packages and takes some minutes. The first command of the README creates the
environment, in a copy of the last commit. Packages that a page installs are removed after that page.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from support import documents
from support.package import ROOT
from support.served import CLEAN


def packages(python: Path) -> set[str]:
    """Return the names of the installed packages."""
    done = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True)
    return {line.partition("==")[0] for line in done.stdout.splitlines()}


def main() -> None:
    """Run the snippets of all pages, one page at a time."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x"], cwd=source, check=True, input=archive.stdout)
        first = next(snippet for snippet in documents.snippets_of("README.md") if snippet.kind == "sh")
        clean = {key: value for key, value in CLEAN.items() if key != "VIRTUAL_ENV"}
        done = subprocess.run(["bash", "-ec", first.code], cwd=source, env=clean, check=True, stdout=subprocess.PIPE)
        assert done.stdout.endswith(b"\n42\n")
        python = source / ".venv/bin/python"
        for document in documents.DOCUMENTS:
            before, folder = packages(python), Path(name) / document
            folder.mkdir(parents=True)
            for snippet in documents.snippets_of(document):
                for arguments in snippet.installs:
                    assert re.fullmatch(r"[\w .,'\[\]-]+", arguments), arguments
                    command = f"'{python}' -m pip install -q {arguments}"
                    subprocess.run(["bash", "-ec", command], cwd=source, check=True)
                if snippet.serves:
                    documents.check_application(snippet, python, folder)
                elif snippet.kind != "sh":
                    documents.run_snippet(snippet, python, folder)
                print("ran", snippet, *snippet.installs, flush=True)
            if added := packages(python) - before:
                subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *sorted(added)], check=True)


if __name__ == "__main__":
    sys.exit(main())
