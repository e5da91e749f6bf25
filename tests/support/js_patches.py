"""JavaScript statements that change prototypes which every JavaScript program shares with its runner."""

from __future__ import annotations

_THROWS = "{ throw new Error('patched') }"
_DEFINE = "const define = (o, n, d) => Object.defineProperty(o, n, { __proto__: null, configurable: true, ...d });"
_TYPED = "Object.getPrototypeOf(Uint8Array.prototype)"
_ITERATORS = "Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()))"


def _getter(target: str, name: str, body: str = _THROWS) -> str:
    return f"{_DEFINE} define({target}, {name}, {{ get() {body} }});"


def _value(target: str, name: str, value: str = f"function () {_THROWS}") -> str:
    return f"{_DEFINE} define({target}, {name}, {{ value: {value}, writable: true }});"


PATCHES = {
    "a getter for the first element": "Object.defineProperty(Array.prototype, '0', { get() { return 1 } });",
    "a setter for elements": f"{_DEFINE} for (let n = 0; n < 9; n += 1) define(Array.prototype, `${{n}}`, {{ set() {_THROWS} }});",
    "read-only elements": f"{_DEFINE} for (let n = 0; n < 9; n += 1) define(Array.prototype, `${{n}}`, {{ value: 1 }});",
    "elements of all objects": f"{_DEFINE} for (let n = 0; n < 9; n += 1) define(Object.prototype, `${{n}}`, {{ get() {{ return 1 }} }});",
    "a frozen Array.prototype": "Object.freeze(Array.prototype);",
    "a frozen Object.prototype": "Object.freeze(Object.prototype);",
    "all prototypes frozen": "for (const name of Object.getOwnPropertyNames(globalThis)) {"
    " if (name === 'process') continue; const { prototype } = globalThis[name] ?? {};"
    " if (prototype) Object.freeze(prototype) }",
    "the iterator of arrays": _value("Array.prototype", "Symbol.iterator"),
    "no iterator of arrays": "delete Array.prototype[Symbol.iterator];",
    "the iterator of strings": _value("String.prototype", "Symbol.iterator"),
    "the next element of iterators": "for (const made of [[][Symbol.iterator](), new Map().entries(), new Set().values()])"
    f" Object.getPrototypeOf(made).next = function () {_THROWS};",
    "no methods of iterators": f"delete {_ITERATORS}[Symbol.iterator];",
    "no methods of arrays": "for (const name of Object.getOwnPropertyNames(Array.prototype))"
    " if (name !== 'length' && name !== 'constructor') delete Array.prototype[name];",
    "no methods of strings": "for (const name of Object.getOwnPropertyNames(String.prototype))"
    " if (name !== 'length' && name !== 'constructor') delete String.prototype[name];",
    "the splitter of strings": _value("String.prototype", "Symbol.split"),
    "the replacer of strings": _value("String.prototype", "Symbol.replace"),
    "the splitter of objects": _value("Object.prototype", "Symbol.split"),
    "no methods of regular expressions": "for (const name of Reflect.ownKeys(RegExp.prototype)) delete RegExp.prototype[name];",
    "the flags of regular expressions": _getter("RegExp.prototype", "'flags'"),
    "no methods of functions": "for (const name of ['apply', 'bind', 'call']) delete Function.prototype[name];",
    "toJSON of all values": "for (const type of [Object, Array, String, Number, Error]) type.prototype.toJSON = () => 'patched';",
    "then of all objects": _value("Object.prototype", "'then'"),
    "then of all objects, which resolves": _value(
        "Object.prototype", "'then'", "function (resolve) { resolve('patched') }"
    ),
    "then of promises": _value("Promise.prototype", "'then'"),
    "no methods of promises": "delete Promise.prototype.then; delete Promise.prototype.catch; delete Promise.prototype.finally;",
    "the constructor of promises": _value("Promise.prototype", "'constructor'", "Object"),
    "the species of promises": _value("Promise", "Symbol.species", "Object"),
    "fields of descriptors": "for (const name of ['get', 'set', 'writable', 'value']) Object.prototype[name] = () => {};",
    "fields of options": "for (const name of ['stream', 'fatal', 'ignoreBOM', 'type', 'endings', 'once', 'signal'])"
    " Object.prototype[name] = 1n;",
    "fields of results": "for (const name of ['outcome', 'error', 'name', 'message', 'traceback', 'last', 'fields', 'depth',"
    " 'module', 'kind', 'text', 'lost', 'exitCode', 'exit_code']) Object.prototype[name] = 'patched';",
    "getters of results": f"{_DEFINE} for (const name of ['outcome', 'error', 'name', 'message', 'traceback', 'last', 'fields',"
    f" 'depth', 'module', 'kind', 'text', 'lost']) define(Object.prototype, name, {{ set() {_THROWS},"
    " get() { return undefined } });",
    "toString of all values": f"Object.prototype.toString = Number.prototype.toString = Error.prototype.toString = function () {_THROWS};",
    "the length of bytes": _getter(_TYPED, "'length'", "{ return 0 }"),
    "the buffer of bytes": _getter(_TYPED, "'buffer'"),
    "the constructor of bytes": _value("Uint8Array.prototype", "'constructor'", "Object"),
    "the species of bytes": _value("Object.getPrototypeOf(Uint8Array)", "Symbol.species", "Object"),
    "no methods of bytes": f"for (const type of [Uint8Array.prototype, {_TYPED}]) for (const name of ['subarray', 'slice', 'set',"
    " 'toBase64', 'fill']) delete type[name];",
    "the encoder": "TextEncoder.prototype.encode = TextDecoder.prototype.decode = null;",
    "instances of everything": f"{_DEFINE} for (const type of [Error, SyntaxError, TypeError])"
    " define(type, Symbol.hasInstance, { value: () => false });",
    "properties of events": f"{_DEFINE} if (globalThis.ErrorEvent) for (const [type, name] of [[Event, 'defaultPrevented'],"
    f" [ErrorEvent, 'error'], [PromiseRejectionEvent, 'reason']]) define(type.prototype, name, {{ get() {_THROWS} }});",
    "methods of Object": "for (const name of ['defineProperty', 'keys', 'entries', 'assign']) delete Object[name];",
    "methods of Reflect": "for (const name of Reflect.ownKeys(Reflect)) delete Reflect[name];",
    "functions of mathematics": "Math.min = Math.max = Math.ceil = Math.floor = null;",
    "globals": "globalThis.Array = globalThis.Object = globalThis.String = globalThis.Promise = globalThis.Error ="
    " globalThis.JSON = globalThis.Uint8Array = globalThis.Symbol = globalThis.RegExp = globalThis.Map = null;",
}
THENABLE = frozenset({"toJSON of all values", "then of all objects", "then of all objects, which resolves"})
"""The patches that make a function return something else than its `return` statement says."""
NODE_BREAKS = frozenset(
    {
        "a getter for the first element",
        "a setter for elements",
        "read-only elements",
        "elements of all objects",
        "the iterator of arrays",
        "no iterator of arrays",
        "the next element of iterators",
        "no methods of arrays",
        "no methods of functions",
        "fields of descriptors",
        "fields of options",
        "getters of results",
    }
)
"""The patches with which Node.js itself cannot print or exit."""
