"""The jail: restrictions that the Linux kernel enforces on sandboxed processes, whatever code they run.

The launcher is a process that builds a jail once and then starts a process in it for each program. Its code, and that
of all processes below it, is in `launcher/`. The modules beside that folder run in the server only.
"""
