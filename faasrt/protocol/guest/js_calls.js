// Keeps the records of cases, calls a function of the program, and says how this ended. This file is part of js_guest.js
// and node_guest.js, which define `failure`, how an error ended a case; `guarded`, which runs a function; and `cpuMs`, which
// returns the CPU time of the process, or is null if all time counts.

const PromiseOf = Promise;
const { setTimeout: setTimer, clearTimeout: clearTimer } = globalThis;
const now = performance.now.bind(performance);
const define = Object.defineProperty;
const { join, includes } = Array.prototype;
const execRegExp = RegExp.prototype.exec;
const { min: least } = Math;
const [SHORT_TICK_MS, LONG_TICK_MS] = [5, 50];
const TICK_CPU_MS = 1; // a tick itself uses less
const records = makeList();
let streams = {};
let index = 0;
let began = 0;
let tickMs = 0;
let countedMs = 0;
let seenAt = 0;
let seenCpuMs = 0;
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

// Add the time since the last call of this function to the time that counts for the limit. The wait for a CPU does not
// count: not more is added than the CPU time of the process, and the time for which the program may have slept. That is
// the length of a tick, because its timer is late only if the event loop is blocked, or waits for a CPU. Twice as much
// counts, because the ticks of a program that sleeps are late, too, on a busy machine. Return the CPU time.
function count(sleptMs = 2 * tickMs) {
  const time = now();
  const cpu = cpuMs === null ? time : cpuMs();
  const usedMs = cpu - seenCpuMs;
  countedMs += least(time - seenAt, sleptMs + usedMs);
  seenAt = time;
  seenCpuMs = cpu;
  return usedMs;
}

// Run an action that does not sleep, except as it says itself.
function blocking(action, sleptMs = 0) {
  count();
  try {
    return action();
  } finally {
    count(sleptMs);
  }
}

// Return how an action ended: with its end, an uncaught error, or the time limit, whichever came first.
async function within(action, limitMs) {
  let timer;
  count();
  countedMs = 0;
  tickMs = cpuMs === null ? limitMs : SHORT_TICK_MS;
  try {
    return await new PromiseOf((resolve, rejected) => {
      reject = rejected;
      const tick = () => {
        if (countedMs >= limitMs) return resolve(ending("TIMEOUT"));
        tickMs = least(tickMs, limitMs - countedMs);
        timer = setTimer(() => {
          tickMs = count() > TICK_CPU_MS ? SHORT_TICK_MS : least(2 * tickMs, LONG_TICK_MS);
          tick();
        }, tickMs);
      };
      if (limitMs !== null) tick();
      settle(action(), resolve, rejected);
    });
  } catch (reason) {
    return failure(reason, false);
  } finally {
    reject = null;
    clearTimer(timer);
    count();
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
  const value = await blocking(() => guarded(() => apply(action, undefined, args)));
  try {
    retVal = toJson(value, "value", { depth: 0, exact: job.exact });
  } catch (reason) {
    if (!(reason instanceof EncodeError)) throw reason;
    return errorEnding("TypeError", `the return value cannot be encoded as JSON: ${reason.message}`);
  }
  return ending("OK", 0);
}
