// Renders streams for a frame, and encodes frames. Every JavaScript guest program contains this file.

const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
const Decoder = TextDecoder;
const { subarray, toBase64 } = Uint8Array.prototype;
const { isWellFormed } = String.prototype;
const StringOf = String;

function base64(bytes) {
  if (toBase64 !== undefined) return apply(toBase64, bytes, []);
  let binary = "";
  for (let index = 0; index < bytes.length; index += 8192) {
    binary += StringOf.fromCharCode(...apply(subarray, bytes, [index, index + 8192]));
  }
  return btoa(binary);
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
  if (bytes.length + stream.lost <= maxBytes) return pack(stream.text);
  const half = maxBytes >> 1;
  const head = new Decoder().decode(apply(subarray, bytes, [0, maxBytes - half]), { stream: true });
  let from = bytes.length - half;
  while (from < bytes.length && (bytes[from] & 0xc0) === 0x80) from += 1;
  const tail = new Decoder().decode(apply(subarray, bytes, [from]));
  return `{"head":${pack(head)},"tail":${pack(tail)},"lost":${stream.lost + from - (maxBytes - half)}}`;
}
