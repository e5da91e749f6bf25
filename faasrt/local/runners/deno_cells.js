// Evaluates a program as the consoles of browsers and Deno's REPL do, with V8's inspector, and displays the value of its
// last statement. `let` and `const` at the top level persist and can be declared again, and `await` works there. The
// inspector is in this process and has no socket.
//
// The host puts this file between deno_common.js and deno_session.js; for a single program whose displays it wants, between
// deno_common.js and deno_main.js. The file that follows defines `errors` and these functions:
//
//     cellEvaluated(run)               the program has been evaluated. Its value, if it is a promise, is awaited next
//     cellEnded(run, kind)             it has ended ("done"), or was interrupted at its time limit ("timeout")
//     cellThrew(run, reason)           an exception or a rejection has ended it
//     cellRefused(run, error, phase)   it cannot be evaluated, or its imports have failed, so none of it has run
//     typesRefused(run, code, error)   its types cannot be removed
//
// A display is reported with these messages. The content is null if it does not fit:
//
//     {"kind": "display", "number",    a part of a display: its number, its MIME type, and its content
//      "type", "content"}

const { Session } = await import("node:inspector");
const { Script } = await import("node:vm");
const node = watchProcess();
const inspector = new Session();
inspector.connect();
Deno.permissions.revokeSync({ name: "sys", kind: "inspector" });
const post = inspector.post.bind(inspector);
// The inspector's answers arrive with this function.
defineProperty(node, "nextTick", { value: node.nextTick, writable: false, configurable: false });

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
const { defineProperty: tryToKeep } = Reflect; // the program may have a variable `_` of its own
const getModule = node.getBuiltinModule;
const { min, max } = Math;
const MAX_TIMEOUT = 2 ** 31 - 1;
const MAX_DISPLAYS = 1000;
const INSPECTOR = "ext:deno_node/inspector.js";
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

const places = { __proto__: null }; // the name of a program, and the columns before it in its first line, by its number
// V8 does not name the program that calls `eval` or `Function`, as in "eval at f (:1:5)". It may be the only one.
const place = /(?:cell:(\d+)|(?<=\()):(\d+):(\d+)/;

function framePlace(text) {
  const found = apply(exec, place, [text]);
  if (found === null) return text;
  const { 0: all, 1: number = "only", 2: line, 3: column } = found;
  if (places[number] === undefined) return text;
  const { name, shift } = places[number];
  return apply(replace, text, [all, () => `${name}:${line}:${line === "1" ? max(column - shift, 1) : column}`]);
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
      if (apply(indexOf, frame, [INSPECTOR]) >= 0) break; // the frames of the runner follow
      text += `\n    at ${framePlace(frame)}`;
    }
    return text;
  },
});

// Return a run. `source` is its program without imports, which are in `imports`; `patterns` and `modules` are the names that
// they bind, and the modules. It must end at `until`, after which `over` is set. `prefix` is put in front of it, and `name`
// is that of its file in stack traces. It has called Deno.exit, but goes on, if `exitCode` is a number. If `isKept`, later
// runs find its value in `_`.
function newRun(fields) {
  const state = { imports: [], patterns: [], modules: null, exitCode: null, over: false };
  const run = { ...state, prefix: "", isKept: false, ...fields };
  // "#!" is a comment only at the very beginning, where the prefix will be.
  if (apply(startsWith, run.source, ["#!"])) run.source = `//${apply(slice, run.source, [2])}`;
  return run;
}

const unloaded = { __proto__: null };

function beginCell(run) {
  if (run.typed) removeTypes(run);
  else begin(run);
}

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
    if (run.over) return;
    try {
      if (error !== null) throw error;
      then(run, answer.result, apply(hasOwn, answer, ["exceptionDetails"]) ? answer.exceptionDetails : null);
      post("Runtime.releaseObjectGroup", { objectGroup });
    } catch (problem) {
      if (!run.over) cellThrew(run, problem);
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
    const left = min(max(run.until - apply(now, clock, []), 1), MAX_TIMEOUT);
    apply(runInThisContext, script, [{ __proto__: null, timeout: left | 0, displayErrors: false }]);
  } catch (problem) {
    if (run.over) return;
    if (problem?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") cellEnded(run, "timeout");
    else cellThrew(run, problem);
  }
}

function begin(run) {
  if (run.over) return;
  let { prefix } = run;
  if (run.modules !== null) {
    let names = "";
    for (let index = 0; index < run.patterns.length; index += 1) names += `${index}:${run.patterns[index]},`;
    prefix += `const {${names}}=${callOnce(() => run.modules)};`;
  } else if (run.imports.length > 0) {
    prefix += `throw ${callOnce(() => unloaded)};`;
  }
  places[run.isKept ? run.number : "only"] = places[run.number] = { name: run.name, shift: prefix.length };
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
  else if (syntax === null) cellThrew(run, reason);
  else if (rewrite(run, syntax)) nextTurn(begin, run);
  else cellRefused(run, syntax, "compile");
}

// A promise is awaited, not with its method `then`, which the program can replace.
async function succeed(run, result) {
  let value = result;
  try {
    cellEvaluated(run);
    if (isPromise(value)) value = await value;
    if (run.over) return;
    if (run.exitCode === null && value !== undefined) {
      const descriptor = { __proto__: null, value, writable: true, enumerable: false, configurable: true };
      if (run.isKept) tryToKeep(globalThis, "_", descriptor);
      await display(value);
    }
  } catch (reason) {
    if (!run.over) cellThrew(run, reason);
    return;
  }
  if (!run.over) cellEnded(run, "done");
}

// Why a program cannot be parsed; null if the exception has another reason. The stack of an error of V8's parser is that of
// the inspector's caller. That of an error in the program has the program above it, or is asynchronous.
function syntaxError(run, details, reason) {
  if (details.exception.className !== "SyntaxError" || details.stackTrace === undefined) return null;
  const { callFrames } = details.stackTrace;
  let isParsing = false;
  for (let index = 0; index < callFrames.length; index += 1) {
    const { url } = callFrames[index];
    if (apply(startsWith, url, ["cell:"])) return null;
    if (url === INSPECTOR) isParsing = true;
  }
  if (!isParsing) return null;
  const { message } = errors.describe(reason);
  const line = details.lineNumber + 1;
  const shifted = details.columnNumber + 1 - (line === 1 ? places[run.number].shift : 0);
  const column = shifted > 0 ? shifted : 1; // an imported name has been declared already
  const traceback = `SyntaxError: ${message}\n    at ${run.name}:${line}:${column}`;
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
  places[run.number] = { name: run.name, shift: 1 };
  evaluate(run, `${expression}]`, (_, result, details) => {
    if (details !== null) {
      cellRefused(run, errors.describe(take(details.exception)), "run");
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
        const traceback = `SyntaxError: ${message}\n    at ${run.name}:${line}:1`;
        cellRefused(run, { name: "SyntaxError", message, traceback }, "run");
        return;
      }
    }
    nextTurn(begin, run);
  });
}

// TypeScript. Removing the types keeps the positions. Enums, namespaces and parameter properties need another mode, which
// also removes imports that the program itself does not use.

const importLine = /^[ \t]*import\b(?!\s*[(.])/gmu;

function removeTypes(run) {
  const code = run.source;
  const { stripTypeScriptTypes } = getModule("node:module"); // loaded only now, because this takes long
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
    typesRefused(run, code, error);
  }
}

// Displays

let displays = 0;
let left = 0;

function beginDisplays(maxBytes) {
  displays = 0;
  left = maxBytes;
}

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

