"""The wall that the Linux kernel builds around every sandboxed process, whatever runs in it.

A launcher (`launcher.py`) is a process that builds a jail once, and starts a process in it for each program. This
package also runs in the interpreters of `--python`: it is written for CPython 3.9 and imports nothing else of faasrt.
"""
