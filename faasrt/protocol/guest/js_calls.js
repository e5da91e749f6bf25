// Keeps the records of cases, calls a function of the program, and says how this ended. This file is part of js_guest.js
// and node_guest.js, which define `failure`, how an error ended a case, and `guarded`, which runs a function.

const PromiseOf = Promise;
const { setTimeout: setTimer, clearTimeout: clearTimer } = globalThis;
const now = performance.now.bind(performance);
const define = Object.defineProperty;
const { join, includes } = Array.prototype;
const execRegExp = RegExp.prototype.exec;
const records = makeList();
let streams = {};
let index = 0;
let began = 0;
let total = 0;
let retVal = "";
let reject = null;

function begin(number) {
  index = number;
  began = now();
  streams = emptyStreams();
}

function keepRecord({ outcome, exitCode, error }, value) {
  streams.ret_val.text = value;
  const names = job.capture ? ["ret_val", "stdout", "stderr"] : ["ret_val"];
  const head = `"index":${index},"outcome":"${outcome}","exit_code":${exitCode},"ms":${now() - began}`;
  const maxBytes = index < 0 ? job.definition_bytes : job.max_output_bytes;
  const record = renderRecord(head, streams, names, error, maxBytes, job.record_bytes);
  records[records.length] = record;
  return record;
}

function frame(listed, final) {
  const json = `{"nonce":"${job.nonce}","final":${final},"progress":${sendsProgress},"records":[${listed}]}`;
  return `faasrt1:${base64(encode(json))}`;
}

// Set every field, and the prototype: the program can change Object.prototype, from which a missing field would be read,
// and so would `then`, when an async function returns the object.
function ending(outcome, exitCode = null, error = null) {
  return { __proto__: null, outcome, exitCode, error, last: outcome === "TIMEOUT" };
}

function errorEnding(name, message) {
  return ending("USER_ERROR", 1, { name, message, traceback: `${name}: ${message}` });
}

function exitEnding(code) {
  if (code === 0 && job.function === null) return ending("OK", 0);
  const before = job.function === null ? "" : ` before ${job.function} returned`;
  const message = `the program exited with code ${code}${before}`;
  return ending("USER_ERROR", code, { name: "Exit", message, traceback: "" });
}

function replace(object, name, value) {
  try {
    define(object, name, { __proto__: null, value, writable: true, configurable: true, enumerable: true });
  } catch {
    // the property cannot be replaced, and stays as it is
  }
}

// Return how an action ended: with its end, an uncaught error, or the time limit, whichever came first.
async function within(action, limitMs) {
  let timer;
  try {
    return await new PromiseOf((resolve, rejected) => {
      reject = rejected;
      if (limitMs !== null) timer = setTimer(() => resolve(ending("TIMEOUT")), limitMs);
      settle(action(), resolve, rejected);
    });
  } catch (reason) {
    return failure(reason, false);
  } finally {
    reject = null;
    clearTimer(timer);
  }
}

async function settle(promise, resolve, rejected) {
  try {
    resolve(await promise);
  } catch (reason) {
    rejected(reason);
  }
}

function missing(lookUp) {
  const value = lookUp(job.function);
  if (value !== undefined) {
    return errorEnding("TypeError", `${job.function} is not a function, but of type ${typeof value}`);
  }
  const found = makeList();
  const declaration = /(?:function(?:\s*\*)?|class|const|let|var)\s+([\p{L}_$][\p{L}\p{N}_$]*)/gu;
  for (let name = "default"; found.length < 50; ) {
    if (!apply(includes, found, [name]) && typeof lookUp(name) === "function") found[found.length] = name;
    const declared = apply(execRegExp, declaration, [job.code]);
    if (declared === null) break;
    name = declared[1];
  }
  const listed = found.length ? `its functions: ${apply(join, found, [", "])}` : "it has no functions";
  return errorEnding("ReferenceError", `the program defines no function ${job.function}; ${listed}`);
}

async function call(lookUp, args) {
  const action = lookUp(job.function);
  if (typeof action !== "function") return missing(lookUp);
  const value = await guarded(() => apply(action, undefined, args));
  try {
    retVal = toJson(value, "value", { depth: 0, exact: job.exact });
  } catch (reason) {
    if (!(reason instanceof EncodeError)) throw reason;
    return errorEnding("TypeError", `the return value cannot be encoded as JSON: ${reason.message}`);
  }
  return ending("OK", 0);
}
