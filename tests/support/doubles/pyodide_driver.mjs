// Runs one program in Pyodide as python-faas does, in the folder that is the current one: see python_driver.py.
import { loadPyodide } from "npm:pyodide@314.0.7";

const code = Deno.readTextFileSync("program.py");
const lines = [];
const pyodide = await loadPyodide();
pyodide.setStdout({ batched: (line) => lines.push(line) });
pyodide.setStderr({ batched: () => {} });
let report = { failed: true };
try {
  const value = await pyodide.runPythonAsync(code);
  report = { failed: false, value: value === undefined || typeof value === "string" ? value ?? null : [typeof value] };
} catch (error) {
  // What a SystemExit does to the real one is seen in its record; anything else is an exception of the program's.
  if (String(error).includes("SystemExit")) throw error;
}
Deno.writeTextFileSync("report", JSON.stringify(report));
Deno.stdout.writeSync(new TextEncoder().encode(lines.join("\n")));
Deno.exit(0);
