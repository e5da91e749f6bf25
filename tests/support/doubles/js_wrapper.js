// The temp.js of js-faas, reconstructed from recorded stacks. They contain the columns 4 and 91 of line 18, and in the
// body of `new Function` the columns 42 (47 for syntax errors) and 58. So do not move or change line 18.
const script = __SCRIPT__;
const stdout = [];
const stderr = [];
const print = console.log;
const keep = (texts) => (...values) => {
  texts.push(values.map(String).join(" ") + "\n");
};
// The console is never restored, so the later output of timers and promises is lost.
console.log = console.info = keep(stdout);
console.error = console.warn = keep(stderr);
const isObject = (line) => {
  try { const value = JSON.parse(line); return typeof value === "object" && value !== null && !Array.isArray(value); }
  catch { return false; }
};
try {
  (new Function('script', '"use strict";return (function() { return eval(script); })();'))(script);
} catch (error) {
  stderr.push((error?.stack ?? String(error)) + "\n");
}
const lines = stdout.join("").split("\n");
const found = lines.findLastIndex(isObject);
const ret_val = found < 0 ? "" : lines.splice(found, 1)[0];
const rest = found < 0 ? lines.join("\n") : lines.join("\n").replace(/\n$/, "");
print(JSON.stringify({ stdout: rest, stderr: stderr.join(""), ret_val }));
