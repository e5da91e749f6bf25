// The part that both runners for Deno share (deno_main.js and deno_session.js): what they read and write, and what
// programs must not have.

const writeStdout = Deno.stdout.writeSync.bind(Deno.stdout);
const writeStderr = Deno.stderr.writeSync.bind(Deno.stderr);
const { stringify, parse } = JSON;
const encoder = new TextEncoder();
const encode = encoder.encode.bind(encoder);
const StringOf = String;
const BytesOf = Uint8Array;
const typedGetter = (name) => Object.getOwnPropertyDescriptor(Object.getPrototypeOf(BytesOf.prototype), name).get;
const [bufferOf, offsetOf, lengthOf] = ["buffer", "byteOffset", "length"].map(typedGetter);
const apply = Reflect.apply;
const { defineProperty, freeze, getOwnPropertyDescriptor } = Object;
const later = queueMicrotask;

function writeAll(write, text) {
  let bytes = encode(text);
  for (let size; (size = apply(lengthOf, bytes, [])) > 0; ) {
    const written = write(bytes);
    bytes = new BytesOf(apply(bufferOf, bytes, []), apply(offsetOf, bytes, []) + written, size - written);
  }
}

// Return this number of bytes of stdin; null if there are fewer. This does not use streams, because they take 5 ms to
// load, and read too much.
const readStdin = Deno.stdin.readSync.bind(Deno.stdin);
const { subarray } = Object.getPrototypeOf(BytesOf.prototype);

function readExactly(size) {
  const bytes = new BytesOf(size);
  for (let read = 0; read < size; ) {
    const count = readStdin(apply(subarray, bytes, [read]));
    if (count === null) return null;
    read += count;
  }
  return bytes;
}

const decoder = new TextDecoder();
const decode = decoder.decode.bind(decoder);

function readText(size) {
  return decode(readExactly(size));
}

// Write a file, and create its folder.
const { mkdirSync, writeFileSync } = Deno;
const { lastIndexOf, slice } = String.prototype;

function writeFile(path, content) {
  const end = apply(lastIndexOf, path, ["/"]);
  if (end > 0) mkdirSync(apply(slice, path, [0, end]), { recursive: true });
  writeFileSync(path, content);
}

// Return why a module cannot be parsed; null if it can. It does not run: it is imported by a module that first imports
// one that throws. All modules are parsed before the first one runs.
const { createObjectURL } = URL;
const BlobOf = Blob;

function moduleUrl(source, type = "text/javascript") {
  return createObjectURL(new BlobOf([source], { type }));
}

async function whyUnparsed(location) {
  const stopper = moduleUrl("throw 0");
  try {
    await import(moduleUrl(`import ${stringify(stopper)}; import ${stringify(location)};`));
  } catch (reason) {
    if (reason !== 0) return reason;
  }
  return null;
}

// Write an error to stderr, and return the fields of its message.
function errorFields(error, phase) {
  const { name, message, traceback, line, column } = error;
  writeAll(writeStderr, `${traceback}\n`);
  return ["phase", phase, "name", name, "message", message, "traceback", traceback, "line", line, "column", column];
}

let mark = "";

// Messages are built by hand, because JSON.stringify of an object would call toJSON, which the program can define.
function send(kind, fields = []) {
  let message = `{"kind":"${kind}"`;
  for (let index = 0; index < fields.length; index += 2) {
    const value = fields[index + 1];
    message += `,"${fields[index]}":${typeof value === "string" ? stringify(value) : typeof value === "number" ? value : "null"}`;
  }
  writeAll(writeStdout, `${mark}${message}}\n`);
}

// With Node's `process`, the program can abort this process, which must not look like a lack of memory. So the method is
// patched to send a message first. Loading `process` takes long, so this happens only when the program loads it: at once
// if it uses the global `process`, otherwise in a microtask.
const processGlobal = getOwnPropertyDescriptor(globalThis, "process");
const nodeProcess = processGlobal.get;
const internal = Deno[Deno.internal];
const { ops } = internal.core;
let watched = false;

function watchProcess() {
  const process = apply(nodeProcess, globalThis, []);
  if (watched) return process;
  watched = true;
  const { abort } = process;
  process.abort = () => {
    send("abort");
    abort();
  };
  delete ops.op_process_abort;
  return process;
}

defineProperty(globalThis, "process", { ...processGlobal, get: watchProcess });

// Every way to load Node's `process` first reads this property.
if (internal.__nodeBootstrapArgs !== undefined) {
  const args = { ...internal.__nodeBootstrapArgs };
  const { argv0 } = args;
  defineProperty(args, "argv0", {
    get() {
      later(watchProcess);
      return argv0;
    },
  });
  const value = freeze(args);
  defineProperty(internal, "__nodeBootstrapArgs", { value, writable: false, configurable: false });
}

globalThis.return_val = (value) => {
  send("ret_val", ["text", value === null || value === undefined ? "" : StringOf(value)]);
};

// Programs get no storage, because it outlives the process, and no workers, because V8's heap limit does not include
// theirs.
for (const name of ["localStorage", "sessionStorage", "caches", "Worker"]) delete globalThis[name];

// Programs get no GPU, because it needs no permission and has no limits.
delete Object.getPrototypeOf(navigator).gpu;

// The original function's error contains the address of this machine's resolver.
const { NotCapable } = Deno.errors;
Deno.resolveDns = async () => {
  throw new NotCapable("Requires net access, run again with the --allow-net flag");
};
