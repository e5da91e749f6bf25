# Runs test programs with asserts, in a process without the solution. asserts_values.py precedes this file.
#
# A call of the function gets its result from a list of known results. If the result is not known yet, the call is
# recorded, and the assert around it is abandoned. `faasrt.client.assert_tests` makes the missing calls in another
# process, and runs the test program again, until every result is known.

import _ast
import builtins
import json

names = {}  # the namespace of the test program

FILE = "test.py"
# Python 3.14 and newer keep the annotations of a class in a function.
USUAL_METHODS = ("__init__", "__post_init__", "__repr__", "__str__", "__annotate__", "__annotate_func__")
MAX_CALLS = 2_000  # tests of HumanEval+ make up to 1,100
NO_RESULT = ("RuntimeError", "the call has no result that can be read")
OPERATIONS = """abs add and bool bytes call ceil complex contains divmod enter eq exit float floor floordiv format ge
getattr getitem gt hash index int invert iter le len lshift lt mod mul ne neg next or pos pow radd rand rdivmod repr
reversed rfloordiv rlshift rmod rmul ror round rpow rrshift rshift rsub rtruediv rxor setitem str sub truediv trunc
xor"""


def accepts(kind):
    # Return whether the judged program may return objects of a class. The test program must define it. A special method
    # such as __eq__ could mean success for some attributes. Those that a dataclass generates are not in FILE.
    special = {name: value for each in kind.__mro__[:-1] for name, value in vars(each).items() if name[:2] == "__"}
    return kind.__module__ == "__main__" and all(
        name in USUAL_METHODS
        or not callable(value)
        or getattr(getattr(value, "__code__", None), "co_filename", FILE) != FILE
        for name, value in special.items()
    )


def raise_pending(*args):
    raise Pending


for operation in OPERATIONS.split():
    setattr(Unknown, f"__{operation}__", raise_pending)


class Refused(BaseException):
    # The test program does something that cannot be judged.
    pass


class ForeignError(Exception):
    # An exception of a type that is not built in.
    pass


def is_assert(node):
    # Return whether a statement is an assert, or stands for one: "if ...: raise AssertionError", or a call of a
    # function with a name such as assert_allclose. Nothing after it needs what it does, so it can be abandoned.
    if isinstance(node, _ast.If):
        last = node.body[-1]
        raised = getattr(last, "exc", None)
        return (
            not node.orelse
            and isinstance(last, _ast.Raise)
            and getattr(getattr(raised, "func", raised), "id", None) == "AssertionError"
        )
    if isinstance(node, _ast.Expr) and isinstance(node.value, _ast.Call):
        called = node.value.func
        return getattr(called, "attr", getattr(called, "id", "")).startswith("assert")
    return isinstance(node, _ast.Assert)


def wrap_asserts(statements, name):
    # Put each assert into a block `with name`.
    for index, node in enumerate(statements):
        if is_assert(node):
            place = {field: getattr(node, field) for field in node._attributes}
            item = _ast.withitem(context_expr=_ast.Name(id=name, ctx=_ast.Load(), **place))
            statements[index] = _ast.With(items=[item], body=[node], **place)
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            wrap_asserts(getattr(node, field, ()), name)


def raised_error(name, message):
    kind = getattr(builtins, name, None)
    if kind in (StopIteration, StopAsyncIteration):
        kind = None  # raised by the function, it would end a loop such as `for x in map(f, xs)` around the asserts
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:
            pass  # it needs other arguments
    return type(name, (ForeignError,), {})(message)


class Test:
    # One run of a test program.

    def __init__(self, rounds):
        self.calls, self.missing, self.results = {}, {}, {}
        self.repeated = self.reached = 0
        self.returned = self.raised = self.refused = None
        for keys, text in rounds:
            # The judged program may have written anything.
            self.results.update(dict.fromkeys(keys, NO_RESULT))
            try:
                results = zip(keys, json.loads(text))  # noqa: B905 (Python 3.9)
                self.results.update((key, (name, value)) for key, (name, value) in results)
            except (ValueError, TypeError, RecursionError):
                pass

    def __call__(self, *args, **kwargs):
        try:
            case = [to_json(args)["tuple"], {name: to_json(value) for name, value in kwargs.items()}]
        except (TypeError, ValueError, RecursionError) as error:
            self.refuse(f"it passes an argument that cannot be sent: {error}")
        key = json.dumps(case)
        number = self.calls[key] = self.calls.get(key, -1) + 1
        key = f"{number} {key}"
        if key not in self.results:
            if len(self.missing) >= MAX_CALLS:
                self.refuse(f"it makes more than {MAX_CALLS:,} calls")
            self.missing[key] = case
            return Unknown()
        self.repeated += 1
        name, value = self.results[key]
        if name is not None:
            self.raised = raised_error(name, value)
            raise self.raised
        if isinstance(value, dict) and "none" in value:
            change_all([*args, *kwargs.values()], [from_json(changed) for changed in value["none"]])
            value = None
        value = from_json(value)
        self.returned = short_repr(value)
        return value

    def refuse(self, reason):
        self.refused = reason
        raise Refused

    def __enter__(self):
        pass

    def __exit__(self, kind, error, traceback):
        if self.missing and kind is not None and issubclass(kind, (Exception, Pending)):
            return True
        self.reached += 1
        return False

    def run(self, program, function):
        if "random" in program:
            import random

            random.seed(0)  # the calls must be the same in each run
            if "numpy" in program:
                try:
                    import numpy
                except ImportError:
                    pass  # the test program fails by itself
                else:
                    numpy.random.seed(0)
        global names
        names = {"__name__": "__main__", "_faasrt_assert": self, function: self}
        error = None
        try:
            tree = compile(program, FILE, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
            wrap_asserts(tree.body, "_faasrt_assert")
            exec(compile(tree, FILE, "exec", dont_inherit=True, optimize=0), names)
        except BaseException as caught:
            error = caught
        return {
            "missing": list(self.missing.items()),
            "repeated": self.repeated,
            "reached": self.reached,
            "refused": self.refused,
            "failure": None if error is None else self.failure(error),
        }

    def failure(self, error):
        line, tb = None, error.__traceback__
        while tb is not None:
            line = tb.tb_lineno if tb.tb_frame.f_code.co_filename == FILE else line
            tb = tb.tb_next
        return {
            "name": type(error).__name__,
            "message": str(error)[:500],
            "line": getattr(error, "lineno", None) if line is None else line,
            "from_solution": error is self.raised,
            "returned": self.returned,
        }


def change_all(values, changed):
    # Change arguments as a function that returned None has changed them.
    for value, new in zip(values, changed):  # noqa: B905 (Python 3.9)
        if type(new) is not type(value):
            continue
        if isinstance(value, list):
            value[:] = new
        elif isinstance(value, (dict, set)):
            value.clear()
            value.update(new)
        elif hasattr(value, "__dict__"):
            vars(value).update(vars(new))


def short_repr(value):
    try:
        text = repr(value)
    except ValueError:
        return "a number with too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def run_test(program, function, rounds):
    return Test(rounds).run(program, function)
