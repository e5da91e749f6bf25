"""The metaclass of the public attrs classes."""

from __future__ import annotations

_GENERATED = {
    *("__annotations__", "__attrs_attrs__", "__attrs_own_setattr__", "__attrs_post_init__", "__attrs_props__"),
    *("__delattr__", "__eq__", "__getstate__", "__hash__", "__init__", "__match_args__", "__ne__", "__replace__"),
    *("__repr__", "__setattr__", "__setstate__", "__slots__", "__static_attributes__", "__weakref__"),
    *("__annotate_func__", "__annotations_cache__", "__firstlineno__"),
}


class RecordType(type):
    """Leaves the names that attrs and Python generate out of `dir`, and so out of `help` and `pydoc`."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name not in _GENERATED]
