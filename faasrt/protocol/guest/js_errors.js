// How a JavaScript or TypeScript program ended, in words: used by every guest program of ours.
//
// What is needed here is taken before the program begins, which may put anything in the place of what it finds.

// An error that nobody catches is ours to tell, unless a listener of the program says otherwise: ours stays the last one,
// and so do those in `last`, by their type.
export function onUncaught(tell, code, last = {}) {
  // Node's own events count as listeners too; asking for `process` loads much, and only a program that names it has them.
  const node = /\bprocess\b/.test(code) ? globalThis.process : null;
  const events = { unhandledrejection: "unhandledRejection", error: "uncaughtException" };
  const here = globalThis;
  const { addEventListener: listen, removeEventListener: unlisten } = here;
  const apply = Reflect.apply;
  const stop = Event.prototype.preventDefault;
  const listener = (event) => {
    if (event.defaultPrevented || (node !== null && node.listenerCount(events[event.type]) > 0)) return;
    apply(stop, event, []);
    tell(event.type === "error" ? event.error : event.reason);
  };
  const ours = { __proto__: null, unhandledrejection: listener, error: listener, ...last };
  for (const type in ours) listen(type, ours[type]);
  here.addEventListener = (type, added, options) => {
    apply(listen, here, [type, added, options]);
    const own = typeof type === "string" ? ours[type] : undefined;
    if (own === undefined) return;
    apply(unlisten, here, [type, own]);
    apply(listen, here, [type, own]);
  };
}

export function errorReader(shown, most) {
  const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
  const inspect = Deno.inspect;
  const hasInstance = Function.prototype[Symbol.hasInstance].bind(Error);
  const apply = Reflect.apply;
  const { replaceAll, split, includes, slice, startsWith, lastIndexOf, trimEnd } = String.prototype;
  const { join } = Array.prototype;
  const execRegExp = RegExp.prototype.exec;
  const hasOwn = Object.prototype.hasOwnProperty;
  const internal = /^    at (?:.* \()?ext:/;
  const position = /^(\d+):(\d+)$/;
  const prefix = "SyntaxError: ";
  let location = "";

  // The program's own URL, under which it is imported; it is shown as a file.
  function locate(url) {
    location = url;
  }

  function named(text) {
    return apply(replaceAll, text, [location, shown]);
  }

  // A stack as the user should read it: their file by its name, and without the frames that called it.
  function tidy(stack) {
    const lines = apply(split, named(stack), ["\n"]);
    let last = -1;
    for (let index = 0; index < lines.length; index += 1) {
      if (!apply(startsWith, lines[index], ["    at "]) || apply(includes, lines[index], [shown])) last = index;
    }
    const kept = [];
    for (let index = 0; index <= last; index += 1) {
      if (apply(execRegExp, internal, [lines[index]]) === null) kept[kept.length] = lines[index];
    }
    return shorten(apply(join, kept, ["\n"]));
  }

  // Head and tail of a text of more UTF-8 bytes than that.
  function shorten(text, bytes = most) {
    if (3 * text.length <= bytes || encode(text).length <= bytes) return text;
    const half = bytes >> 3;
    return `${apply(slice, text, [0, half])}\n...\n${apply(slice, text, [-half])}`;
  }

  function field(value, name) {
    try {
      const text = value[name];
      return typeof text === "string" ? text : "";
    } catch {
      return "";
    }
  }

  // A thrown proxy can throw when it is asked for its prototype.
  function isError(reason) {
    try {
      return hasInstance(reason);
    } catch {
      return false;
    }
  }

  function describe(reason) {
    if (!isError(reason)) {
      let message = "";
      try {
        message = shorten(typeof reason === "string" ? reason : inspect(reason));
      } catch {
        message = "a value that cannot be shown";
      }
      return { name: "Error", message, traceback: `Uncaught ${message}` };
    }
    const name = field(reason, "name") || "Error";
    const message = shorten(named(field(reason, "message")));
    return { name, message, traceback: stackOf(reason) || `${name}: ${message}` };
  }

  // What caused an error, or is gathered in it, stands below its stack.
  function stackOf(reason) {
    try {
      const whole = apply(hasOwn, reason, ["cause"]) || apply(hasOwn, reason, ["errors"]);
      return tidy(whole ? inspect(reason) : field(reason, "stack"));
    } catch {
      return "";
    }
  }

  // An import is rejected with the place of the program at the end of the message when the program does not parse: as a
  // SyntaxError by V8, as a TypeError that begins with "SyntaxError: " by the compiler in front of it.
  function syntaxError(reason) {
    if (!isError(reason)) return null;
    const message = field(reason, "message");
    const at = apply(lastIndexOf, message, [`at ${location}:`]);
    if (at < 0) return null;
    const found = apply(execRegExp, position, [apply(slice, message, [at + location.length + 4])]);
    const compiler = apply(startsWith, message, [prefix]);
    if (found === null || (field(reason, "name") !== "SyntaxError" && !compiler)) return null;
    const text = apply(trimEnd, apply(slice, message, [compiler ? prefix.length : 0, at]), []);
    // The compiler draws the line below its message.
    const line = +found[1];
    const column = +found[2];
    const traceback = `SyntaxError: ${text}\n    at ${shown}:${line}:${column}`;
    return { name: "SyntaxError", message: apply(split, text, ["\n"])[0], traceback, line, column };
  }

  return { locate, named, shorten, describe, syntaxError };
}
