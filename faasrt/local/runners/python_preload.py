# Prepares the interpreter of a snapshot, which many programs start from. This is the second part of python_main.py.

import gc
import sys


def preload(names):
    """Import modules, of which some may be missing, and leave no traces of it that a program could notice."""
    import _sitebuiltins
    import importlib

    sys.meta_path.insert(0, SelectorLoopPatch())
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
    for name in ("exit", "quit"):  # the session that makes the snapshot has replaced them
        setattr(builtins, name, _sitebuiltins.Quitter(name, getattr(builtins, name).eof))
    linecache.clearcache()
    find_generators()
    gc.collect()
    gc.freeze()


generators = []


def find_generators():
    """Collect the random generators that the modules have made. Raise RuntimeError if `reseed` cannot reseed one."""
    random = sys.modules.get("random")
    numpy = sys.modules.get("numpy.random")
    legacy = [numpy.mtrand._rand, numpy.mtrand._rand._bit_generator] if numpy else []
    # Some objects of extension modules are not tracked themselves.
    for owner in gc.get_objects():
        for found in (owner, *gc.get_referents(owner)):
            if random and isinstance(found, random.Random):
                if not isinstance(found, random.SystemRandom) and all(found is not other for other in generators):
                    generators.append(found)
            elif numpy and isinstance(found, (numpy.RandomState, numpy.Generator, numpy.BitGenerator)):
                if all(found is not other for other in legacy):
                    raise RuntimeError(f"cannot reseed {found!r}")


def reseed():
    """Replace everything random, and the start time, so that programs do not share them."""
    for generator in generators:
        generator.seed()
    numpy = sys.modules.get("numpy.random")
    if numpy:
        numpy.set_bit_generator(numpy.MT19937())
    processes = sys.modules.get("multiprocessing.process")
    if processes:
        key = processes.AuthenticationString(os.urandom(32))
        processes.current_process()._config["authkey"] = key
    logs = sys.modules.get("logging")
    if logs:
        import time

        now = time.time_ns()
        logs._startTime = now if isinstance(logs._startTime, int) else now / 1e9


if __name__ == "faasrt_runner":
    main()
