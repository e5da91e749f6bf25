// Runs the user's JavaScript program in Node.js, and returns everything as one frame. js_encode.js, js_frames.js,
// js_calls.js and this file together are the body of the function `guest(text, require)`. envelope.py documents the job
// in `text`.
//
// A program runs as a CommonJS module, as a service would run it; if it does not parse, as an ES module. Output that
// does not pass through `process.stdout` or `fs`, such as that of child processes, stays in the streams of the service.
//
// The program may be hostile. Everything that is needed after its start is stored in constants before.

const fs = require("node:fs");
const vm = require("node:vm");
const path = require("node:path");
const { tmpdir } = require("node:os");
const { pathToFileURL } = require("node:url");
const { createRequire } = require("node:module");
const { inspect } = require("node:util");
const { parse } = JSON;
const job = parse(Buffer.from(text, "base64").toString());
const limit = job.max_output_bytes;
const { writeSync, writeFileSync } = fs;
const host = globalThis.process;
const { reallyExit, exit, emitWarning } = host;
const { emit } = require("node:events").prototype;
const hasInstance = Function.prototype[Symbol.hasInstance];
const isError = hasInstance.bind(Error);
const isSyntaxError = hasInstance.bind(SyntaxError);
const { startsWith, includes: contains, indexOf } = String.prototype;
const { max, ceil } = Math;
const cpuMs = null; // the limits of the services and of `vm` are wall-clock time
const folder = host.cwd();
const fileName = "main.js";
const runner = `faasrt_${job.nonce}`;
// Node.js 18 lacks the constant.
const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER ?? ((specifier) => import(specifier));
const options = { __proto__: null, filename: fileName, importModuleDynamically: loader };
const isModule = /\b(?:import|export|await)\b/;

// ---- The records.

const sendsProgress = !job.single;
let running = false;
let printed = 0;
let sent = false;
let awaiting = false;
let exited = false;
let location = "";

function writeAll(fd, line) {
  let bytes = encode(`\n${line}\n`);
  while (sizeOf(bytes) > 0) {
    try {
      bytes = part(bytes, writeSync(fd, bytes));
    } catch (error) {
      if (error.code !== "EAGAIN") return; // the program closed the stream
    }
  }
}

function start(number) {
  printed = 0;
  retVal = "";
  running = true;
  begin(number);
}

function print(fd, text) {
  if (!running) return;
  const stream = fd === 1 ? streams.stdout : streams.stderr;
  printed += text.length > limit ? text.length : sizeOf(encode(text));
  append(stream, text, limit);
  if (printed > 2 * limit) leave(ending("OUTPUT_LIMIT"), 1);
}

function finish(fields) {
  if (!running) return;
  const { error } = fields;
  if (error !== null && error.traceback !== "") streams.stderr.text += `${error.traceback}\n`;
  running = false;
  const record = keepRecord(fields, retVal);
  total += record.length;
  if (sendsProgress) writeAll(2, frame(record, false));
}

// Send the result, and end the process. Do not run the listeners of the program.
function leave(fields, code) {
  finish(fields);
  if (!sent) writeAll(1, frame(apply(join, records, [","]), true));
  sent = true;
  apply(reallyExit, host, [code]);
}

// ---- Errors.

// String.prototype.split and replaceAll read further methods from String.prototype, which the program can change.
function splitText(text, separator) {
  const parts = makeList();
  let from = 0;
  for (let at; (at = apply(indexOf, text, [separator, from])) >= 0; from = at + separator.length) {
    parts[parts.length] = apply(slice, text, [from, at]);
  }
  parts[parts.length] = apply(slice, text, [from]);
  return parts;
}

// Return a stack up to the last frame of the program.
function cleanStack(stack) {
  const named = location === "" ? stack : apply(join, splitText(stack, location), [fileName]);
  const lines = splitText(named, "\n");
  let last = -1;
  for (let number = 0; number < lines.length; number += 1) {
    if (!apply(startsWith, lines[number], ["    at "]) || apply(contains, lines[number], [fileName])) last = number;
  }
  lines.length = last + 1;
  return apply(join, lines, ["\n"]);
}

// Return whether a stack has a frame of a program. Otherwise the loader threw the error.
function ranCode(stack) {
  const lines = splitText(stack, "\n");
  for (let number = 0; number < lines.length; number += 1) {
    const line = lines[number];
    if (apply(startsWith, line, ["    at "]) && !apply(contains, line, ["node:internal"])) return true;
  }
  return false;
}

function describe(reason) {
  try {
    if (isError(reason)) {
      const name = `${reason.name}`;
      const message = `${reason.message}`;
      const whole = reason.cause !== undefined || reason.errors !== undefined ? inspect(reason) : reason.stack;
      return { name, message, traceback: truncate(cleanStack(`${whole}`), limit) };
    }
    const message = truncate(typeof reason === "string" ? reason : inspect(reason), limit);
    return { name: "Error", message, traceback: `Uncaught ${message}` };
  } catch {
    return { name: "Error", message: "a value that cannot be shown", traceback: "Uncaught value" };
  }
}

class ParseError {
  constructor(reason) {
    this.reason = reason;
  }
}

function failure(reason) {
  if (reason instanceof ParseError) return syntaxEnding(reason.reason);
  if (reason !== null && typeof reason === "object" && reason.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") {
    return ending("TIMEOUT");
  }
  return ending("USER_ERROR", 1, describe(reason));
}

function syntaxEnding(reason) {
  const message = splitText(`${reason.message}`, "\n")[0];
  return ending("SYNTAX_ERROR", 1, { name: "SyntaxError", message, traceback: cleanStack(`${reason.stack}`) });
}

// ---- The program.

function asText(chunk, encoding) {
  if (typeof chunk === "string") {
    return encoding === "hex" || encoding === "base64" ? Buffer.from(chunk, encoding).toString() : chunk;
  }
  return Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength).toString();
}

function prepare() {
  for (const [fd, stream] of [[1, host.stdout], [2, host.stderr]]) {
    replace(stream, "write", (chunk, encoding, callback) => {
      print(fd, asText(chunk, encoding));
      const done = typeof encoding === "function" ? encoding : callback;
      if (typeof done === "function") host.nextTick(done);
      return true;
    });
  }
  replace(fs, "writeSync", (...values) => {
    const fd = values[0];
    const data = values[1];
    if (fd !== 1 && fd !== 2) return apply(writeSync, fs, values);
    const from = values[2] ?? 0;
    const chunk = typeof data === "string" ? data : data.subarray(from, from + (values[3] ?? data.length));
    print(fd, asText(chunk));
    return Buffer.byteLength(chunk);
  });
  replace(fs, "writeFileSync", (...values) => {
    const file = values[0];
    const fd = file === 1 || file === "/dev/stdout" ? 1 : file === 2 || file === "/dev/stderr" ? 2 : 0;
    if (fd === 0) return apply(writeFileSync, fs, values);
    return print(fd, asText(values[1]));
  });
  if (job.input.argv !== undefined) host.argv.splice(2, Infinity, ...job.input.argv);
  host.argv[1] = path.join(folder, fileName);
  globalThis.return_val = (value) => {
    retVal = value === null || value === undefined ? "" : StringOf(value);
  };
  replace(host, "emit", (...values) => {
    const handled = apply(emit, host, values);
    if (values[0] === "exit" && !sent) onExit(host.exitCode ?? values[1] ?? 0);
    return handled;
  });
  replace(host, "exit", (code) => {
    exited = true;
    apply(exit, host, [code]);
  });
  replace(host, "emitWarning", (warning, ...rest) => {
    // The guest program uses this feature, not the program.
    if (!`${warning}`.includes("USE_MAIN_CONTEXT_DEFAULT_LOADER")) apply(emitWarning, host, [warning, ...rest]);
  });
  host.on("uncaughtException", (reason) => {
    if (host.listenerCount("uncaughtException") > 1) return;
    if (reject !== null) reject(reason);
    else leave(failure(reason), 1);
  });
}

function onExit(code) {
  if (awaiting && !exited) return leave(errorEnding("Error", "top-level await never settled"), 1);
  leave(exitEnding(code), code);
}

// Run an action; if it blocks, stop it at the time limit.
function guarded(action) {
  if (job.case_ms === null) return action();
  globalThis[runner] = action;
  return new vm.Script(`globalThis.${runner}()`).runInThisContext({ __proto__: null, timeout: max(1, ceil(job.case_ms)) });
}

function compile(code, parameter = `${runner}_unused`) {
  const names = ["exports", "require", "module", "__filename", "__dirname", parameter];
  return vm.compileFunction(code, names, options);
}

// Run the program, and return an object with a function that looks up its names. The function alone would have `then` of
// Object.prototype, if the program defines it. Throw a ParseError if the program does not parse.
async function load() {
  const addition = `\n;${runner}((${runner}_name) => eval(${runner}_name));`;
  let program;
  try {
    compile(job.code);
    program = compile(job.function === null ? job.code : job.code + addition, runner);
  } catch (reason) {
    if (!isModule.test(job.code)) throw new ParseError(reason);
    return await loadModule(reason);
  }
  const module = { exports: {}, filename: path.join(folder, fileName), loaded: false, children: [], paths: [] };
  const requireFrom = createRequire(module.filename);
  requireFrom.main = module;
  let evaluate = () => undefined;
  const receive = (given) => {
    evaluate = given;
  };
  guarded(() => {
    apply(program, module.exports, [module.exports, requireFrom, module, module.filename, folder, receive]);
  });
  const lookUp = (name) => {
    try {
      const value = evaluate(name);
      if (value !== undefined) return value;
    } catch {
      // the name is not defined in the program
    }
    return name === "default" ? module.exports : module.exports[name];
  };
  return { __proto__: null, lookUp };
}

// Write a module into the folder of the program, from which it can import other files, and return its path.
function writeModule(code) {
  for (let index = 0; index < 2; index += 1) {
    const file = path.join(index === 0 ? folder : tmpdir(), `${job.nonce}.mjs`);
    try {
      writeFileSync(file, code);
      return file;
    } catch {
      // the folder cannot be written
    }
  }
  throw new Error("an ES module needs a folder that can be written");
}

async function loadModule(first) {
  const addition = `\nexport const ${runner} = (${runner}_name) => eval(${runner}_name);`;
  const file = writeModule(job.function === null ? job.code : job.code + addition);
  location = pathToFileURL(file).href;
  let module;
  awaiting = true;
  try {
    module = await import(location);
  } catch (reason) {
    if (!isSyntaxError(reason) || ranCode(`${reason.stack}`)) throw reason;
    throw new ParseError(/\b(?:import|export)\b|\bawait is only\b/.test(`${first.message}`) ? reason : first);
  } finally {
    awaiting = false;
    fs.rmSync(file, { force: true });
  }
  const lookUp = (name) => {
    if (name in module) return module[name];
    try {
      return module[runner](name);
    } catch {
      return undefined;
    }
  };
  return { __proto__: null, lookUp };
}

async function runProgram() {
  start(0);
  if (job.case_ms !== null) setTimer(() => leave(ending("TIMEOUT"), 1), job.case_ms).unref();
  try {
    await load();
  } catch (reason) {
    leave(failure(reason), 1);
  }
}

async function runCases() {
  const { first, cases } = job;
  let lookUp = null;
  if (!job.single && !job.isolate) {
    start(-1);
    const defineOnce = async () => {
      lookUp = (await load()).lookUp;
      return ending("OK", 0);
    };
    const fields = await within(defineOnce, job.case_ms);
    finish(fields);
    if (fields.outcome !== "OK") return leave(fields, 0);
  }
  const started = now();
  total = 0;
  for (let number = 0; number < cases.length; number += 1) {
    if (number > 0 && (total > job.batch_bytes || now() - started > job.begin_within_ms)) break;
    start(first + number);
    const act = async () => await call(lookUp ?? (await load()).lookUp, cases[number][0]);
    let fields = await within(act, job.case_ms);
    if (job.limit_ms !== null && now() - began > job.limit_ms) fields = ending("TIMEOUT");
    finish(fields);
    if (fields.outcome === "TIMEOUT") break;
  }
  leave(ending("OK", 0), 0);
}

writeAll(2, frame("", false));
writeAll(1, frame("", false));
prepare();
if (job.function === null) runProgram();
else runCases();
