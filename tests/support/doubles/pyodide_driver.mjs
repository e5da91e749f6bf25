// Runs the program in the current folder in Pyodide, like python-faas. See python_driver.py.
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
  // A SystemExit ends the process, as recordings of python-faas show. Any other error is an exception of the program.
  if (String(error).includes("SystemExit")) throw error;
}
Deno.writeTextFileSync("report", JSON.stringify(report));
Deno.stdout.writeSync(new TextEncoder().encode(lines.join("\n")));
Deno.exit(0);
