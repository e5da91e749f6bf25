// The main module of a program for Node.js, in Deno: it runs main.cjs as Node.js does, as a CommonJS module. Deno's
// compatibility with Node.js lacks the rest, which is loaded only for programs that need it, because this takes long.

import Module from "node:module";

const source = Deno.readTextFileSync("main.cjs");
if (source.includes("uncaughtException")) {
  // In Node.js, these listeners get unhandled rejections too.
  addEventListener("unhandledrejection", (event) => {
    if (process.listenerCount("unhandledRejection") > 0 || process.listenerCount("uncaughtException") === 0) return;
    event.preventDefault();
    process.emit("uncaughtException", event.reason, "unhandledRejection");
  });
}
if (/\bstd(?:out|err)\b/.test(source)) {
  // In Node.js, the console writes to the streams of `process`.
  const { Console } = await import("node:console");
  globalThis.console = new Console(process.stdout, process.stderr);
}

process.argv[1] = new URL(import.meta.resolve("./main.cjs")).pathname;
try {
  Module.runMain();
} catch (error) {
  if (typeof error?.stack !== "string") throw error;
  error.stack = error.stack.slice(0, error.stack.lastIndexOf("\n    at ")); // without the frame of this module
  if (!(error instanceof SyntaxError) || error.stack.includes("main.cjs")) throw error;
  // The program could not be parsed, which clients know from the frames of Node.js.
  const lines = error.stack.split("\n");
  console.error(lines.filter((line) => !line.startsWith("    at ") || line.includes("(node:")).join("\n"));
  process.exit(1);
}
