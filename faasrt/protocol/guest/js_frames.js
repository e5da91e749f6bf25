// Collects streams, renders the records of a frame, and encodes frames. Every JavaScript guest program contains this file.

const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
const Decoder = TextDecoder;
const { decode } = Decoder.prototype;
const BytesOf = Uint8Array;
const { toBase64 } = BytesOf.prototype;
const typedGetter = (name) => Object.getOwnPropertyDescriptor(Object.getPrototypeOf(BytesOf.prototype), name).get;
const [bufferOf, offsetOf, lengthOf] = ["buffer", "byteOffset", "length"].map(typedGetter);
const { isWellFormed } = String.prototype;
const StringOf = String;
const { fromCharCode } = String;
const toBinary = btoa;

function sizeOf(bytes) {
  return apply(lengthOf, bytes, []);
}

// Return a part of bytes, without a copy. `subarray` would read the constructor, which the program can change.
function part(bytes, from, to = sizeOf(bytes)) {
  return new BytesOf(apply(bufferOf, bytes, []), apply(offsetOf, bytes, []) + from, to - from);
}

function decodeText(bytes, stream = false) {
  return apply(decode, new Decoder(), [bytes, { __proto__: null, stream }]);
}

function base64(bytes) {
  if (toBase64 !== undefined) return apply(toBase64, bytes, []);
  let binary = "";
  const size = sizeOf(bytes);
  for (let index = 0; index < size; index += 1) binary += fromCharCode(bytes[index]);
  return toBinary(binary);
}

function pack(text) {
  const quoted = stringify(text);
  // Node.js 18 has no isWellFormed.
  if (quoted.length < 1.3 * text.length + 100 || !isWellFormed || !apply(isWellFormed, text, [])) return quoted;
  return `{"base64":"${base64(encode(text))}"}`;
}

// Return a stream as JSON: the whole text, or its head, its tail, and the number of bytes lost between them.
function render(stream, maxBytes) {
  const bytes = encode(stream.text);
  const size = sizeOf(bytes);
  if (size + stream.lost <= maxBytes) return pack(stream.text);
  const half = maxBytes >> 1;
  const head = decodeText(part(bytes, 0, maxBytes - half), true);
  let from = size - half;
  while (from < size && (bytes[from] & 0xc0) === 0x80) from += 1;
  const tail = decodeText(part(bytes, from));
  return `{"head":${pack(head)},"tail":${pack(tail)},"lost":${stream.lost + from - (maxBytes - half)}}`;
}

function emptyStreams() {
  return { stdout: { text: "", lost: 0 }, stderr: { text: "", lost: 0 }, ret_val: { text: "", lost: 0 } };
}

// Add text to a stream. A text of this size exceeds the output limit, so the program will be stopped.
function append(stream, text, limit) {
  if (text.length > 4 * limit) {
    stream.lost += text.length - 2 * limit;
    text = apply(slice, text, [0, limit]) + apply(slice, text, [-limit]);
  }
  stream.text += text;
}

function truncate(text, maxUnits) {
  const half = maxUnits >> 1;
  return text.length <= maxUnits ? text : `${apply(slice, text, [0, half])}\n...\n${apply(slice, text, [-half])}`;
}

// Return the record of an execution. Its streams keep at most `maxBytes` each, fewer if it would be too large otherwise.
function renderRecord(head, streams, names, error, maxBytes, recordBytes) {
  let record = "";
  do {
    record = `{${head}`;
    if (error !== null) {
      const message = render({ text: error.message, lost: 0 }, maxBytes);
      const traceback = stringify(truncate(error.traceback, 20_000));
      record += `,"error":{"name":${stringify(truncate(error.name, 200))},"message":${message},"traceback":${traceback}}`;
    }
    for (let number = 0; number < names.length; number += 1) {
      record += `,"${names[number]}":${render(streams[names[number]], maxBytes)}`;
    }
    record += "}";
    maxBytes >>= 1;
    // JSON escapes may make the record too large for a frame.
  } while (maxBytes > 50 && sizeOf(encode(record)) > recordBytes);
  return record;
}
