// The main module of a program for Node.js, in Deno: it runs main.cjs as Node.js does, as a CommonJS module. Deno's
// compatibility with Node.js lacks the rest.

import fs from "node:fs";
import Module from "node:module";
import { Console } from "node:console";

// Many programs read /dev/stdin, which Deno may not open.
const { readFileSync } = fs;
fs.readFileSync = (path, ...rest) => readFileSync(path === "/dev/stdin" ? 0 : path, ...rest);

// In Node.js, listeners for uncaught exceptions get unhandled rejections too.
addEventListener("unhandledrejection", (event) => {
  if (process.listenerCount("unhandledRejection") > 0 || process.listenerCount("uncaughtException") === 0) return;
  event.preventDefault();
  process.emit("uncaughtException", event.reason, "unhandledRejection");
});

// In Node.js, the console writes to the streams of `process`.
globalThis.console = new Console(process.stdout, process.stderr);

process.argv[1] = new URL(import.meta.resolve("./main.cjs")).pathname;
Module.runMain();
