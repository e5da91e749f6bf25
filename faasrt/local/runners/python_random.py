# Replaces what modules have drawn at random when they were imported, which all programs of an interpreter would share.

import os
import sys
import time

MT19937_BYTES = 2496  # the size of its state


def renew_modules():
    numpy = sys.modules.get("numpy.random")
    generator = numpy.get_bit_generator() if hasattr(numpy, "get_bit_generator") else None
    if generator is not None and type(generator) is not numpy.MT19937:
        numpy.set_bit_generator(type(generator)())  # the program of a session has set it
    elif hasattr(getattr(numpy, "BitGenerator", None), "seed_seq"):  # from numpy 1.25 on
        # Not replaced by a new one, which would change the memory of a hundred pages more.
        words = memoryview(os.urandom(MT19937_BYTES)).cast("I")
        numpy.set_state(("MT19937", words, len(words)))  # also drops the second number of a pair of normal ones
        if generator.seed_seq:  # of generators that are spawned from it
            generator.seed_seq.__init__(int.from_bytes(os.urandom(16), "little"))
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
