"""The jail: restrictions that the Linux kernel enforces on sandboxed processes, whatever code they run.

The launcher (`launcher.py`) is a process that builds a jail once and then starts a process in it for each program. A
jail of the level "filters", for systems without namespaces, does not use `namespaces.py`, `slot.py`, `template.py` and
`executor.py`.

Most modules also run in the interpreter that `--python` names, which imports this folder as the package `jail`, and not
as a part of faasrt. So they are written for CPython 3.9 and newer, import each other with relative imports, and import
nothing else of faasrt. They must not import the modules of the server: `config`, `jail`, `level` and `cgroup`.
"""
