// Encodes return values of functions as JSON. `ExecutionResult.value` documents the encoding, and `FunctionTest` the
// exact one.

const { stringify } = JSON;
const apply = Reflect.apply;
const { slice } = String.prototype;
const { toString } = Object.prototype;
const { forEach: forEachEntry } = Map.prototype;
const { forEach: forEachValue } = Set.prototype;
const { isArray } = Array;
const { keys: keysOf, setPrototypeOf } = Object;
const { isFinite } = Number;
const { isView } = ArrayBuffer;

// Return an array to which elements can be added by assignment, whatever the program does to Array.prototype.
function makeList() {
  return setPrototypeOf([], null);
}

class EncodeError {
  constructor(message) {
    this.message = message;
  }
}

function toJson(value, path, parents) {
  if (value === null || value === undefined) return "null";
  if (value === true) return "true";
  if (value === false) return "false";
  if (typeof value === "string") return stringify(value);
  if (typeof value === "number") {
    if (!isFinite(value)) throw new EncodeError(`${path} is ${value}, which is not valid JSON`);
    return value === 0 ? "0" : `${value}`;
  }
  if (typeof value !== "object") throw new EncodeError(`${path} is of type ${typeof value}`);
  if (parents.depth >= 200) throw new EncodeError("it is nested more than 200 levels deep");
  for (let outer = parents; outer.depth > 0; outer = outer.parents) {
    if (outer.value === value) throw new EncodeError(`${path} contains itself`);
  }
  const inside = { value, parents, depth: parents.depth + 1, exact: parents.exact };
  const tag = apply(toString, value, []);
  if (parents.exact) {
    if (!isArray(value) && tag !== "[object Object]") {
      throw new EncodeError(`${path} is of type ${apply(slice, tag, [8, -1])}`);
    }
  } else if (typeof value.toJSON === "function") {
    return toJson(value.toJSON(), path, inside);
  }
  if (isArray(value) || (isView(value) && tag !== "[object DataView]")) return listJson(value, path, inside);
  const found = makeList();
  if (tag === "[object Set]") {
    apply(forEachValue, value, [
      (element) => {
        found[found.length] = element;
      },
    ]);
    return listJson(found, path, inside);
  }
  if (tag === "[object Map]") {
    apply(forEachEntry, value, [
      (element, key) => {
        found[found.length] = [key, element];
      },
    ]);
    return objectJson(found, path, inside);
  }
  if (tag === "[object Number]" || tag === "[object String]" || tag === "[object Boolean]") {
    return toJson(value.valueOf(), path, inside);
  }
  const keys = keysOf(value);
  if (tag !== "[object Object]" && keys.length === 0) {
    throw new EncodeError(`${path} is of type ${apply(slice, tag, [8, -1])}`);
  }
  for (let index = 0; index < keys.length; index += 1) {
    const key = keys[index];
    if (value[key] !== undefined) found[found.length] = [key, value[key]];
  }
  return objectJson(found, path, inside);
}

function listJson(values, path, parents) {
  let json = "";
  for (let index = 0; index < values.length; index += 1) {
    json += `${index ? "," : ""}${toJson(values[index], `${path}[${index}]`, parents)}`;
  }
  return `[${json}]`;
}

function objectJson(pairs, path, parents) {
  let json = "";
  const seen = { __proto__: null };
  for (let index = 0; index < pairs.length; index += 1) {
    const key = pairs[index][0];
    const value = pairs[index][1];
    if (typeof key !== "string" && typeof key !== "number") {
      throw new EncodeError(`a key of ${path} is of type ${typeof key}`);
    }
    const name = `${key}`;
    if (seen[` ${name}`]) throw new EncodeError(`${path} has two keys that are ${stringify(name)} as text`);
    seen[` ${name}`] = true;
    json += `${index ? "," : ""}${stringify(name)}:${toJson(value, `${path}[${stringify(name)}]`, parents)}`;
  }
  return `{${json}}`;
}
