# Prepares the interpreter of a snapshot, which many programs start from. This is the second part of python_main.py.

import gc
import sys

import _reactor


def preload(names, exercise):
    """Import modules, and run code that uses them. Modules may be missing. Leave no traces for programs."""
    import _sitebuiltins
    import importlib

    sys.meta_path.insert(0, SelectorLoopPatch())
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
    exec(exercise, {"__name__": "exercise"})
    for name in ("exit", "quit"):  # the session that makes the snapshot has replaced them
        setattr(builtins, name, _sitebuiltins.Quitter(name, getattr(builtins, name).eof))
    linecache.clearcache()
    find_generators()
    hide_lines(globals())
    _reactor._run_turn = run_turn
    gc.collect()
    gc.freeze()


run_code = _reactor._run_turn


def run_turn(code, name):
    """Run the code, unless it is the name of a function of this file, which is then called."""
    function = globals().get(code)
    if function:
        function()
    else:
        run_code(code, name)


generators, bit_generators = [], []


def find_generators():
    random = sys.modules.get("random")
    numpy = sys.modules.get("numpy.random")
    for owner in gc.get_objects():
        for value in (owner, *gc.get_referents(owner)):  # some objects of extension modules are not tracked themselves
            if random and isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
                add(generators, value)
            elif numpy and isinstance(value, numpy.RandomState):
                add(bit_generators, value._bit_generator)
            elif numpy and isinstance(value, numpy.Generator):
                add(bit_generators, value.bit_generator)
            elif numpy and isinstance(value, numpy.BitGenerator):
                add(bit_generators, value)


def add(objects, value):
    if all(value is not other for other in objects):
        objects.append(value)


def reseed():
    """Replace everything random, and the start time, so that programs do not share them."""
    for generator in generators:
        generator.seed()
    numpy = sys.modules.get("numpy.random")
    if numpy:
        for generator in bit_generators:
            generator.state = type(generator)().state
    renew_modules()


if __name__ == "faasrt_runner":
    hide_lines(globals())
    main()
