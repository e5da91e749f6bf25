"""The engine `native` for Python: CPython, in processes forked from a process that has already imported packages."""
