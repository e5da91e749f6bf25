// Runs the user's program in a Deno process of its own, and reports to the host (the server) how it ends.
//
// The runner writes the line "\0ready" when it is ready for its job. It reads the job from stdin: the size of a header as
// eight digits; the header, JSON with {code, language, check, argv, folder, files, nonce, maxMessageBytes}; and the
// contents of the files, of which the header has the paths and sizes. `folder` is the program's folder, or null if it has
// none. The rest of stdin is that of the program. The program's output goes to stdout and stderr unchanged. The runner's
// messages go to stdout too. Each begins with a mark that contains the job's nonce, and ends with a newline:
//
//     \0faasrt:NONCE:{"kind": "started", "location"}  the program begins; until here, a failure is not the program's
//     \0faasrt:NONCE:{"kind": "ret_val", "text"}      the argument of return_val; the last call counts
//     \0faasrt:NONCE:{"kind": "error", ...}           the exception or rejection that ended the program
//     \0faasrt:NONCE:{"kind": "exit"}                 the program called Deno.exit
//     \0faasrt:NONCE:{"kind": "abort"}                the program called process.abort; any other SIGABRT is a lack of memory
//     \0faasrt:NONCE:{"kind": "done"}                 the program ran to its end; without this, the process just stopped
//
// After "error" or "done" the runner waits until the host kills the process. This is faster than a regular exit, and
// makes sure that no code of the program runs any more.
//
// The program may be hostile. So everything that the runner needs after the program has begun is stored in constants
// before, and only this closure knows the nonce. (A program that guesses the nonce can only forge its own result.)
//
// The host puts faasrt/protocol/guest/js_errors.js in front of this file. Both together are the body of one async
// function.

const writeStdout = Deno.stdout.writeSync.bind(Deno.stdout);
const writeStderr = Deno.stderr.writeSync.bind(Deno.stderr);
const exit = Deno.exit;
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
const dispatch = dispatchEvent;
const loaded = new Event("load");

function writeAll(write, text) {
  let bytes = encode(text);
  for (let size; (size = apply(lengthOf, bytes, [])) > 0; ) {
    const written = write(bytes);
    bytes = new BytesOf(apply(bufferOf, bytes, []), apply(offsetOf, bytes, []) + written, size - written);
  }
}

// Return this number of bytes of stdin; null if there are fewer. This does not use streams, because they take 5 ms to
// load, and read too much.
function readExactly(size) {
  const bytes = new Uint8Array(size);
  for (let read = 0; read < size; ) {
    const count = Deno.stdin.readSync(bytes.subarray(read));
    if (count === null) return null;
    read += count;
  }
  return bytes;
}

function readText(size) {
  return new TextDecoder().decode(readExactly(size));
}

// Nothing ever notifies this array, so waiting on it never ends.
const never = new Int32Array(new SharedArrayBuffer(4));
const wait = Atomics.wait;

let job = null;
let errors = null;
let mark = "";
let ended = false;
let settled = false;

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

function end(kind, fields) {
  send(kind, fields);
  for (;;) wait(never, 0, 0);
}

function fail(reason, imported) {
  if (ended) return;
  ended = true;
  const syntax = imported ? errors.syntaxError(reason) : null;
  if (syntax !== null) {
    const { message, traceback, line, column } = syntax;
    writeAll(writeStderr, `${traceback}\n`);
    end("error", ["phase", "compile", "name", "SyntaxError", "message", message, "traceback", traceback, "line", line, "column", column]);
  }
  // The program has been parsed without an error. A failed import is not a syntax error.
  if (job.check) end("done");
  const { name, message, traceback } = errors.describe(reason);
  writeAll(writeStderr, `${traceback}\n`);
  end("error", ["phase", "run", "name", name, "message", message, "traceback", traceback]);
}

globalThis.return_val = (value) => {
  send("ret_val", ["text", value === null || value === undefined ? "" : StringOf(value)]);
};

Deno.exit = (code) => {
  if (!ended) {
    ended = true;
    send("exit");
  }
  exit(code);
};
globalThis.close = () => Deno.exit(0);

// Programs get no storage, because it outlives the process, and no workers, because V8's heap limit does not include
// theirs.
for (const name of ["localStorage", "sessionStorage", "caches", "Worker"]) delete globalThis[name];

// Programs get no GPU, because it needs no permission and has no limits.
delete Object.getPrototypeOf(navigator).gpu;

// The first use of these is slow, so they are used once before the program arrives.
await import(URL.createObjectURL(new Blob(["export {};"], { type: "text/javascript" })));
Deno.inspect([0]);
dispatchEvent(new Event("warm-up"));
Deno.stdin.readSync(new BytesOf(0));
readText(0);

writeAll(writeStdout, "\0ready\n");
job = parse(readText(+readText(8)));
mark = `\0faasrt:${job.nonce}:`;
delete job.nonce;
const typed = job.language === "typescript";
const fileName = typed ? "main.ts" : "main.js";
errors = errorReader(fileName, job.maxMessageBytes);
// Node's `process.argv` is created from the same array.
Deno.args.push(...job.argv);
const sources = [job.code];
for (const [path, size] of job.files) {
  const content = readExactly(size);
  const parent = path.slice(0, Math.max(0, path.lastIndexOf("/")));
  if (parent !== "") Deno.mkdirSync(parent, { recursive: true });
  Deno.writeFileSync(path, content);
  if (/\.[cm]?[jt]sx?$/.test(path)) sources.push(new TextDecoder().decode(content));
}

// The original function's error contains the address of this machine's resolver.
const { NotCapable } = Deno.errors;
Deno.resolveDns = async () => {
  throw new NotCapable("Requires net access, run again with the --allow-net flag");
};

// Loading `process` is slow, and only programs that contain its name can have listeners there.
const process = sources.some((source) => /\bprocess\b/.test(source)) ? watchProcess() : null;
if (process !== null) {
  const { emit } = process;
  process.emit = (...values) => {
    const handled = apply(emit, process, values);
    if (values[0] === "exit") onEnd();
    return handled;
  };
}

function onEnd() {
  // If a top-level await never settles, Deno itself reports it.
  if (ended || !settled) return;
  ended = true;
  if (!Deno.exitCode) end("done");
  send("exit");
}

// Node's listeners ("exit") run after those for "unload".
watchEvents(
  (reason) => fail(reason, false),
  (type) => {
    if (type === "unload" && process === null) onEnd();
  },
  process,
);

let location = `file://${job.folder}/${fileName}`;
if (job.folder === null) {
  const type = typed ? "application/typescript" : "text/javascript";
  location = URL.createObjectURL(new Blob([job.code], { type }));
} else {
  Deno.writeTextFileSync(fileName, job.code);
}
errors.locate(location, job.folder === null ? null : `file://${job.folder}/`);
delete job.code;
sources.length = 0;

send("started", ["location", location]);

if (job.check) {
  // To parse the program without running it, import a module that throws before it. Both modules are parsed before the
  // first one runs.
  const stopper = URL.createObjectURL(new Blob(["throw 0"], { type: "text/javascript" }));
  const both = URL.createObjectURL(
    new Blob([`import ${stringify(stopper)}; import ${stringify(location)};`], { type: "text/javascript" }),
  );
  try {
    await import(both);
  } catch (reason) {
    if (reason !== 0) fail(reason, true);
  }
  end("done");
}

import(location).then(
  () => {
    settled = true;
    // Deno sends this event only after its main module, which is the runner.
    apply(dispatch, globalThis, [loaded]);
  },
  (reason) => fail(reason, true),
);
