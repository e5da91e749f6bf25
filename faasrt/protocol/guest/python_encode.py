# Encodes return values of functions as JSON. `Runtime.call_function` documents the encoding.

MAX_DEPTH = 200


class EncodeError(TypeError):
    pass


def encode(value):
    parts = []
    try:
        put(value, "value", (), parts)
    except EncodeError as error:
        raise TypeError(f"the return value cannot be encoded as JSON: {error}") from None
    return "".join(parts)


def put(value, path, parents, parts):
    kind = type(value)
    enum = sys.modules.get("enum")
    if value is None or value is True or value is False:
        parts.append({None: "null", True: "true", False: "false"}[value])
    elif enum is not None and isinstance(value, enum.Enum):
        put(value.value, path + ".value", parents, parts)
    elif isinstance(value, str):
        parts.append(quote(str.__str__(value)))
    elif isinstance(value, int):
        try:
            parts.append(int.__repr__(value))
        except ValueError:
            raise EncodeError(f"{path} has too many digits") from None
    elif isinstance(value, float):
        if not -1e999 < value < 1e999:
            raise EncodeError(f"{path} is {float.__repr__(value)}, which is not valid JSON")
        parts.append(float.__repr__(value))
    else:
        if len(parents) >= MAX_DEPTH:
            raise EncodeError(f"it is nested more than {MAX_DEPTH} levels deep")
        if id(value) in parents:
            raise EncodeError(f"{path} contains itself")
        put_compound(value, kind, path, (*parents, id(value)), parts)


def put_compound(value, kind, path, parents, parts):
    if isinstance(value, (list, tuple)):
        put_list(value, path, parents, parts)
    elif isinstance(value, (set, frozenset)):
        try:
            members = sorted(value)
        except TypeError:
            members = list(value)
        put_list(members, path, parents, parts)
    elif isinstance(value, dict) or (hasattr(kind, "keys") and hasattr(kind, "__getitem__") and hasattr(kind, "items")):
        if kind.__name__ == "DataFrame":
            put(value.to_dict("records"), path, parents, parts)
        else:
            put_object(value.items(), path, parents, parts, lambda key: f"{path}[{key!r}]")
    elif hasattr(kind, "__dataclass_fields__"):
        put_fields(value, kind.__dataclass_fields__, path, parents, parts)
    elif hasattr(kind, "__attrs_attrs__"):
        put_fields(value, [attribute.name for attribute in kind.__attrs_attrs__], path, parents, parts)
    elif hasattr(kind, "isoformat"):
        put(value.isoformat(), path, parents, parts)
    elif hasattr(kind, "total_seconds"):
        put(value.total_seconds(), path, parents, parts)
    elif callable(getattr(kind, "tolist", None)):
        put(value.tolist(), path, parents, parts)  # NumPy scalars and arrays, pandas columns, array.array
    elif kind.__name__ in ("Decimal", "UUID", "PosixPath", "PurePosixPath"):
        parts.append(quote(str(value)))
    elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, (BaseException, type(sys))):
        put_object(vars(value).items(), path, parents, parts, lambda key: f"{path}.{key}")
    else:
        raise EncodeError(f"{path} is of type {kind.__name__}")


def put_list(values, path, parents, parts):
    separator = "["
    for index, value in enumerate(values):
        parts.append(separator)
        put(value, f"{path}[{index}]", parents, parts)
        separator = ", "
    parts.append("]" if separator == ", " else "[]")


def put_fields(value, names, path, parents, parts):
    put_object([(name, getattr(value, name)) for name in names], path, parents, parts, lambda key: f"{path}.{key}")


def put_object(items, path, parents, parts, path_of):
    seen, separator = set(), "{"
    for key, value in items:
        name = key_text(key, path)
        if name in seen:
            raise EncodeError(f"{path} has two keys that are {name!r} as text")
        seen.add(name)
        parts += [separator, quote(name), ": "]
        put(value, path_of(key), parents, parts)
        separator = ", "
    parts.append("}" if separator == ", " else "{}")


def key_text(key, path):
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or key is True or key is False:
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, int):
        return int.__repr__(key)
    if isinstance(key, float):
        return float.__repr__(key)
    if callable(getattr(type(key), "tolist", None)):
        return key_text(key.tolist(), path)
    raise EncodeError(f"a key of {path} is of type {type(key).__name__}")
