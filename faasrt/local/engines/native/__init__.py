"""The engine `native` for Python: CPython, in processes forked from one that has already imported packages."""
