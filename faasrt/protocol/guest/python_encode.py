# Encodes return values of functions as JSON. `ExecutionResult.value` documents the encoding, and `FunctionTest` the
# exact one.

MAX_DEPTH = 200


def refusal(reason):
    return TypeError(f"the return value cannot be encoded as JSON: {reason}")


def encode(value, path="value", parents=(), exact=False):
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if not exact and isinstance(value, getattr(sys.modules.get("enum"), "Enum", ())):
        return encode(value.value, path + ".value", parents)
    if isinstance(value, str):
        return quote(str.__str__(value))
    if isinstance(value, int):
        try:
            return int.__repr__(value)
        except ValueError:
            raise refusal(f"{path} has too many digits") from None
    if isinstance(value, float):
        if not -1e999 < value < 1e999:
            raise refusal(f"{path} is {float.__repr__(value)}, which is not valid JSON")
        return float.__repr__(value)
    if len(parents) >= MAX_DEPTH:
        raise refusal(f"it is nested more than {MAX_DEPTH} levels deep")
    if id(value) in parents:
        raise refusal(f"{path} contains itself")
    return (exact_json if exact else compound_json)(value, type(value), path, (*parents, id(value)))


def exact_json(value, kind, path, parents):
    if isinstance(value, (list, tuple)):
        members = [encode(member, f"{path}[{index}]", parents, True) for index, member in enumerate(value)]
        text = "[" + ", ".join(members) + "]"
        return f'{{"py/tuple": {text}}}' if isinstance(value, tuple) else text
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise refusal(f"a key of {path} is of type {type(key).__name__}")
        return object_json(value.items(), path, parents, "[{!r}]", True)
    if callable(getattr(kind, "tolist", None)):
        # NumPy scalars.
        number = value.tolist()
        if isinstance(number, (bool, int, float)):
            return encode(number, path, parents, True)
    raise refusal(f"{path} is of type {kind.__name__}")


def with_tuples(value):
    # Return arguments with their tuples.
    if isinstance(value, list):
        return [with_tuples(member) for member in value]
    if isinstance(value, dict):
        value = {key: with_tuples(member) for key, member in value.items()}
        members = value.get("py/tuple")
        return tuple(members) if len(value) == 1 and isinstance(members, list) else value
    return value


def compound_json(value, kind, path, parents):
    if isinstance(value, (set, frozenset)):
        try:
            value = sorted(value)
        except TypeError:
            value = list(value)
    if isinstance(value, (list, tuple)):
        members = [encode(member, f"{path}[{index}]", parents) for index, member in enumerate(value)]
        return "[" + ", ".join(members) + "]"
    if isinstance(value, dict) or (hasattr(kind, "keys") and hasattr(kind, "__getitem__") and hasattr(kind, "items")):
        if kind.__name__ == "DataFrame":
            return encode(value.to_dict("records"), path, parents)
        return object_json(value.items(), path, parents, "[{!r}]")
    if hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__"):
        fields = getattr(kind, "__dataclass_fields__", None)
        names = [attribute.name for attribute in kind.__attrs_attrs__] if fields is None else fields
        return object_json([(name, getattr(value, name)) for name in names], path, parents, ".{}")
    # Dates and times, time deltas, and NumPy scalars and arrays, pandas columns, array.array.
    for method in ("isoformat", "total_seconds", "tolist"):
        if callable(getattr(kind, method, None)):
            return encode(getattr(value, method)(), path, parents)
    if kind.__name__ in ("Decimal", "UUID", "PosixPath", "PurePosixPath"):
        return quote(str(value))
    if hasattr(value, "__dict__") and not callable(value) and not isinstance(value, (BaseException, type(sys))):
        return object_json(vars(value).items(), path, parents, ".{}")
    raise refusal(f"{path} is of type {kind.__name__}")


def object_json(items, path, parents, step, exact=False):
    # `step` is the format string of one step of a path, such as ".{}".
    members = {}
    for key, value in items:
        name = key_text(key, path)
        if name in members:
            raise refusal(f"{path} has two keys that are {name!r} as text")
        members[name] = f"{quote(name)}: {encode(value, path + step.format(key), parents, exact)}"
    return "{" + ", ".join(members.values()) + "}"


def key_text(key, path):
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, float):
        return float.__repr__(key)
    if key is None or isinstance(key, int):
        return encode(key, f"a key of {path}")
    if callable(getattr(type(key), "tolist", None)):
        return key_text(key.tolist(), path)
    raise refusal(f"a key of {path} is of type {type(key).__name__}")
