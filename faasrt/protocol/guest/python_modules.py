# Lets a program import its own files in place of modules that the interpreter has imported before. A part of several
# Python guest programs; it runs on CPython 3.9 and newer.

import sys

# The modules that the interpreter itself imports before a program.
ALWAYS_IMPORTED = {"abc", "builtins", "codecs", "encodings", "genericpath", "io", "marshal", "ntpath", "os", "posix"}
ALWAYS_IMPORTED |= {"__main__", "posixpath", "site", "stat", "sys", "time", "zipimport"}


def shadow_modules(names):
    # Forget the modules that have the name of a file in the program's folder, and return them by name.
    given = {name.removesuffix(".py") for name in names} - ALWAYS_IMPORTED
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in given}
