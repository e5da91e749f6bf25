// Gives a JavaScript program its standard input and arguments on servers that do not. This file is part of js_guest.js.

const { set: setBytes } = BytesOf.prototype;
const { charCodeAt } = String.prototype;
const fromBase64 = atob;
const { min } = Math;
const ByteStream = ReadableStream;

function bytesOf(binary) {
  const bytes = new BytesOf(binary.length);
  for (let index = 0; index < binary.length; index += 1) bytes[index] = apply(charCodeAt, binary, [index]);
  return bytes;
}

function provideArguments(argv) {
  replace(Deno, "args", [...argv]);
  // In place, because Node's modules keep this array.
  scope.process?.argv.splice(2, Infinity, ...argv);
}

// Make Deno.stdin and process.stdin return the standard input from its start. It is in the job as text or as base64.
function provideStdin(input) {
  const isText = typeof input === "string";
  const bytes = isText ? encode(input) : bytesOf(fromBase64(input.base64));
  let position = 0;
  const take = (size) => {
    if (position === sizeOf(bytes)) return null;
    const piece = new BytesOf(part(bytes, position, min(position + size, sizeOf(bytes))));
    position += sizeOf(piece);
    return piece;
  };
  const readSync = (target) => {
    if (sizeOf(target) === 0) return 0;
    const piece = take(sizeOf(target));
    if (piece === null) return null;
    apply(setBytes, target, [piece]);
    return sizeOf(piece);
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
  replace(Deno.stdin, "readable", new ByteStream({ __proto__: null, type: "bytes", pull }, { __proto__: null, highWaterMark: 0 }));
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
