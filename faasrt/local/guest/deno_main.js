// Runs the user's program in a Deno process of its own, and tells the host how it ended.
//
// The line "\0ready" says that it waits. The job comes as JSON on stdin: {code, language, check, nonce}. What the program prints goes to stdout and
// stderr as it is; a report is a span of stdout, from the frame's mark, which holds the job's nonce, to a newline:
//
//     \0faasrt:NONCE:{"kind": "started"}              the program begins now; before that, a failure is the host's
//     \0faasrt:NONCE:{"kind": "ret_val", "text"}      what return_val was given; the last one counts
//     \0faasrt:NONCE:{"kind": "error", ...}           the exception or rejection that ended the program
//     \0faasrt:NONCE:{"kind": "exit"}                 the program called Deno.exit
//     \0faasrt:NONCE:{"kind": "done"}                 it ran to its end; a process without this ended hard
//
// The program is hostile. Everything that is needed after it has begun is taken into constants before that, and the
// nonce is seen by nobody but this closure. (A program that guesses its way to a frame reaches its own verdict only.)

const writeStdout = Deno.stdout.writeSync.bind(Deno.stdout);
const writeStderr = Deno.stderr.writeSync.bind(Deno.stderr);
const exit = Deno.exit;
const inspect = Deno.inspect;
const { stringify, parse } = JSON;
const encoder = new TextEncoder();
const encode = encoder.encode.bind(encoder);
const StringOf = String;
const hasInstance = Function.prototype[Symbol.hasInstance].bind(Error);
const { subarray } = Uint8Array.prototype;
const lengthOf = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), "length").get;
const apply = Reflect.apply;
const { replaceAll, split, includes, slice } = String.prototype;
const { join, filter } = Array.prototype;
const execRegExp = RegExp.prototype.exec;
const stop = Event.prototype.preventDefault;

function writeAll(write, text) {
  let bytes = encode(text);
  while (apply(lengthOf, bytes, []) > 0) bytes = apply(subarray, bytes, [write(bytes)]);
}

writeAll(writeStdout, "\0ready\n");
const job = parse(await new Response(Deno.stdin.readable).text());
const mark = `\0faasrt:${job.nonce}:`;
delete job.nonce;
const shown = job.language === "typescript" ? "main.ts" : "main.js";
const mime = job.language === "typescript" ? "application/typescript" : "text/javascript";
let location = "";
let place = /^$/;
let ended = false;

// A report is put together by hand, from strings and numbers: JSON.stringify asks objects for a toJSON, which is the
// program's to define.
function tell(kind, ...fields) {
  let report = `{"kind":"${kind}"`;
  for (let index = 0; index < fields.length; index += 2) {
    const value = fields[index + 1];
    report += `,"${fields[index]}":${typeof value === "string" ? stringify(value) : typeof value === "number" ? value : "null"}`;
  }
  writeAll(writeStdout, `${mark}${report}}\n`);
}

const internal = /^    at (?:.* \()?ext:/;

// A stack as the user should read it: their file by its name, and without our own frames.
function tidy(stack) {
  const named = apply(replaceAll, stack, [location, shown]);
  const lines = apply(split, named, ["\n"]);
  return shorten(apply(join, apply(filter, lines, [(line) => !apply(includes, line, ["deno_main.js"]) && apply(execRegExp, internal, [line]) === null]), ["\n"]));
}

// Head and tail of a text that would count as a flood by itself.
function shorten(text) {
  if (text.length <= 40_000) return text;
  return `${apply(slice, text, [0, 20_000])}\n...\n${apply(slice, text, [-20_000])}`;
}

function field(value, name) {
  try {
    const text = value[name];
    return typeof text === "string" ? text : "";
  } catch {
    return "";
  }
}

// A thrown proxy can throw when it is asked for its prototype.
function isError(reason) {
  try {
    return hasInstance(reason);
  } catch {
    return false;
  }
}

function describe(reason) {
  if (!isError(reason)) {
    let message = "";
    try {
      message = shorten(typeof reason === "string" ? reason : inspect(reason));
    } catch {
      message = "a value that cannot be shown";
    }
    return { name: "Error", message, traceback: `Uncaught ${message}` };
  }
  const name = field(reason, "name") || "Error";
  const message = tidy(field(reason, "message"));
  const stack = field(reason, "stack");
  return { name, message, traceback: stack ? tidy(stack) : `${name}: ${message}` };
}

// An import is rejected with the place of the program at the end of the message when the program does not parse: as a
// SyntaxError by V8, as a TypeError that begins with "SyntaxError: " by the compiler in front of it.
function syntaxError(reason) {
  if (!isError(reason)) return null;
  const message = field(reason, "message");
  const found = apply(execRegExp, place, [message]);
  if (found === null || (field(reason, "name") !== "SyntaxError" && found[1] === undefined)) return null;
  // The compiler draws the line below its message.
  return { message: apply(split, found[2], ["\n"])[0], drawn: found[2], line: +found[3], column: +found[4] };
}

function fail(reason, imported) {
  if (ended) return;
  ended = true;
  const syntax = imported ? syntaxError(reason) : null;
  if (syntax !== null) {
    const { message, drawn, line, column } = syntax;
    const traceback = `SyntaxError: ${drawn}\n    at ${shown}:${line}:${column}`;
    tell("error", "phase", "compile", "name", "SyntaxError", "message", message, "traceback", traceback, "line", line, "column", column);
    writeAll(writeStderr, `${traceback}\n`);
    exit(1);
  }
  if (job.check) {
    // It parses; that one of its imports cannot be had here is no matter of syntax.
    tell("done");
    exit(0);
  }
  const { name, message, traceback } = describe(reason);
  tell("error", "phase", "run", "name", name, "message", message, "traceback", traceback);
  writeAll(writeStderr, `${traceback}\n`);
  exit(1);
}

globalThis.return_val = (value) => {
  tell("ret_val", "text", value === null || value === undefined ? "" : StringOf(value));
};

Deno.exit = (code) => {
  if (!ended) {
    ended = true;
    tell("exit");
  }
  exit(code);
};

// Storage outlives a process, and a worker's heap does not fit under the limit on memory: a program that asks for one
// is told that there is none.
for (const name of ["localStorage", "sessionStorage", "caches", "Worker"]) delete globalThis[name];

// A GPU is reached without any permission, and knows no limit.
delete Object.getPrototypeOf(navigator).gpu;

addEventListener("unhandledrejection", (event) => {
  apply(stop, event, []);
  fail(event.reason, false);
});
addEventListener("error", (event) => {
  apply(stop, event, []);
  fail(event.error, false);
});

location = URL.createObjectURL(new Blob([job.code], { type: mime }));
place = new RegExp(`^(SyntaxError: )?(.*?)\\s+at ${location}:(\\d+):(\\d+)$`, "s");
delete job.code;

tell("started");

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
  tell("done");
  exit(0);
}

let settled = false;
addEventListener("unload", () => {
  if (ended) return;
  ended = true;
  if (settled) {
    tell(Deno.exitCode ? "exit" : "done");
  } else {
    const message = "top-level await never settled";
    tell("error", "phase", "run", "name", "Error", "message", message, "traceback", `Error: ${message}`);
    writeAll(writeStderr, `Error: ${message}\n`);
  }
});
import(location).then(
  () => {
    settled = true;
  },
  (reason) => fail(reason, true),
);
