"""The guide: how to do things with faasrt, and what to do when they go wrong.

The docstring of `faasrt` lists the pages.

The reference is in the docstrings of `faasrt` and its modules. Every program in the guide is run by the tests, and
prints the output shown below it; `...` stands for text that differs from run to run.
"""

__docformat__ = "markdown"
