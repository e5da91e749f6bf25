// Gives a JavaScript program its standard input and arguments on servers that do not. This file is part of js_guest.js.

const BytesOf = Uint8Array;
const { slice: sliceBytes, set: setBytes } = BytesOf.prototype;
const { charCodeAt } = String.prototype;
const ByteStream = ReadableStream;

function provideArguments(argv) {
  replace(Deno, "args", [...argv]);
  // In place, because Node's modules keep this array.
  scope.process?.argv.splice(2, Infinity, ...argv);
}

// Make Deno.stdin and process.stdin return the standard input from its start. It is in the job as text or as base64.
function provideStdin(input) {
  const isText = typeof input === "string";
  const bytes = isText ? encode(input) : BytesOf.from(atob(input.base64), (letter) => apply(charCodeAt, letter, [0]));
  let position = 0;
  const take = (size) => {
    const piece = apply(sliceBytes, bytes, [position, position + size]);
    position += piece.length;
    return piece.length === 0 ? null : piece;
  };
  const readSync = (target) => {
    if (target.length === 0) return 0;
    const piece = take(target.length);
    if (piece === null) return null;
    apply(setBytes, target, [piece]);
    return piece.length;
  };
  const pull = (controller) => {
    const piece = take(65_536);
    if (piece !== null) return controller.enqueue(piece);
    controller.close();
    controller.byobRequest?.respond(0);
  };
  replace(Deno.stdin, "readSync", readSync);
  replace(Deno.stdin, "read", async (target) => readSync(target));
  // Like Deno's own stream, it reads nothing ahead, so that a program can also use the other functions.
  replace(Deno.stdin, "readable", new ByteStream({ type: "bytes", pull }, { highWaterMark: 0 }));
  if (!usesNode || scope.process === undefined) return;
  const { Readable } = scope.process.getBuiltinModule("node:stream");
  const { Buffer } = scope.process.getBuiltinModule("node:buffer");
  const stream = new Readable({
    read() {
      const piece = take(65_536);
      this.push(piece === null ? null : Buffer.from(piece.buffer));
    },
  });
  stream.fd = 0;
  replace(scope.process, "stdin", stream);
}
