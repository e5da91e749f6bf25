"""The launcher of a jail (`launcher.py`), and all that it and the processes below it need.

They run on the interpreter that `--python` names, which may have no faasrt, and import this folder as the package
`launcher`. So its modules are written for CPython 3.9 and newer, import each other with relative imports, and import
nothing else but the standard library. The server, and the workers of `wasm`, import some of them, too.

A jail of the level "filters", for systems without namespaces, does not use `namespaces.py`, `slot.py`, `template.py`
and `executor.py`.
"""
