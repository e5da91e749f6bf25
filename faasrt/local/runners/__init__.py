"""The runners: code that runs the user's program inside a sandbox. They are package data, and never imported.

In these files, "the host" is the server outside of the sandbox.
"""
