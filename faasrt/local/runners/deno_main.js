// Runs the user's program in a Deno process of its own, and reports to the host (the server) how it ends.
//
// The runner writes the line "\0ready" when it is ready for its job. It reads the job from stdin: the size of a header as
// eight digits; the header, JSON with {code, language, check, displays, argv, folder, files, nonce, maxMessageBytes}; and
// the contents of the files, of which the header has the paths and sizes. `folder` is the program's folder, or null if it
// has none. The rest of stdin is that of the program. The program's output goes to stdout and stderr unchanged. The runner's
// messages go to stdout too. Each begins with a mark that contains the job's nonce, and ends with a newline:
//
//     \0faasrt:NONCE:{"kind": "started", "location"}  the program begins; until here, a failure is not the program's
//     \0faasrt:NONCE:{"kind": "ret_val", "text"}      the argument of return_val; the last call counts
//     \0faasrt:NONCE:{"kind": "error", ...}           the exception or rejection that ended the program
//     \0faasrt:NONCE:{"kind": "exit"}                 the program called Deno.exit; with displays, "code" is its exit code
//     \0faasrt:NONCE:{"kind": "abort"}                the program called process.abort, which is no lack of memory
//     \0faasrt:NONCE:{"kind": "display", ...}        see deno_cells.js
//     \0faasrt:NONCE:{"kind": "done"}                 the program ran to its end; without this, the process just stopped
//
// A program whose displays the host wants is evaluated by deno_cells.js, and its displays are messages too. If it cannot be
// evaluated, because it needs `import.meta` for example, or if one of its files names it, it runs as a module, and only its
// calls of `display` have an effect.
//
// After "error" or "done" the runner waits until the host kills the process. This is faster than a regular exit, and
// makes sure that no code of the program runs any more.
//
// The program may be hostile. So everything that the runner needs after the program has begun is stored in constants
// before, and only this closure knows the nonce. (A program that guesses the nonce can only forge its own result.)
//
// The host puts faasrt/protocol/guest/js_errors.js and deno_common.js in front of this file, and for a job with `displays`
// deno_cells.js. Together they are the body of one async function.

const exit = Deno.exit;
const dispatch = dispatchEvent;
const loaded = new Event("load");
const unloading = new Event("unload");

// Nothing ever notifies this array, so waiting on it never ends.
const never = new Int32Array(new SharedArrayBuffer(4));
const wait = Atomics.wait;

let job = null;
let errors = null;
let ended = false;
let settled = false;
let cell = null; // the run of deno_cells.js
let neverSettled = null; // made only for such a run, because the first error of a process takes 1 ms

function end(kind, fields) {
  send(kind, fields);
  for (;;) wait(never, 0, 0);
}

function fail(reason, imported) {
  if (ended) return;
  ended = true;
  const syntax = imported ? errors.syntaxError(reason) : null;
  if (syntax !== null) end("error", errorFields(syntax, "compile"));
  // The program has been parsed without an error. A failed import is not a syntax error.
  if (job.check) end("done");
  end("error", errorFields(errors.describe(reason), "run"));
}

function importProgram() {
  import(location).then(succeeded, (reason) => fail(reason, true));
}

function succeeded() {
  settled = true;
  // Deno sends this event only after its main module, which is the runner.
  apply(dispatch, globalThis, [loaded]);
}

function cellEvaluated() {
  succeeded();
}

function cellEnded(run) {
  run.over = true;
}

function cellThrew(run, reason) {
  run.over = true;
  fail(reason, true);
}

// As a module, it runs, or fails as a program without displays does.
function cellRefused(run) {
  run.over = true;
  importProgram();
}

function typesRefused(run) {
  cellRefused(run);
}

Deno.exit = (code) => {
  if (!ended) {
    ended = true;
    if (cell !== null) endCell(code);
    send("exit");
  }
  exit(code);
};

// Deno cannot exit while the inspector evaluates a program.
function endCell(code) {
  const exitCode = (code ?? Deno.exitCode) & 255;
  apply(dispatch, globalThis, [unloading]);
  send("exit", ["code", exitCode]);
  end("done");
}

globalThis.close = () => Deno.exit(0);

// The first use of these takes longer, so they are used once before the program arrives.
readStdin(new BytesOf(0));
readText(0);

writeAll(writeStdout, "\0ready\n");
job = parse(readText(+readText(8)));
const { nonce } = job;
mark = `\0faasrt:${nonce}:`;
delete job.nonce;
const typed = job.language === "typescript";
const fileName = typed ? "main.ts" : "main.js";
errors = errorReader(fileName, job.maxMessageBytes);
// Node's `process.argv` is created from the same array.
Deno.args.push(...job.argv);
const sources = [job.code];
for (const [path, size] of job.files) {
  const content = readExactly(size);
  writeFile(path, content);
  if (/\.[cm]?[jt]sx?$/.test(path)) sources.push(decode(content));
}

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
  // If a top-level await never settles, Deno itself reports it, unless the program is a cell.
  if (ended || !settled) return;
  ended = true;
  if (!Deno.exitCode) end("done");
  send("exit");
}

// Node's listeners ("exit") run after those for "unload".
watchEvents(
  (reason) => fail(reason, false),
  (type) => {
    if (type !== "unload") return;
    if (cell !== null && !settled && !cell.over) fail(neverSettled, false);
    if (process === null) onEnd();
  },
  process,
);

let location = `file://${job.folder}/${fileName}`;
if (job.folder === null) {
  location = moduleUrl(job.code, typed ? "application/typescript" : "text/javascript");
} else {
  Deno.writeTextFileSync(fileName, job.code);
}
errors.locate(location, job.folder === null ? null : `file://${job.folder}/`);
if (job.displays) {
  neverSettled = new Error("a promise of a top-level await never settled");
  neverSettled.stack = `error: ${neverSettled.message}`;
  const until = Infinity; // the host ends the program
  cell = newRun({ number: 1, name: location, prefix: '"use strict";void 0;', source: job.code, typed, until });
}
// A file may import the program, which would then run as a module and as a cell.
const isImported = sources.some((source, index) => index > 0 && source.includes(fileName));
delete job.code;
sources.length = 0;

send("started", ["location", location]);

if (job.check) {
  const reason = await whyUnparsed(location);
  if (reason !== null) fail(reason, true);
  end("done");
}

if (cell === null) {
  importProgram();
} else {
  secret = nonce;
  beginDisplays(job.maxMessageBytes);
  if (isImported) cellRefused(cell);
  else beginCell(cell);
}
