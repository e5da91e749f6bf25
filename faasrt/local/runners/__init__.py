"""The runners: code that runs the user's program inside a sandbox. They are package data, and never imported.

The server joins these files to one text for each runner (`faasrt/local/engines/runner_sources.py`). In them, "the host"
is the server outside of the sandbox.
"""
