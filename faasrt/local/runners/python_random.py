# Replaces what modules have drawn at random when they were imported, which all programs of an interpreter would share.

import os
import sys
import time


def renew_modules():
    numpy = sys.modules.get("numpy.random")
    if hasattr(numpy, "set_bit_generator"):
        numpy.set_bit_generator(numpy.MT19937())  # also replaces the seed of generators that are spawned from it
    elif numpy:
        numpy.seed()
    symbols = sys.modules.get("sympy.core.symbol")
    if symbols:
        symbols.Dummy._base_dummy_index = symbols.Dummy._prng.randint(10**6, 9 * 10**6)  # as sympy itself does
    processes = sys.modules.get("multiprocessing.process")
    if processes:
        key = processes.AuthenticationString(os.urandom(32))
        processes.current_process()._config["authkey"] = key
    logs = sys.modules.get("logging")
    if logs:
        now = time.time_ns()
        logs._startTime = now if isinstance(logs._startTime, int) else now / 1e9
