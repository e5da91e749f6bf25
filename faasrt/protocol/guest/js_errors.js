// Reports how a JavaScript or TypeScript program ended. This file is part of every JavaScript guest program.
//
// The program may replace any global. Globals that are needed after its start are stored before.

// Report the errors that the listeners of the program leave unhandled, and call `after` with the type of every other event
// of the global object, after the program's listeners. Listeners for the events of `node` count too. It is Node's
// `process`, or null if the program does not use it.
//
// Deno sends these events with the global object's own `dispatchEvent`, so this function replaces it. Listeners would not
// do: they would have to stay the last ones, and Deno can only call listeners while Array.prototype is unchanged.
export function watchEvents(report, after, node) {
  const events = { __proto__: null, unhandledrejection: "unhandledRejection", error: "uncaughtException" };
  const apply = Reflect.apply;
  const getter = (type, name) => Object.getOwnPropertyDescriptor(type.prototype, name).get;
  const typeOf = getter(Event, "type");
  const isHandled = getter(Event, "defaultPrevented");
  const { preventDefault } = Event.prototype;
  const reasons = {
    __proto__: null,
    unhandledrejection: getter(PromiseRejectionEvent, "reason"),
    error: getter(ErrorEvent, "error"),
  };
  const scope = globalThis;
  // Not that of `scope`: the embedded FaaS and its guest program both call this function, and only the last call counts.
  let original = EventTarget.prototype.dispatchEvent;
  function dispatchEvent(event) {
    const proceeds = apply(original, this, [event]);
    const type = apply(typeOf, event, []);
    if (events[type] === undefined) {
      after(type);
      return proceeds;
    }
    if (apply(isHandled, event, []) || (node !== null && node.listenerCount(events[type]) > 0)) return proceeds;
    let reason;
    try {
      reason = apply(reasons[type], event, []);
    } catch {
      return proceeds; // a plain Event, which the program sent
    }
    apply(preventDefault, event, []);
    report(reason);
    return false;
  }
  Object.defineProperty(scope, "dispatchEvent", {
    __proto__: null,
    configurable: true,
    get: () => dispatchEvent,
    set: (value) => {
      original = value;
    },
  });
}

export function errorReader(fileName, maxStackBytes) {
  const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
  const lengthOf = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), "length").get;
  const inspect = Deno.inspect;
  const hasInstance = Function.prototype[Symbol.hasInstance].bind(Error);
  const apply = Reflect.apply;
  const { replaceAll, split, includes, slice, startsWith, lastIndexOf, trimEnd } = String.prototype;
  const execRegExp = RegExp.prototype.exec;
  const hasOwn = Object.prototype.hasOwnProperty;
  const internal = /^    at (?:.* \()?ext:/;
  const position = /^(\d+):(\d+)$/;
  const prefix = "SyntaxError: ";
  let location = "";
  let folder = fileName;
  let caller = null;

  // Set the URL from which the program is imported. Messages contain the file name instead. If the program has other
  // files, also set the URL of their folder. If the caller is a file there, also set its URL. The name of the file can change.
  function locate(url, folderUrl = null, callerUrl = null, name = null) {
    location = url;
    if (name !== null) fileName = name;
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
    let kept = "";
    for (let index = 0; index <= last; index += 1) {
      if (apply(execRegExp, internal, [lines[index]]) === null) kept += `\n${lines[index]}`;
    }
    return shorten(apply(slice, kept, [1]));
  }

  // Cut a text of more than `maxBytes` in UTF-8 to its head and tail.
  function shorten(text, maxBytes = maxStackBytes) {
    if (3 * text.length <= maxBytes || apply(lengthOf, encode(text), []) <= maxBytes) return text;
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
