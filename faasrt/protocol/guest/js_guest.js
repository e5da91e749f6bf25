// Runs the user's JavaScript or TypeScript program on a server that would damage its output, and returns everything as
// one frame. js_errors.js, js_encode.js, js_frames.js, js_calls.js, js_input.js and this file together are the body of
// the function `guest(text, inWorker)`.
// envelope.py documents the job in `text`, and frames.py the frame.
//
// The runner runs the program, and reports events (`begin`, `print`, `end`, `done`) to the recorder. It calls the
// recorder directly, or sends it messages if the program runs in a worker, so that the recorder survives the program.
//
// The program may be hostile. Everything that is needed after its start is stored in constants before.

const { parse } = JSON;
const job = parse(atob(text));
const exitProcess = Deno.exit;
const writeStdout = Deno.stdout.writeSync.bind(Deno.stdout);
const writeStderr = Deno.stderr.writeSync.bind(Deno.stderr);
const serverReturnVal = job.lossless ? globalThis.return_val : null;
const post = inWorker ? globalThis.postMessage.bind(globalThis) : null;
const { isInteger } = Number;
const internals = Deno[Deno.internal];
const { cpuUsage } = Deno; // older versions lack it
const { wait } = Atomics;
const TextStream = WritableStream;
const makeUrl = URL.createObjectURL;
const Bytes = Blob;
const [load, unload] = [new Event("load"), new Event("unload")];
const scope = globalThis;
const deno = Deno;
const limit = job.max_output_bytes;
const fileName = job.language === "typescript" ? "main.ts" : "main.js";
const mime = job.language === "typescript" ? "application/typescript" : "text/javascript";
const { locate, withFileName, describe, syntaxError } = errorReader(fileName, limit);
const folder = job.has_folder ? `file://${Deno.cwd()}/` : "";
const writeFile = Deno.writeTextFileSync;
const usesNode = /\bprocess\b/.test(job.code);
const usesCommonJs = /\b(?:exports|module|require)\b/.test(job.code);
const usesWorker = !job.single && !job.lossless;
const sendsProgress = !job.single && job.lossless;
const evalName = `faasrt_${job.nonce}`;
// The version of Deno in js-faas lacks `cpuUsage`. Only a server that ends programs itself bounds a sleep that `count` does
// not see.
const cpuMs = !job.lossless || cpuUsage === undefined ? null : () => {
  const { user, system } = cpuUsage();
  return (user + system) / 1000;
};

// ---- The recorder.

let sent = false;
let progressSize = 0;
let exported = () => undefined;

function print(fd, text) {
  append(fd === 1 ? streams.stdout : streams.stderr, text, limit);
}

function end(fields, value) {
  keepRecord(fields, value);
  sendProgress();
}

// Only lossless servers get progress. On others the recorder is outside the worker, and survives the program.
function sendProgress() {
  if (!sendsProgress) return;
  const text = frame(apply(join, records, [","]), false);
  progressSize += text.length;
  serverReturnVal(text);
}

// The announcement goes to stderr, because servers return it even if the process is killed.
function announce() {
  if (serverReturnVal !== null) sendProgress();
  else writeAll(writeStderr, `\n${frame("", false)}\n`);
}

function writeAll(write, text) {
  let bytes = encode(text);
  while (sizeOf(bytes) > 0) bytes = part(bytes, write(bytes));
}

function sendResult() {
  if (sent) return;
  sent = true;
  const whole = frame(apply(join, records, [","]), true);
  if (serverReturnVal !== null) serverReturnVal(whole);
  else writeAll(writeStdout, `\n{"stdout":"","stderr":"","ret_val":"${whole}"}\n`);
}

function done(code) {
  sendResult();
  exitProcess(code);
}

// ---- The runner. It reports to the recorder through `report`.

const recorder = { begin, print, end, done };
const report = inWorker
  ? (kind, ...values) => post([job.nonce, kind, values])
  : (kind, ...values) => apply(recorder[kind], null, values);
const decoders = { __proto__: null }; // for output written as bytes
let running = false;
let printed = 0;
let onUnload = () => {};
let drained = false;
let copies = 0;

function start(number) {
  if (job.input.stdin !== undefined) provideStdin(job.input.stdin);
  printed = 0;
  retVal = "";
  running = true;
  report("begin", number);
}

function finish(fields) {
  if (!running) return;
  for (let fd = 1; fd <= 2; fd += 1) if (decoders[fd] !== undefined) write(fd, decoders[fd]());
  running = false;
  total += printed + retVal.length + 200;
  const traceback = fields.error === null ? "" : fields.error.traceback;
  if (traceback !== "") {
    if (job.capture) report("print", 2, `${traceback}\n`);
    else writeAll(writeStderr, `${traceback}\n`);
  }
  report("end", fields, retVal);
}

function write(fd, text) {
  if (!running || text === "") return;
  report("print", fd, withFileName(text));
  printed += text.length > limit ? text.length : sizeOf(encode(text));
  if (printed > 2 * limit) {
    finish(ending("OUTPUT_LIMIT"));
    leave(1);
  }
}

// End the process; a worker ends with it.
function leave(code) {
  report("done", code);
  if (inWorker) for (;;);
}

function failure(reason, imported) {
  const syntax = imported ? syntaxError(reason) : null;
  if (syntax !== null) return ending("SYNTAX_ERROR", 1, syntax);
  return ending("USER_ERROR", 1, describe(reason));
}

function guarded(action) {
  return action();
}

function exit(code) {
  const number = code === undefined ? deno.exitCode : isInteger(+code) ? +code & 0xff : 1;
  onUnload = () => {
    finish(exitEnding(number));
    leave(number);
  };
  if (inWorker) onUnload();
  // Deno.exit would do this without the replaced `dispatchEvent`.
  apply(scope.dispatchEvent, scope, [unload]);
  onUnload();
}

// Wait as Atomics.wait does. This blocks the event loop.
function countedWait(array, index, value, timeout) {
  const ms = +timeout;
  return blocking(() => wait(array, index, value, ms), ms >= 0 ? ms : Infinity);
}

// Return the text of `console.log(text)` or `console.log("%s", text)` if it holds a lone surrogate, otherwise null.
function loneSurrogateText(values) {
  const text = values[values.length - 1];
  if (typeof text !== "string" || apply(isWellFormed, text, [])) return null;
  return values.length === 1 || (values.length === 2 && values[0] === "%s") ? text : null;
}

function capture() {
  const fresh = new internals.Console((message, level) => write(level > 1 ? 2 : 1, message));
  const names = keysOf(fresh);
  for (let index = 0; index < names.length; index += 1) {
    const name = names[index];
    const method = fresh[name];
    if (typeof method !== "function") continue;
    const fd = name === "error" || name === "warn" ? 2 : name === "log" || name === "info" || name === "debug" ? 1 : 0;
    if (fd === 0) {
      replace(console, name, method);
      continue;
    }
    // Deno's console would replace a lone surrogate by U+FFFD.
    replace(console, name, (...values) => {
      const text = loneSurrogateText(values);
      if (text === null) apply(method, fresh, values);
      else write(fd, `${text}\n`);
    });
  }
  captureFile(1, deno.stdout);
  captureFile(2, deno.stderr);
}

function captureFile(fd, file) {
  const decoder = new Decoder("utf-8", { __proto__: null, ignoreBOM: true });
  decoders[fd] = () => apply(decode, decoder, []);
  const writeSync = (bytes) => {
    write(fd, apply(decode, decoder, [bytes, { __proto__: null, stream: true }]));
    return bytes.length;
  };
  replace(file, "writeSync", writeSync);
  replace(file, "write", async (bytes) => writeSync(bytes));
  replace(file, "writable", new TextStream({ __proto__: null, write: (chunk) => void writeSync(chunk) }));
}

function prepare() {
  if (job.capture) capture();
  if (job.input.argv !== undefined) provideArguments(job.input.argv);
  globalThis.return_val = (value) => {
    retVal = value === null || value === undefined ? "" : StringOf(value);
    if (!inWorker && running) streams.ret_val.text = retVal;
  };
  if (cpuMs !== null) replace(Atomics, "wait", countedWait);
  replace(Deno, "exit", exit);
  replace(scope, "close", () => exit(0));
  const node = usesNode && scope.process !== undefined ? scope.process : null;
  const onError = (reason) => {
    if (reject !== null) return reject(reason);
    finish(failure(reason, false));
    leave(1);
  };
  const after = (type) => {
    if (type === "unload" && node === null) onUnload();
    if (type !== "beforeunload" || node === null || drained) return;
    drained = true;
    // Node's listeners run after those for "unload". This one is added late, so that it runs after the program's.
    node.on("exit", () => onUnload());
  };
  watchEvents(onError, after, node);
}

function urlOf(code) {
  if (job.has_folder) {
    // A module in the folder can import files there. The query makes each import a new one.
    writeFile(fileName, code);
    copies += 1;
    const url = `${folder}${fileName}?${copies}`;
    locate(url, folder, `${folder}main.js`);
    return url;
  }
  const url = makeUrl(new Bytes([code], { __proto__: null, type: mime }));
  locate(url);
  return url;
}

function runProgram() {
  let settled = false;
  onUnload = () => {
    if (settled) finish(exitEnding(deno.exitCode));
    else finish(errorEnding("Error", "top-level await never settled"));
    sendResult();
  };
  start(0);
  // Servers that stop a program without a message do so a little later than this timer. A busy program blocks the timer.
  const onLimit = () => {
    finish(ending("TIMEOUT"));
    leave(0);
  };
  if (job.case_ms !== null) Deno.unrefTimer(setTimer(onLimit, job.case_ms));
  settle(
    import(urlOf(job.code)),
    () => {
      settled = true;
      apply(scope.dispatchEvent, scope, [load]);
    },
    (reason) => {
      finish(failure(reason, true));
      leave(1);
    },
  );
}

// Let a program export its functions as a CommonJS module does, and return what it exports.
function startCommonJs() {
  const own = { exports: {} };
  const require = (name) => {
    const found = scope.process?.getBuiltinModule?.(name);
    if (found === undefined) throw new Error(`Cannot find module '${name}'`);
    return found;
  };
  replace(scope, "module", own);
  replace(scope, "exports", own.exports);
  replace(scope, "require", require);
  return (name) => own.exports[name];
}

async function defineProgram() {
  let broken = null;
  if (usesCommonJs) exported = startCommonJs();
  try {
    // A direct eval can read every declaration of the module, exported or not.
    const addition = `export const ${evalName} = (${evalName}_name) => eval(${evalName}_name);`;
    const module = await import(urlOf(`${job.code}\n${addition}`));
    return { __proto__: null, module, fields: null };
  } catch (reason) {
    broken = failure(reason, true);
  }
  if (broken.outcome !== "SYNTAX_ERROR") return { __proto__: null, module: null, fields: broken };
  // Import the program again as the user wrote it, for the right message and position.
  try {
    await import(urlOf(job.code));
  } catch (reason) {
    broken = failure(reason, true);
  }
  return { __proto__: null, module: null, fields: broken };
}

function lookUp(module, name) {
  if (name in module) return module[name];
  const value = tryFind(module[evalName], name);
  return value === undefined ? tryFind(exported, name) : value;
}

function tryFind(find, name) {
  try {
    const value = find(name);
    return value === scope[name] ? undefined : value;
  } catch {
    return undefined;
  }
}

async function runCase(module, args) {
  if (module === null) {
    if (job.isolate && job.capture) capture();
    const defined = await defineProgram();
    if (defined.fields !== null) return defined.fields;
    module = defined.module;
  }
  return await call((name) => lookUp(module, name), args);
}

async function runCases() {
  const { first, cases, limit_ms } = job;
  let module = null;
  if (!job.single && !job.isolate) {
    start(-1);
    let defined;
    const defineOnce = async () => {
      defined = await defineProgram();
      return defined.fields ?? ending("OK", 0);
    };
    const fields = await within(defineOnce, limit_ms);
    finish(fields);
    if (fields.outcome !== "OK") return leave(0);
    module = defined.module;
  }
  const started = now();
  total = 0;
  for (let number = 0; number < cases.length; number += 1) {
    const full = total > job.batch_bytes || progressSize > job.progress_bytes;
    if (number > 0 && (full || now() - started > job.begin_within_ms)) break;
    start(first + number);
    let fields = await within(() => runCase(module, cases[number][0]), limit_ms);
    if (limit_ms !== null && countedMs > limit_ms && !fields.last) {
      fields = ending("TIMEOUT");
      fields.last = false; // the case ended without being stopped, so the next one can run
    }
    finish(fields);
    if (job.single && fields.outcome !== "OK") return leave(1);
    if (fields.last) break;
  }
  leave(0);
}

// ---- The start.

// Run the program in a worker, so that this process survives it, and enforce the time limits here.
function superviseWorker() {
  const source = `(${guest})(${stringify(text)}, true);`;
  const worker = new Worker(makeUrl(new Bytes([source], { type: "text/javascript" })), { type: "module" });
  let timer;
  worker.onmessage = ({ data }) => {
    if (!isArray(data) || data[0] !== job.nonce || recorder[data[1]] === undefined) return;
    const [, kind, values] = data;
    if (kind === "begin" && job.limit_ms !== null) {
      clearTimer(timer);
      timer = setTimer(() => {
        end(ending("TIMEOUT"), "");
        done(0);
      }, job.limit_ms + 100);
    }
    if (kind === "end") clearTimer(timer);
    apply(recorder[kind], null, values);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    end(ending("CRASHED"), "");
    done(0);
  };
}

if (!inWorker) announce();
if (usesWorker && !inWorker) {
  superviseWorker();
} else {
  const go = () => {
    prepare();
    if (job.function === null) runProgram();
    else runCases();
  };
  // js-faas captures the console until its script ends.
  if (job.lossless) go();
  else setTimer(go, 0);
}
