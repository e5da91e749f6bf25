"""The version of the package. This file imports nothing, so that the build can read it."""

__version__ = "0.1.0.dev0"
# In the keys of stored results, and in the fingerprints of engines. Raise the number with each change after which the
# same program may get another result: another outcome, error, output, value, file or display. Otherwise results of an
# older commit, which has the same version, would be taken for current ones.
RESULTS_VERSION = f"{__version__}-5"
