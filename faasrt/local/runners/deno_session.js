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
//     {"kind": "display", ...}             see deno_cells.js
//     {"kind": "exit", "code"}             the program called Deno.exit, which ends the run and not the session
//     {"kind": "timeout"}                  the program was interrupted at its time limit
//     {"kind": "interrupted"}              the program was interrupted because the host woke the runner up
//     {"kind": "error", ...}               the exception or rejection that ended the program
//     {"kind": "done"}                     the last message of each run, and the answer to a request to write files
//     {"kind": "failed", "text"}           a file cannot be written
//
// `vm.Script` interrupts a program that does not return to the event loop, and keeps its state.
//
// Between runs the runner waits for its next request without the event loop, so that an idle session uses no CPU time.
// Timers and promises of a program go on while a later one runs.
//
// The program may be hostile, see deno_main.js. The host puts js_errors.js, deno_common.js and
// deno_cells.js in front of this file.

const exit = Deno.exit;
const process = watchProcess();
const FOLDER = "/tmp/";

const errors = errorReader("<cell ", 2 ** 20);
errors.locate("\0", "<cell ");

let current = null; // the run
let listening = false; // waiting for the host to wake the runner up
const exited = { __proto__: null };

function cellEvaluated() {}

function cellEnded(run, kind) {
  finish(kind);
}

function cellThrew(run, reason) {
  cellRefused(run, errors.describe(reason), "run");
}

function cellRefused(run, error, phase) {
  if (run.exitCode !== null) finish("done");
  else finish("error", errorFields(error, phase));
}

async function typesRefused(run, code, error) {
  const location = moduleUrl(code, "application/typescript");
  const reason = await whyUnparsed(location);
  errors.locate(location, "<cell ", null, run.name);
  const syntax = (reason && errors.syntaxError(reason)) ?? { ...errors.describe(error), name: "SyntaxError" };
  if (!run.over) cellRefused(run, syntax, "compile");
}

// End the run in the next turn of the event loop, after the events of rejected promises.
function finish(kind, fields) {
  current.over = true;
  nextTurn(() => {
    if (current.exitCode !== null) send("exit", ["code", current.exitCode]);
    else if (kind !== "done") send(kind, fields);
    current = null;
    send("done");
    if (!listening) idle();
  });
}

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
    if (reason === exited && current !== null && !current.over) finish("done");
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
  if (!current.over) finish("interrupted");
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
    beginDisplays(request.maxMessageBytes);
    const until = apply(now, clock, []) + request.timeout;
    const run = newRun({ number, name: `<cell ${number}>`, source: code, typed, until, isKept: true });
    current = run;
    send("started");
    nextTurn(listen, run);
    beginCell(run);
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
