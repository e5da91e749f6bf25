// Runs the user's program in a Deno process of its own, and tells the host how it ended.
//
// The line "\0ready" says that it waits. The job comes as JSON on stdin: {code, language, check,
// network, nonce, most}. What the program prints goes to stdout and
// stderr as it is; a report is a span of stdout, from the frame's mark, which holds the job's nonce, to a newline:
//
//     \0faasrt:NONCE:{"kind": "started", "location"}  the program begins now; before that, a failure is the host's
//     \0faasrt:NONCE:{"kind": "ret_val", "text"}      what return_val was given; the last one counts
//     \0faasrt:NONCE:{"kind": "error", ...}           the exception or rejection that ended the program
//     \0faasrt:NONCE:{"kind": "exit"}                 the program called Deno.exit
//     \0faasrt:NONCE:{"kind": "abort"}                the program called process.abort; else that signal means want of memory
//     \0faasrt:NONCE:{"kind": "node"}                 it has Node's `process`, with which it can kill itself
//     \0faasrt:NONCE:{"kind": "watched"}              from now on, "kill" is told before it does
//     \0faasrt:NONCE:{"kind": "kill"}                 it sends a signal; a process that one ends without this was killed from outside
//     \0faasrt:NONCE:{"kind": "done"}                 it ran to its end; a process without this ended hard
//
// After "error" or "done" this only waits: the host kills it, which is faster than an end in good order, and nothing of
// the program runs any more.
//
// The program is hostile. Everything that is needed after it has begun is taken into constants before that, and the
// nonce is seen by nobody but this closure. (A program that guesses its way to a frame reaches its own verdict only.)
//
// faasrt/protocol/guest/js_errors.js stands in front of this.

const writeStdout = Deno.stdout.writeSync.bind(Deno.stdout);
const writeStderr = Deno.stderr.writeSync.bind(Deno.stderr);
const exit = Deno.exit;
const listen = addEventListener.bind(globalThis);
const unlisten = removeEventListener.bind(globalThis);
const { stringify, parse } = JSON;
const encoder = new TextEncoder();
const encode = encoder.encode.bind(encoder);
const StringOf = String;
const { subarray } = Uint8Array.prototype;
const lengthOf = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), "length").get;
const apply = Reflect.apply;
const { defineProperty, freeze, getOwnPropertyDescriptor } = Object;
const later = queueMicrotask;

function writeAll(write, text) {
  let bytes = encode(text);
  while (apply(lengthOf, bytes, []) > 0) bytes = apply(subarray, bytes, [write(bytes)]);
}

// Read without streams, which take 5 ms to load.
function readAll() {
  const decoder = new TextDecoder();
  const piece = new Uint8Array(65536);
  let text = "";
  for (let size; (size = Deno.stdin.readSync(piece)); ) text += decoder.decode(piece.subarray(0, size), { stream: true });
  return text;
}

const never = new Int32Array(new SharedArrayBuffer(4));
const wait = Atomics.wait;

let job = null;
let errors = null;
let mark = "";
let ended = false;
let settled = false;

// A report is put together by hand, from strings and numbers: JSON.stringify asks objects for a toJSON, which is the
// program's to define.
function tell(kind, fields = []) {
  let report = `{"kind":"${kind}"`;
  for (let index = 0; index < fields.length; index += 2) {
    const value = fields[index + 1];
    report += `,"${fields[index]}":${typeof value === "string" ? stringify(value) : typeof value === "number" ? value : "null"}`;
  }
  writeAll(writeStdout, `${mark}${report}}\n`);
}

// A program that has closed its stdout cannot be told of, and goes no further.
function tellOrStop(kind) {
  try {
    tell(kind);
  } catch {
    for (;;) wait(never, 0, 0);
  }
}

// Node's `process` can end this process with a signal, which must not look like the system's doing. Loading it takes
// long, so it is changed once the program has loaded it: at once where that goes by the global, else in a microtask.
const processGlobal = getOwnPropertyDescriptor(globalThis, "process");
const nodeProcess = processGlobal.get;
const internal = Deno[Deno.internal];
const { ops } = internal.core;
let watched = false;

function watchProcess() {
  const process = apply(nodeProcess, globalThis, []);
  if (watched) return process;
  watched = true;
  const { _kill, abort } = process;
  const kill = (pid, signal) => {
    if (signal !== 0) tellOrStop("kill");
    return _kill(pid, signal);
  };
  defineProperty(process, "_kill", { value: kill, writable: false, configurable: false });
  process.abort = () => {
    tell("abort");
    abort();
  };
  delete ops.op_node_process_kill;
  delete ops.op_process_abort;
  try {
    tell("watched");
  } catch {
    // Its stdout is closed already: then it may have killed itself, whoever did.
  }
  return process;
}

defineProperty(globalThis, "process", { ...processGlobal, get: watchProcess });

// However a program comes by Node's `process`, this is asked for before.
if (internal.__nodeBootstrapArgs !== undefined) {
  const args = { ...internal.__nodeBootstrapArgs };
  const { argv0 } = args;
  defineProperty(args, "argv0", {
    get() {
      tellOrStop("node");
      later(watchProcess);
      return argv0;
    },
  });
  const value = freeze(args);
  defineProperty(internal, "__nodeBootstrapArgs", { value, writable: false, configurable: false });
}

function end(kind, fields) {
  tell(kind, fields);
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
  // It parses; that one of its imports cannot be had here is no matter of syntax.
  if (job.check) end("done");
  const { name, message, traceback } = errors.describe(reason);
  writeAll(writeStderr, `${traceback}\n`);
  end("error", ["phase", "run", "name", name, "message", message, "traceback", traceback]);
}

globalThis.return_val = (value) => {
  tell("ret_val", ["text", value === null || value === undefined ? "" : StringOf(value)]);
};

Deno.exit = (code) => {
  if (!ended) {
    ended = true;
    tell("exit");
  }
  exit(code);
};
globalThis.close = () => Deno.exit(0);

// Storage outlives a process, and a worker's heap does not fit under the limit on memory: a program that asks for one
// is told that there is none.
for (const name of ["localStorage", "sessionStorage", "caches", "Worker"]) delete globalThis[name];

// A GPU is reached without any permission, and knows no limit.
delete Object.getPrototypeOf(navigator).gpu;

// What is used for the first time takes long: here it does while nobody waits.
await import(URL.createObjectURL(new Blob(["export {};"], { type: "text/javascript" })));
Deno.inspect([0]);

writeAll(writeStdout, "\0ready\n");
job = parse(readAll());
mark = `\0faasrt:${job.nonce}:`;
delete job.nonce;
const typed = job.language === "typescript";
errors = errorReader(typed ? "main.ts" : "main.js", job.most);

// Its refusal would name the resolver of this machine.
if (!job.network) {
  const { NotCapable } = Deno.errors;
  Deno.resolveDns = async () => {
    throw new NotCapable("Requires net access, run again with the --allow-net flag");
  };
}

// Asking for `process` loads much, and only a program that names it has listeners there.
const process = /\bprocess\b/.test(job.code) ? watchProcess() : null;
if (process !== null) {
  const { emit } = process;
  process.emit = (...values) => {
    const heard = apply(emit, process, values);
    if (values[0] === "exit") onEnd();
    return heard;
  };
}

function onEnd() {
  // A top-level await that never settles is told of by Deno itself.
  if (ended || !settled) return;
  ended = true;
  if (!Deno.exitCode) end("done");
  tell("exit");
}

// The program's own listeners come first, also those that it adds at the last moment, and Node's come after the others.
onUncaught((reason) => fail(reason, false), job.code, process === null ? { unload: onEnd } : {});
if (process === null) {
  listen("beforeunload", () => {
    unlisten("unload", onEnd);
    listen("unload", onEnd);
  });
}

const location = URL.createObjectURL(new Blob([job.code], { type: typed ? "application/typescript" : "text/javascript" }));
errors.locate(location);
delete job.code;

tell("started", ["location", location]);

if (job.check) {
  // Both modules are parsed before the first one runs, and that one ends it before the user's has begun.
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
  },
  (reason) => fail(reason, true),
);
