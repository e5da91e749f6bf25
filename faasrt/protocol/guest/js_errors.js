// Reports how a JavaScript or TypeScript program ended. This file is part of every JavaScript guest program.
//
// The program may replace any global. Globals that are needed after its start are stored before.

// Report uncaught errors, unless a listener of the program handles them. The listeners added here always run last, and
// so do those in `last`, an object of listeners by event type. Listeners for the events of `node` count too. It is Node's
// `process`, or null if the program does not use it.
export function onUncaught(report, node, last = {}) {
  const events = { unhandledrejection: "unhandledRejection", error: "uncaughtException" };
  const scope = globalThis;
  const { addEventListener: listen, removeEventListener: unlisten } = scope;
  const apply = Reflect.apply;
  const stop = Event.prototype.preventDefault;
  const listener = (event) => {
    if (event.defaultPrevented || (node !== null && node.listenerCount(events[event.type]) > 0)) return;
    apply(stop, event, []);
    report(event.type === "error" ? event.error : event.reason);
  };
  const listeners = { __proto__: null, unhandledrejection: listener, error: listener, ...last };
  for (const type in listeners) listen(type, listeners[type]);
  scope.addEventListener = (type, added, options) => {
    apply(listen, scope, [type, added, options]);
    const own = typeof type === "string" ? listeners[type] : undefined;
    if (own === undefined) return;
    apply(unlisten, scope, [type, own]);
    apply(listen, scope, [type, own]);
  };
}

export function errorReader(fileName, maxStackBytes) {
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
  let folder = fileName;
  let caller = null;

  // Set the URL from which the program is imported. Messages contain the file name instead. If the program has other
  // files, also set the URL of their folder. If the caller is a file there, also set its URL.
  function locate(url, folderUrl = null, callerUrl = null) {
    location = url;
    if (folderUrl !== null) folder = folderUrl;
    if (callerUrl !== null) caller = `${callerUrl}:`;
  }

  // Return whether a line of a stack names a file of the program.
  function isOwn(line) {
    if (caller !== null && apply(includes, line, [caller])) return false;
    return apply(includes, line, [fileName]) || apply(includes, line, [folder]);
  }

  function withFileName(text) {
    return apply(replaceAll, text, [location, fileName]);
  }

  // Return a stack with the file name instead of the program's URL, and without the frames that called the program.
  function cleanStack(stack) {
    const lines = apply(split, withFileName(stack), ["\n"]);
    let last = -1;
    for (let index = 0; index < lines.length; index += 1) {
      if (!apply(startsWith, lines[index], ["    at "]) || isOwn(lines[index])) last = index;
    }
    const kept = [];
    for (let index = 0; index <= last; index += 1) {
      if (apply(execRegExp, internal, [lines[index]]) === null) kept[kept.length] = lines[index];
    }
    return shorten(apply(join, kept, ["\n"]));
  }

  // Cut a text of more than `maxBytes` in UTF-8 to its head and tail.
  function shorten(text, maxBytes = maxStackBytes) {
    if (3 * text.length <= maxBytes || encode(text).length <= maxBytes) return text;
    const half = maxBytes >> 3;
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

  // Reading the prototype of a thrown proxy can throw.
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
    const message = shorten(withFileName(field(reason, "message")));
    return { name, message, traceback: stackOf(reason) || `${name}: ${message}` };
  }

  // The causes of an error, and the errors of an AggregateError, follow its stack.
  function stackOf(reason) {
    try {
      const whole = apply(hasOwn, reason, ["cause"]) || apply(hasOwn, reason, ["errors"]);
      return cleanStack(whole ? inspect(reason) : field(reason, "stack"));
    } catch {
      return "";
    }
  }

  // If a program does not parse, its import fails with a message that ends in the position. V8 throws a SyntaxError, and
  // the TypeScript compiler a TypeError whose message begins with "SyntaxError: ".
  function syntaxError(reason) {
    if (!isError(reason)) return null;
    const message = field(reason, "message");
    const at = apply(lastIndexOf, message, [`at ${location}:`]);
    if (at < 0) return null;
    const found = apply(execRegExp, position, [apply(slice, message, [at + location.length + 4])]);
    const compiler = apply(startsWith, message, [prefix]);
    if (found === null || (field(reason, "name") !== "SyntaxError" && !compiler)) return null;
    const text = apply(trimEnd, apply(slice, message, [compiler ? prefix.length : 0, at]), []);
    // The compiler quotes the line below its message.
    const line = +found[1];
    const column = +found[2];
    const traceback = `SyntaxError: ${text}\n    at ${fileName}:${line}:${column}`;
    return { name: "SyntaxError", message: apply(split, text, ["\n"])[0], traceback, line, column };
  }

  return { locate, withFileName, shorten, describe, syntaxError };
}
