"""Completes what Griffe reads in the sources: constructors of attrs, and methods that forward to others."""

from __future__ import annotations

import copy
import importlib
import inspect
import re

import griffe


class PublicAPI(griffe.Extension):
    """Adds members that classes have at run time only."""

    def on_instance(self, *, obj: griffe.Object, **options: object) -> None:
        """Use the plural, which Griffe takes for a section whose text may contain programs and their output."""
        if obj.docstring:
            obj.docstring.value = with_plural(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **options: object) -> None:
        """Complete the classes that modules export."""
        exported = [module.members[str(name)] for module in [pkg, *modules_below(pkg)] for name in module.exports or ()]
        objects = [member.final_target if member.is_alias else member for member in exported]
        classes = {each.path: each for each in objects if each.is_class}
        for kind in classes.values():
            complete(kind)
            list_attributes(kind)
            kind.bases = [base for base in kind.bases if is_public(base, classes)]


def with_plural(docstring: str) -> str:
    return re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)


def modules_below(module: griffe.Module) -> list[griffe.Module]:
    """Return all modules of a package."""
    children = [child for child in module.modules.values() if not child.is_alias]
    return [*children, *(below for child in children for below in modules_below(child))]


def is_public(base: str | griffe.Expr, classes: dict[str, griffe.Class]) -> bool:
    """Return whether a base class is one of another package, or an exported one."""
    path = base if isinstance(base, str) else base.canonical_path
    return path in classes or not path.startswith("faasrt.")


def list_attributes(kind: griffe.Class) -> None:
    """Use the docstring that `help` shows if it lists the attributes, which then have no entries of their own."""
    if kind.docstring and any(str(decorator.value) == "list_attributes" for decorator in kind.decorators):
        found = getattr(importlib.import_module(kind.module.path), kind.name)
        kind.docstring.value = with_plural(str(inspect.getdoc(found)))
        for member in kind.attributes.values():
            if "property" not in member.labels:
                member.docstring = None


def complete(kind: griffe.Class) -> None:
    """Add members of a class that the source does not show, with their signatures and docstrings."""
    is_generated = any(str(decorator.value).startswith("attrs.") for decorator in kind.decorators)
    undocumented = [name for name, member in kind.members.items() if member.is_public and not member.has_docstring]
    if not is_generated and not undocumented:
        return
    try:
        importlib.import_module(kind.module.path)
    except ImportError:  # an extra that `dev` does not have
        return
    found = griffe.inspect(kind.module.path, filepath=kind.filepath)[kind.name]
    for name in undocumented:
        member = found.members.get(name)
        if member is not None and member.is_alias:
            method = copy.copy(kind.package[member.target_path.removeprefix("faasrt.")])
            method.parent = kind
            if kind.module.name == "sync":
                method.labels = method.labels - {"async"}
            kind.set_member(name, method)
        elif member is not None and member.is_function:
            kind.set_member(name, member)
    if is_generated and "__init__" in found.members and "__init__" not in kind.members:
        constructor = found.members["__init__"]
        constructor.docstring = None
        kind.set_member("__init__", constructor)
    elif "__init__" in kind.members and kind.docstring and "Args:" not in kind.docstring.value:
        kind.del_member("__init__")  # other objects make these
