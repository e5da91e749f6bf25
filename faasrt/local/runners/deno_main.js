// Runs the user's program in its own Deno process, and reports its end to the host.
//
// The line "\0ready" reports that the runner waits for its job. The job is JSON on stdin: {code, language, check, nonce,
// maxMessageBytes}. The program's output goes to stdout and stderr unchanged. The runner's messages are part of
// stdout, each from a mark, which holds the job's nonce, to a newline:
//
//     \0faasrt:NONCE:{"kind": "started", "location"}  the program begins; an earlier failure is the host's
//     \0faasrt:NONCE:{"kind": "ret_val", "text"}      the argument of return_val; the last call counts
//     \0faasrt:NONCE:{"kind": "error", ...}           the exception or rejection that ended the program
//     \0faasrt:NONCE:{"kind": "exit"}                 the program called Deno.exit
//     \0faasrt:NONCE:{"kind": "abort"}                the program called process.abort; without this, SIGABRT is a lack of memory
//     \0faasrt:NONCE:{"kind": "node"}                 the program has Node's `process`, with which it can kill itself
//     \0faasrt:NONCE:{"kind": "watched"}              from now on, "kill" is sent before the program sends a signal
//     \0faasrt:NONCE:{"kind": "kill"}                 the program sends a signal; without this, a signal came from outside
//     \0faasrt:NONCE:{"kind": "done"}                 the program ran to its end; without this it ended in a hard exit
//
// After "error" or "done" the runner waits until the host kills the process. This is faster than a regular exit, and no
// code of the program runs any more.
//
// The program is hostile. Everything that the runner needs after the program has begun is stored in constants before,
// and only this closure knows the nonce. (A program that guesses it can only forge its own result.)
//
// The host puts faasrt/protocol/guest/js_errors.js in front of this file. Both are the body of one async function.

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

// A message is built from strings and numbers, because JSON.stringify of an object calls toJSON, which the program can
// define.
function send(kind, fields = []) {
  let message = `{"kind":"${kind}"`;
  for (let index = 0; index < fields.length; index += 2) {
    const value = fields[index + 1];
    message += `,"${fields[index]}":${typeof value === "string" ? stringify(value) : typeof value === "number" ? value : "null"}`;
  }
  writeAll(writeStdout, `${mark}${message}}\n`);
}

// A program that has closed its stdout stops here, because the host cannot be informed.
function sendOrStop(kind) {
  try {
    send(kind);
  } catch {
    for (;;) wait(never, 0, 0);
  }
}

// Node's `process` can end this process with a signal, which must not look like a signal from the system. Loading it
// takes long, so it is patched after the program has loaded it: at once through the global, otherwise in a microtask.
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
    if (signal !== 0) sendOrStop("kill");
    return _kill(pid, signal);
  };
  defineProperty(process, "_kill", { value: kill, writable: false, configurable: false });
  process.abort = () => {
    send("abort");
    abort();
  };
  delete ops.op_node_process_kill;
  delete ops.op_process_abort;
  try {
    send("watched");
  } catch {
    // stdout is closed. The host then assumes that the program may have killed itself.
  }
  return process;
}

defineProperty(globalThis, "process", { ...processGlobal, get: watchProcess });

// Every way to Node's `process` reads this first.
if (internal.__nodeBootstrapArgs !== undefined) {
  const args = { ...internal.__nodeBootstrapArgs };
  const { argv0 } = args;
  defineProperty(args, "argv0", {
    get() {
      sendOrStop("node");
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
  // The program parses. A failed import is not a syntax error.
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

// Storage outlives a process, and the heap of a worker exceeds the memory limit, so these do not exist for programs.
for (const name of ["localStorage", "sessionStorage", "caches", "Worker"]) delete globalThis[name];

// A GPU needs no permission and has no limit.
delete Object.getPrototypeOf(navigator).gpu;

// The first use of these is slow, so it happens before the program arrives.
await import(URL.createObjectURL(new Blob(["export {};"], { type: "text/javascript" })));
Deno.inspect([0]);
listen("warm-up", onEnd);
unlisten("warm-up", onEnd);
dispatchEvent(new Event("warm-up"));

writeAll(writeStdout, "\0ready\n");
job = parse(readAll());
mark = `\0faasrt:${job.nonce}:`;
delete job.nonce;
const typed = job.language === "typescript";
errors = errorReader(typed ? "main.ts" : "main.js", job.maxMessageBytes);

// The original error would name the resolver of this machine.
const { NotCapable } = Deno.errors;
Deno.resolveDns = async () => {
  throw new NotCapable("Requires net access, run again with the --allow-net flag");
};

// Loading `process` is slow, and only a program that names it has listeners there.
const process = /\bprocess\b/.test(job.code) ? watchProcess() : null;
if (process !== null) {
  const { emit } = process;
  process.emit = (...values) => {
    const handled = apply(emit, process, values);
    if (values[0] === "exit") onEnd();
    return handled;
  };
}

function onEnd() {
  // Deno itself reports a top-level await that never settles.
  if (ended || !settled) return;
  ended = true;
  if (!Deno.exitCode) end("done");
  send("exit");
}

// The program's listeners run first, including those that it adds late. Node's listeners run after the others.
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

send("started", ["location", location]);

if (job.check) {
  // Both modules are parsed before the first one runs, and the first one throws before the user's module begins.
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
