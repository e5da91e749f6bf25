# Displays: the value of a program's last expression, the arguments of `display`, and the figures of matplotlib. A part
# of python_native.py and of python_main.py; it runs on CPython 3.9 and newer.
#
# Each display is sent as several parts: a number, from 1; a MIME type; and its content: text, Base64 for bytes, or None
# if it does not fit.

import _ast
import binascii
import builtins
import io
import os
import sys

ONLY_AST = 0x400  # ast.PyCF_ONLY_AST
VALUE = "<value>"  # no program has such a name
POSITION = ("lineno", "col_offset", "end_lineno", "end_col_offset")
MAX_DISPLAYS, MAX_FORMATS, MAX_TYPE_LENGTH = 1000, 16, 100
FAILURES = (Exception, SystemExit)  # of a method of the program; an interrupt ends the run
BACKEND = "faasrt_figures"
METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_pdf_": "application/pdf",
}


def compile_with_value(code, name, flags):
    """Compile a program that keeps the value of its last expression as VALUE in its namespace."""
    try:
        tree = compile(code, name, "exec", flags | ONLY_AST, dont_inherit=True)
    except RecursionError:  # only the tree is nested too deeply
        return compile(code, name, "exec", flags, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, _ast.Expr) and not ends_with_semicolon(code, last):
        position = {name: getattr(last, name) for name in POSITION}
        target = _ast.Name(VALUE, _ast.Store(), **position)
        tree.body[-1] = _ast.Assign([target], last.value, None, **position)
    return compile(tree, name, "exec", flags, dont_inherit=True)


def ends_with_semicolon(code, statement):
    lines = io.StringIO(code, newline=None).read().split("\n")[statement.end_lineno - 1 :]
    rest = lines[0].encode("utf-8", "surrogatepass")[statement.end_col_offset :]
    for line in [rest.decode("utf-8", "surrogatepass"), *lines[1:]]:
        line = line.strip(" \t\f\\")
        if line:
            return line[0] == ";"
    return False


class Displays:
    """The displays of a program. `max_bytes` limits the UTF-8 bytes of all types and contents, before Base64."""

    def __init__(self, send, max_bytes):
        self.send, self.left, self.number = send, max_bytes, 0

    def begin(self, max_bytes):
        self.left, self.number = max_bytes, 0

    def show(self, formats):
        """Send one display. Content that is None is named, but left out."""
        self.number += 1
        # In each case one more than the server takes, so that it notices this.
        if self.number > MAX_DISPLAYS + 1:
            return
        for kind, content in [*formats.items()][: MAX_FORMATS + 1]:
            if isinstance(content, str):
                size = len(content.encode("utf-8", "surrogatepass"))
            else:
                size = len(content or b"")
            size += len(kind)
            if content is None or size > self.left:
                self.send(self.number, kind, None)
                continue
            self.left -= size
            if not isinstance(content, str):
                content = binascii.b2a_base64(content, newline=False).decode()
            self.send(self.number, kind, content)

    def show_value(self, namespace):
        value = namespace.pop(VALUE, None)
        if value is not None:
            namespace["_"] = value
            self.show(formats_of(value))

    def show_figures(self):
        pyplot = sys.modules.get("matplotlib.pyplot")
        for number in pyplot.get_fignums() if pyplot else ():
            figure = pyplot.figure(number)
            if len(figure.get_children()) > 1:  # not only its background
                self.show(formats_of(figure))
            pyplot.close(figure)

    def install(self):
        def display(*values, raw=False, **options):
            """Display values in all formats that they have. If `raw` is true, they are dicts of content by MIME type.
            Further options of Jupyter's function are ignored.
            """
            for value in values:
                self.show(valid_formats(value) if raw else formats_of(value))

        builtins.display = display
        backend = sys.modules[BACKEND] = type(sys)(BACKEND)
        backend.__getattr__ = backend_attribute
        backend.show = lambda *arguments, **options: self.show_figures()
        os.environ["MPLBACKEND"] = f"module://{BACKEND}"
        if "matplotlib" in sys.modules:
            sys.modules["matplotlib"].use(os.environ["MPLBACKEND"])


def close_figures():
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def backend_attribute(name):
    if name == "FigureCanvas":  # matplotlib looks it up when the program makes its first figure
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        sys.modules[BACKEND].FigureCanvas = FigureCanvasAgg
        return FigureCanvasAgg
    raise AttributeError(name)


def formats_of(value):
    """Return the content of a value by MIME type, its text first. A method that raises an exception is skipped."""
    try:
        text = repr(value)
    except FAILURES as error:
        text = f"<repr() of {type(value).__name__} raised {type(error).__name__}>"
    formats = {"text/plain": text}
    figures = sys.modules.get("matplotlib.figure")
    if figures and isinstance(value, figures.Figure):
        formats["image/png"] = png_of(value)
    elif not isinstance(value, type) and call(value, "_has_every_method_") is None:
        bundle = call(value, "_repr_mimebundle_", include=None, exclude=None)
        formats.update(valid_formats(bundle))
        for method, kind in METHODS.items():
            if kind not in formats:
                formats.update(valid_formats({kind: call(value, method)}))
    return formats


def call(value, method, **options):
    try:
        function = getattr(value, method, None)
        if not callable(function):
            return None
        found = function(**options)
        return found[0] if isinstance(found, tuple) and len(found) == 2 else found  # the second are metadata
    except FAILURES:
        return None


def png_of(figure):
    data = io.BytesIO()
    try:
        figure.savefig(data, format="png", bbox_inches="tight")
    except FAILURES:
        return None
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot:
        pyplot.close(figure)  # it is not shown again at the end
    return data.getvalue()


def valid_formats(bundle):
    formats = {}
    for kind, content in bundle.items() if isinstance(bundle, dict) else ():
        if not isinstance(kind, str) or len(kind) > MAX_TYPE_LENGTH or "/" not in kind or not kind.isascii():
            continue
        try:
            if kind == "application/pdf" or (kind.startswith("image/") and kind != "image/svg+xml"):
                content = binascii.a2b_base64(content) if isinstance(content, str) else bytes(memoryview(content))
            elif content is not None and not isinstance(content, str) and kind.endswith("json"):
                import json

                content = json.dumps(content)
        except FAILURES:
            continue
        if isinstance(content, (str, bytes)) and content:
            formats[kind] = content
    return formats
