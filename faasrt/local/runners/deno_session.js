// Runs the programs of a session in a Deno process, and reports to the host (the server) how each ends.
//
// The runner writes the line "\0ready" when it is ready. It reads requests from stdin: the size of a header as eight
// digits; the header, JSON; and data. The size 0 wakes the runner up: it interrupts the program that runs, if one does.
//
//     {"number", "code", "typed", "timeout", "stdin",    runs a program. The data is its stdin, of this size
//      "maxMessageBytes", "nonce"}
//     {"files": [[path, size], ...], "nonce"}           writes files. The data is their contents
//
// Its answers go to stdout, in the format of deno_main.js:
//
//     {"kind": "started"}                  the program begins
//     {"kind": "ret_val", "text"}          the argument of return_val; the last call counts
//     {"kind": "display", "number",        a part of a display: its number, its MIME type, and its content, which is null
//      "type", "content"}                  if it does not fit
//     {"kind": "exit", "code"}             the program called Deno.exit, which ends the run and not the session
//     {"kind": "timeout"}                  the program was interrupted at its time limit
//     {"kind": "interrupted"}              the program was interrupted because the host woke the runner up
//     {"kind": "error", ...}               the exception or rejection that ended the program
//     {"kind": "done"}                     the last message of each run, and the answer to a request to write files
//     {"kind": "failed", "text"}           a file cannot be written
//
// Programs are evaluated as in the consoles of browsers and in Deno's REPL, with V8's inspector: `let` and `const` at the
// top level persist and can be declared again, and `await` works there. The inspector is in this process and has no
// socket. `vm.Script` interrupts a program that does not return to the event loop, and keeps its state.
//
// Between runs the runner waits for its next request without the event loop, so that an idle session uses no CPU time.
// Timers and promises of a program go on while a later one runs.
//
// The program may be hostile, see deno_main.js. The host puts js_errors.js and deno_common.js in front of this file.

const { Session } = await import("node:inspector");
const { Script } = await import("node:vm");
const process = watchProcess();
const inspector = new Session();
inspector.connect();
Deno.permissions.revokeSync({ name: "sys", kind: "inspector" });
const post = inspector.post.bind(inspector);
// The inspector's answers arrive with this function.
defineProperty(process, "nextTick", { value: process.nextTick, writable: false, configurable: false });

const exit = Deno.exit;
const { runMicrotasks } = internal.core;
const { op_set_promise_hooks: setPromiseHooks } = ops;
const clock = performance;
const { now } = performance;
const immediate = setImmediate;
const PromiseOf = Promise;
const { indexOf, replace, startsWith } = String.prototype;
const { hasOwnProperty: hasOwn } = Object.prototype;
const { exec } = RegExp.prototype;
const { toString } = Error.prototype;
const { inspect } = Deno;
const keysOf = Object.keys;
const FOLDER = "/tmp/";
const MAX_DISPLAYS = 1000;
const displaySymbol = Symbol.for("Jupyter.display");

// Call a function in the next turn of the event loop. A timer takes a millisecond.
function nextTurn(call, argument) {
  immediate(() => call(argument))._argv = null; // otherwise Node iterates over it, with a method that can be replaced
}

function isPromise(value) {
  try {
    return typeof value === "object" && value instanceof PromiseOf;
  } catch {
    return false;
  }
}

// Stack traces. Deno itself names no sources of evaluated code.

const shifts = { __proto__: null }; // the columns before the code in the first line of a program, by its number
const place = /cell:(\d+):(\d+):(\d+)/;

function framePlace(text) {
  const found = apply(exec, place, [text]);
  if (found === null) return text;
  const { 0: all, 1: number, 2: line, 3: column } = found;
  const shift = line === "1" ? (shifts[number] ?? 0) : 0;
  return apply(replace, text, [all, () => `<cell ${number}>:${line}:${column - shift}`]);
}

defineProperty(Error, "prepareStackTrace", {
  configurable: true,
  writable: true,
  value(error, frames) {
    let text = "";
    try {
      text = apply(toString, error, []);
    } catch {
      text = "Error";
    }
    for (let index = 0; index < frames.length; index += 1) {
      const frame = `${frames[index]}`;
      if (apply(indexOf, frame, ["ext:deno_node/inspector.js"]) >= 0) break; // the frames of the runner follow
      text += `\n    at ${framePlace(frame)}`;
    }
    return text;
  },
});

const errors = errorReader("<cell ", 2 ** 20);
errors.locate("\0", "<cell ");

// The run. `source` is its program without imports, which are in `imports`; `patterns` and `modules` are the names that
// they bind, and the modules. It must end at `until`, and has called Deno.exit if `exitCode` is a number.

let current = null;
let finishing = false; // the result of the run is known
let listening = false; // waiting for the host to wake the runner up
const exited = { __proto__: null };
const unloaded = { __proto__: null };

let evaluations = 0;
const pending = { __proto__: null };

// Keep the next promise. V8's inspector creates one for each evaluation. If it is collected before it settles, the
// inspector reports this in the middle of a garbage collection, which ends the process.
function keepPromise(evaluation) {
  setPromiseHooks((promise) => {
    pending[evaluation] = promise;
    setPromiseHooks();
  });
}

const { runInThisContext } = Script.prototype;
let secret = "";

// Return an expression that calls a function, once. The program cannot know the name in it.
function callOnce(call) {
  const name = `__faasrt_${secret}_${(evaluations += 1)}`;
  defineProperty(globalThis, name, {
    __proto__: null,
    configurable: true,
    value: () => {
      delete globalThis[name];
      return call();
    },
  });
  return `${name}()`;
}

// The inspector's answers have only the ids of objects. This function gets the objects themselves.
let received;
let receiver;
await new PromiseOf((resolve) => {
  const receive = (value) => {
    received = value;
  };
  post("Runtime.evaluate", { expression: callOnce(() => receive) }, (_, answer) => {
    receiver = answer.result.objectId;
    resolve();
  });
});

function take(remote) {
  const has = (name) => apply(hasOwn, remote, [name]);
  if (!has("objectId") && !has("unserializableValue")) return has("value") ? remote.value : undefined;
  const { objectId, unserializableValue } = remote;
  const argument = has("objectId") ? { objectId } : { unserializableValue };
  const functionDeclaration = "function (value) { this(value); }";
  post("Runtime.callFunctionOn", { objectId: receiver, functionDeclaration, arguments: [argument] });
  const taken = received;
  received = undefined;
  return taken;
}

// Evaluate an expression with the inspector. Until it waits for the event loop, the time limit ends it.
function evaluate(run, expression, then) {
  const evaluation = (evaluations += 1);
  const objectGroup = `${evaluation}`;
  const params = { expression: `${expression}\n//# sourceURL=cell:${run.number}`, replMode: true, objectGroup };
  const onAnswer = (error, answer) => {
    delete pending[evaluation];
    if (current !== run || finishing) return;
    try {
      if (error !== null) throw error;
      then(run, answer.result, apply(hasOwn, answer, ["exceptionDetails"]) ? answer.exceptionDetails : null);
      post("Runtime.releaseObjectGroup", { objectGroup });
    } catch (problem) {
      if (!finishing) fail(errors.describe(problem), "run");
    }
  };
  try {
    const script = new Script(
      callOnce(() => {
        keepPromise(evaluation);
        post("Runtime.evaluate", params, onAnswer);
        runMicrotasks();
      }),
    );
    const left = run.until - apply(now, clock, []);
    apply(runInThisContext, script, [{ __proto__: null, timeout: left > 1 ? left | 0 : 1, displayErrors: false }]);
  } catch (problem) {
    if (current !== run || finishing) return;
    if (problem?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") finish("timeout");
    else fail(errors.describe(problem), "run");
  }
}

function begin(run) {
  if (current !== run || finishing) return;
  let prefix = "";
  if (run.modules !== null) {
    for (let index = 0; index < run.patterns.length; index += 1) prefix += `${index}:${run.patterns[index]},`;
    prefix = `const {${prefix}}=${callOnce(() => run.modules)};`;
  } else if (run.imports.length > 0) {
    prefix = `throw ${callOnce(() => unloaded)};`;
  }
  shifts[run.number] = prefix.length;
  evaluate(run, prefix + run.source, settle);
}

function settle(run, result, details) {
  if (details === null) {
    succeed(run, take(result));
    return;
  }
  const reason = take(details.exception);
  const syntax = syntaxError(run, details, reason);
  if (reason === unloaded) load(run);
  else if (syntax === null) reject(run, reason);
  else if (rewrite(run, syntax)) nextTurn(begin, run);
  else fail(syntax, "compile");
}

// A promise is awaited, not with its method `then`, which the program can replace.
async function succeed(run, result) {
  let value = result;
  try {
    if (isPromise(value)) value = await value;
    if (current !== run || finishing) return;
    if (run.exitCode === null && value !== undefined) {
      defineProperty(globalThis, "_", { __proto__: null, value, writable: true, enumerable: false, configurable: true });
      await display(value);
    }
  } catch (reason) {
    reject(run, reason);
    return;
  }
  if (current === run && !finishing) finish("done");
}

function reject(run, reason) {
  if (current !== run || finishing) return;
  if (run.exitCode !== null) finish("done");
  else fail(errors.describe(reason), "run");
}

function fail(error, phase) {
  finish("error", errorFields(error, phase));
}

// End the run in the next turn of the event loop, after the events of rejected promises.
function finish(kind, fields) {
  finishing = true;
  nextTurn(() => {
    if (current.exitCode !== null) send("exit", ["code", current.exitCode]);
    else if (kind !== "done") send(kind, fields);
    current = null;
    finishing = false;
    send("done");
    if (!listening) idle();
  });
}

// Why a program cannot be parsed; null if the exception has another reason. The stack of an error of V8's parser is that of
// the inspector's caller.
function syntaxError(run, details, reason) {
  if (details.exception.className !== "SyntaxError" || details.stackTrace === undefined) return null;
  const { callFrames } = details.stackTrace;
  for (let index = 0; index < callFrames.length; index += 1) {
    if (apply(startsWith, callFrames[index].url, ["cell:"])) return null;
  }
  const { message } = errors.describe(reason);
  const line = details.lineNumber + 1;
  const shifted = details.columnNumber + 1 - (line === 1 ? shifts[run.number] : 0);
  const column = shifted > 0 ? shifted : 1; // an imported name has been declared already
  const traceback = `SyntaxError: ${message}\n    at <cell ${run.number}>:${line}:${column}`;
  return { name: "SyntaxError", message, traceback, line, column };
}

// Imports. V8 evaluates a script, which has no import declarations. V8's parser finds them. The program begins when its
// modules are loaded.

const token =
  /(?:\s|\/\/.*|\/\*[^]*?\*\/)*([\p{ID_Start}$_][\p{ID_Continue}$\u200c\u200d]*|"(?:[^"\\\n]|\\[^])*"|'(?:[^'\\\n]|\\[^])*'|[{},*:;])/uy;
const exportKeyword =
  /export(?:\s+default\b|\s*\{[^}]*\}(?!\s*from\b)|(?=\s+(?:const|let|var|function|class|async)\b))/y;

// Take the import or export keyword at a syntax error out of the program. Return whether there is one.
function rewrite(run, { message, line, column }) {
  let start = 0;
  for (let number = 1; number < line; number += 1) start = apply(indexOf, run.source, ["\n", start]) + 1;
  start += column - 1;
  let end = start;
  if (message === "Unexpected token 'export'") {
    exportKeyword.lastIndex = start;
    const found = apply(exec, exportKeyword, [run.source]);
    if (found !== null) end = start + found[0].length;
  } else if (message === "Cannot use import statement outside a module") {
    const found = readImport(run.source, start, line);
    if (found !== null) {
      ({ end } = found);
      run.imports[run.imports.length] = found;
    }
  }
  remove(run, start, end);
  return end > start;
}

// Remove a part of a program, and keep the lines of the rest.
function remove(run, start, end) {
  let blank = "";
  for (let index = start; index < end; index += 1) blank += run.source[index] === "\n" ? "\n" : " ";
  run.source = apply(slice, run.source, [0, start]) + blank + apply(slice, run.source, [end]);
}

// Return the end of an import declaration, the names that it needs, the patterns that bind them, and an expression that
// loads its module; null if it is malformed.
function readImport(source, start, line) {
  let end = start;
  const next = () => {
    token.lastIndex = end;
    const found = apply(exec, token, [source]);
    if (found === null) return "";
    end = token.lastIndex;
    return found[1];
  };
  const accept = (text) => {
    const before = end;
    if (next() === text) return true;
    end = before;
    return false;
  };
  const isString = (text) => text[0] === '"' || text[0] === "'";
  if (next() !== "import") return null;
  const found = { end, line, names: [], patterns: [], load: "" };
  let text = next();
  if (!isString(text)) {
    for (;;) {
      if (text === "*") {
        if (!accept("as")) return null;
        found.patterns[found.patterns.length] = next();
      } else {
        let pattern = "";
        const bind = (name, local) => {
          found.names[found.names.length] = name;
          pattern += `${name}:${local},`;
        };
        if (text !== "{") bind("default", text);
        else {
          for (text = next(); text !== "}"; text = next()) {
            if (text === "") return null;
            if (text !== ",") bind(text, accept("as") ? next() : text);
          }
        }
        found.patterns[found.patterns.length] = `{${pattern}}`;
      }
      if (!accept(",")) break;
      text = next();
    }
    if (!accept("from")) return null;
    text = next();
    if (!isString(text)) return null;
  }
  let attributes = "";
  if (accept("with") && accept("{")) {
    for (let part = next(); part !== "}"; part = next()) {
      if (part === "") return null;
      attributes += part;
    }
  }
  accept(";");
  found.end = end;
  found.load = `await import(${text},{with:{${attributes}}})`;
  return found;
}

// Load the modules of a program, and begin it.
function load(run) {
  let expression = "[";
  let line = 1;
  for (let index = 0; index < run.imports.length; index += 1) {
    for (; line < run.imports[index].line; line += 1) expression += "\n";
    expression += `${run.imports[index].load},`;
  }
  shifts[run.number] = 1;
  evaluate(run, `${expression}]`, (_, result, details) => {
    if (details !== null) {
      reject(run, take(details.exception));
      return;
    }
    const modules = take(result);
    run.modules = [];
    for (let index = 0; index < run.imports.length; index += 1) {
      const { names, patterns, line } = run.imports[index];
      for (let number = 0; number < patterns.length; number += 1) {
        run.modules[run.modules.length] = modules[index];
        run.patterns[run.patterns.length] = patterns[number];
      }
      for (let number = 0; number < names.length; number += 1) {
        const name = names[number];
        if (run.typed || name in modules[index] || name[0] === '"' || name[0] === "'") continue; // it may be a type
        const message = `The requested module does not provide an export named '${name}'`;
        fail({ name: "SyntaxError", message, traceback: `SyntaxError: ${message}\n    at <cell ${run.number}>:${line}:1` }, "run");
        return;
      }
    }
    nextTurn(begin, run);
  });
}

// TypeScript. Removing the types keeps the positions. Enums, namespaces and parameter properties need another mode, which
// also removes imports that the program itself does not use.

const importLine = /^[ \t]*import\b(?!\s*[(.])/gmu;

async function removeTypes(run) {
  const code = run.source;
  const { stripTypeScriptTypes } = getModule("node:module");
  try {
    run.source = stripTypeScriptTypes(code);
    nextTurn(begin, run);
    return;
  } catch {
    // The other mode may be able to do it.
  }
  try {
    importLine.lastIndex = 0;
    const statements = [];
    for (let found; (found = apply(exec, importLine, [code])) !== null; ) statements[statements.length] = importLine.lastIndex - 6;
    for (let index = 0, line = 1; index < statements.length; index += 1) {
      const found = readImport(run.source, statements[index], line);
      if (found === null) continue;
      run.imports[run.imports.length] = found;
      remove(run, statements[index], found.end);
    }
    run.source = stripTypeScriptTypes(run.source, { mode: "transform" });
    nextTurn(begin, run);
  } catch (error) {
    const location = moduleUrl(code, "application/typescript");
    const reason = await whyUnparsed(location);
    errors.locate(location, "<cell ", null, `<cell ${run.number}>`);
    const syntax = (reason && errors.syntaxError(reason)) ?? { ...errors.describe(error), name: "SyntaxError" };
    if (current === run && !finishing) fail(syntax, "compile");
  }
}

// Displays

let displays = 0;
let left = 0;

function sendFormats(formats) {
  displays += 1;
  if (displays > MAX_DISPLAYS + 1) return; // one more, so that the host notices
  const types = keysOf(formats);
  for (let index = 0; index < types.length; index += 1) {
    const type = types[index];
    let content = formats[type];
    if (typeof content === "object") content = stringify(content);
    const size = typeof content === "string" ? apply(lengthOf, encode(type + content), []) : 0;
    if (size === 0 || size > left) content = null;
    else left -= size;
    send("display", ["number", displays, "type", type, "content", content]);
  }
}

function textOf(value) {
  try {
    return inspect(value);
  } catch {
    return "a value that cannot be shown";
  }
}

// Display a value. With the option `raw`, it is a bundle itself.
async function display(value, options) {
  const raw = Boolean(options?.raw);
  let bundle = raw ? value : null;
  try {
    if (!raw && typeof value?.[displaySymbol] === "function") bundle = value[displaySymbol]();
    if (isPromise(bundle)) bundle = await bundle;
  } catch {
    bundle = null; // a method that throws is skipped
  }
  if (typeof bundle !== "object" || bundle === null) sendFormats({ "text/plain": textOf(value) });
  else sendFormats(raw || "text/plain" in bundle ? bundle : { "text/plain": textOf(value), ...bundle });
}

globalThis.display = display;

// What programs see instead of the stdin of this process, which has the requests.

let input = new BytesOf(0);
let reader = null;
const { set } = Object.getPrototypeOf(BytesOf.prototype);
const StreamOf = ReadableStream;

function readInput(bytes) {
  const size = apply(lengthOf, input, []);
  if (size === 0) return null;
  const part = apply(subarray, input, [0, apply(lengthOf, bytes, [])]);
  apply(set, bytes, [part]);
  input = apply(subarray, input, [apply(lengthOf, part, [])]);
  return apply(lengthOf, part, []);
}

function inputStream() {
  return new StreamOf({
    type: "bytes",
    pull(controller) {
      const rest = input;
      input = new BytesOf(0);
      if (apply(lengthOf, rest, []) > 0) controller.enqueue(rest);
      controller.close();
      controller.byobRequest?.respond(0);
    },
  });
}

const waitForStdin = Deno.stdin.read.bind(Deno.stdin);
defineProperty(Deno, "stdin", {
  configurable: true,
  enumerable: true,
  writable: true,
  value: {
    get readable() {
      return inputStream();
    },
    read: async (bytes) => readInput(bytes),
    readSync: readInput,
    isTerminal: () => false,
    setRaw() {},
    close() {},
  },
});
const getModule = process.getBuiltinModule;
defineProperty(process, "stdin", {
  configurable: true,
  enumerable: true,
  get() {
    if (reader === null) {
      const { Readable } = getModule("node:stream"); // loaded only now, because this takes long
      const rest = input;
      input = new BytesOf(0);
      reader = Readable.from(apply(lengthOf, rest, []) > 0 ? [rest] : [], { objectMode: false });
      reader.fd = 0;
    }
    return reader;
  },
});

Deno.exit = (code) => {
  if (current !== null && current.exitCode === null) current.exitCode = (code ?? Deno.exitCode) | 0;
  throw exited;
};
globalThis.close = () => Deno.exit(0);

// Errors that a program leaves unhandled in timers and promises are printed, and do not end the run.
watchEvents(
  (reason) => {
    if (reason === exited && current !== null && !finishing) finish("done");
    else if (reason !== exited) writeAll(writeStderr, `Uncaught ${errors.describe(reason).traceback}\n`);
  },
  () => {},
  process,
);

// Requests

// Wait for the host to wake the runner up while a program waits for the event loop.
async function listen(run) {
  if (current !== run || listening) return;
  listening = true;
  const bytes = new BytesOf(8);
  for (let size = 0; size < 8; ) size += (await waitForStdin(apply(subarray, bytes, [size]))) ?? exit(0);
  listening = false;
  if (current === null) {
    nextTurn(idle);
    return;
  }
  if (!finishing) finish("interrupted");
  nextTurn(listen, run); // for the end of the run
}

function idle() {
  for (;;) {
    const head = readExactly(8);
    if (head === null) exit(0);
    const size = +decode(head);
    if (size === 0) continue;
    const request = parse(readText(size));
    secret = request.nonce;
    mark = `\0faasrt:${secret}:`;
    if (request.files !== undefined) {
      writeFiles(request.files);
      continue;
    }
    const { number, code, typed } = request;
    input = readExactly(request.stdin);
    reader = null;
    displays = 0;
    left = request.maxMessageBytes;
    const until = apply(now, clock, []) + request.timeout;
    const run = { number, source: code, typed, until, imports: [], patterns: [], modules: null, exitCode: null };
    current = run;
    send("started");
    nextTurn(listen, run);
    if (!typed) begin(run);
    else removeTypes(run);
    return;
  }
}

function writeFiles(files) {
  let problem = "";
  for (let index = 0; index < files.length; index += 1) {
    const { 0: path, 1: size } = files[index];
    const content = readExactly(size);
    try {
      if (problem === "") writeFile(FOLDER + path, content);
    } catch (error) {
      problem = `${path}: ${errors.describe(error).message}`;
    }
  }
  if (problem !== "") send("failed", ["text", problem]);
  send("done");
}

// The first use of these is slow.
inspect([0]);
readStdin(new BytesOf(0));

writeAll(writeStdout, "\0ready\n");
nextTurn(idle);
