"use strict";
const REFRESH_MS = 5_000;
const MAX_SHOWN = 50_000; // characters of output
const MAX_PIECES = 2_000; // a program can alternate between stdout and stderr
const MAX_DISPLAYS = 20;
const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp"]; // all others are shown as text
const GOOD = ["healthy", "ready", "OK"];
const NEUTRAL = ["starting", "degraded", "locked", "running", "stopped"];
const SAMPLES = {
  python: "import time\n\nfor number in range(1, 6):\n    print(number, number**2)\n    time.sleep(0.2)\n",
  javascript: "for (let number = 1; number <= 5; number++) {\n    console.log(number, number ** 2);\n}\n",
  typescript: "const squares: number[] = [1, 2, 3].map((number) => number ** 2);\nconsole.log(squares);\n",
  c: '#include <stdio.h>\n\nint main(void) {\n    puts("hello");\n}\n',
  cpp: '#include <iostream>\n\nint main() {\n    std::cout << "hello\\n";\n}\n',
  go: 'package main\n\nimport "fmt"\n\nfunc main() {\n    fmt.Println("hello")\n}\n',
  rust: 'fn main() {\n    println!("hello");\n}\n',
  java: 'public class Main {\n    public static void main(String[] args) {\n        System.out.println("hello");\n    }\n}\n',
  bash: "for number in 1 2 3; do\n    echo $((number * number))\ndone\n",
};
const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
let token = sessionStorage.getItem("token");
let health = null; // the last report
let timer = 0; // of the next refresh
let running = null; // the AbortController of the run
let leaving = false; // whether Esc was the last key in the editor

function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text; // never markup
  element.className = className;
  return element;
}

function show(element, text) {
  if (element.textContent !== `${text}`) element.textContent = text; // screen readers would repeat it
}

function showState(element, state) {
  show(element, state);
  element.className = `badge ${GOOD.includes(state) ? "good" : NEUTRAL.includes(state) ? "" : "bad"}`;
}

async function send(path, options) {
  const headers = { ...options.headers, ...(token === null ? {} : { Authorization: `Bearer ${token}` }) };
  const base = location.origin + location.pathname; // without a user name and password, which fetch refuses
  const response = await fetch(new URL(path, base), { ...options, headers, cache: "no-store" });
  if (!response.headers.get("Content-Type")?.includes("json")) throw new Error(`${response.status}, without JSON`);
  return response;
}

function explain(error) {
  return error.name === "Error" ? error.message : "the server does not answer";
}

// ---- status

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const response = await send("health", { signal: AbortSignal.timeout(REFRESH_MS) });
    if (response.status === 401) return askForToken();
    const report = await response.json();
    if (!report.languages) throw new Error(report.details);
    if (token !== null) sessionStorage.setItem("token", token);
    showHealth(report);
  } catch (error) {
    showState(page.status, explain(error));
  }
  clearTimeout(timer); // of another refresh meanwhile
  timer = setTimeout(refresh, REFRESH_MS);
}

function askForToken() {
  if (token !== null) show(page.refused, "The server refused this token.");
  forget();
}

function forget() {
  running?.abort();
  showState(page.status, "locked");
  sessionStorage.removeItem("token");
  token = health = null;
  page.main.hidden = page.facts.hidden = page.forget.hidden = true;
  page.login.hidden = false;
  page.token.focus();
}

function showHealth(report) {
  const languages = Object.entries(report.languages);
  const engines = Object.values(Object.fromEntries(languages.map(([, language]) => [language.engine, language])));
  const sum = (name) => engines.reduce((total, engine) => total + engine[name], 0);
  showState(page.status, report.status);
  show(page.running, `${sum("active")} of ${sum("capacity")}`);
  show(page.waiting, sum("queued"));
  show(page.uptime, formatTime(report.uptime_s));
  show(page.version, report.version.replace(/^faasrt /, ""));
  page.rows.replaceChildren(...languages.map(makeRow));
  const missing = Object.entries(report.missing).map(([name, reason]) => `${name}: ${reason}`);
  show(page.missing, missing.length ? `Not served: ${missing.join("; ")}` : "");
  const isNew = health === null || Object.keys(health.languages).join() !== Object.keys(report.languages).join();
  health = report;
  page.seconds.max = report.max_limits.timeout_limit_s;
  page.memory.max = report.max_limits.memory_limit_mb;
  page.limitRows.replaceChildren(...makeLimits(report.limits, report.max_limits));
  if (isNew) {
    page.settings.replaceChildren(...Object.entries(report.clients).flatMap(makeSetting)); // keeps a selection
    page.seconds.value = Math.min(10, report.limits.timeout_limit_s);
    page.memory.value = report.limits.memory_limit_mb;
    page.language.replaceChildren(...languages.map(([name]) => make("option", name)));
    choose();
  }
  page.main.hidden = page.facts.hidden = false;
  page.forget.hidden = token === null;
  page.login.hidden = true;
}

function makeRow([name, { status, detail, engine, runtime, level, level_reason: reason, active, capacity, queued }]) {
  const head = make("th", name);
  head.scope = "row";
  const cells = [["", detail], [`${active} of ${capacity}`], [queued], [engine, runtime], [level, reason]];
  const row = document.createElement("tr");
  row.append(head, ...cells.map(([text, more]) => {
    const cell = make("td", text);
    if (more) cell.append(make("small", more));
    return cell;
  }));
  row.cells[1].prepend(make("span", ""));
  showState(row.cells[1].firstChild, status);
  return row;
}

function makeLimits(usual, largest) {
  const texts = [usual, largest].map((limits) => [
    `${limits.timeout_limit_s} s`,
    `${limits.memory_limit_mb} MiB`,
    `${+(limits.max_output_bytes / 2 ** 20).toFixed(3)} MiB`,
  ]);
  const names = [["Time", "timeout-s"], ["Memory", "memory-mb"], ["Output, each stream", "output-bytes"]];
  return names.map(([name, flag], index) => {
    const row = document.createElement("tr");
    row.append(make("th", name), make("td", texts[0][index]), make("td", texts[1][index]));
    row.cells[0].scope = "row";
    row.cells[1].append(make("small", `--${flag}`));
    row.cells[2].append(make("small", `--max-${flag}`));
    return row;
  });
}

function makeSetting([client, lines]) {
  const { protocol, hostname, host, port, pathname } = location;
  const [user, path] = [token === null ? "" : "user:TOKEN@", pathname.replace(/\/$/, "")]; // never the token itself
  if (lines.includes("{domain}") && (protocol !== "http:" || path)) return []; // that client uses no other URLs
  const values = { url: `${protocol}//${user}${host}${path}`, domain: user + hostname, port: port || "80" };
  const setting = make("pre", lines.replace(/{(url|domain|port)}/g, (_, name) => values[name]));
  const definition = document.createElement("dd");
  definition.append(setting);
  return [make("dt", client), definition];
}

function formatTime(seconds) {
  const [days, hours, minutes] = [seconds / 86_400, (seconds / 3_600) % 24, (seconds / 60) % 60].map(Math.floor);
  if (days || hours) return days ? `${days} d ${hours} h` : `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${seconds} s`;
}

// ---- editor

function choose() {
  if (!page.code.value || Object.values(SAMPLES).includes(page.code.value)) {
    page.code.value = SAMPLES[page.language.value] ?? "";
  }
  page.stdin.disabled = !health.languages[page.language.value].input.includes("stdin");
  numberLines();
}

function numberLines() {
  const count = page.code.value.split("\n").length;
  show(page.numbers, Array.from({ length: count }, (_, index) => index + 1).join("\n"));
  page.numbers.scrollTop = page.code.scrollTop;
}

function editKey(event) {
  const plain = !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey && !event.isComposing;
  let text = "";
  if (event.key === "Tab" && plain && !leaving) text = "    ";
  if (event.key === "Enter" && plain) {
    const line = page.code.value.slice(0, page.code.selectionStart).split("\n").pop();
    text = `\n${line.match(/^[ \t]*/)[0]}`;
  }
  leaving = event.key === "Escape";
  if (text) {
    event.preventDefault();
    document.execCommand("insertText", false, text); // deprecated, but nothing else keeps undo
  }
}

// ---- run

async function run(event) {
  event.preventDefault();
  if (running) return;
  const { signal } = (running = new AbortController());
  const started = performance.now();
  const ticks = setInterval(() => show(page.elapsed, `${((performance.now() - started) / 1_000).toFixed(1)} s`), 100);
  const output = new Output();
  begin();
  try {
    const headers = { "Content-Type": "application/json", Accept: "application/x-ndjson" };
    const response = await send("run_code", { method: "POST", signal, headers, body: makeBody() });
    if (response.status === 401) askForToken(); // this aborts the run
    let result = null;
    for await (const line of readLines(response)) {
      const failure = line.error?.details ?? line.details; // at the end of output, or in place of it
      if (failure !== undefined) throw new Error(failure);
      if (line.result) result = line.result;
      else output.add(line.stream, line.text);
    }
    if (result === null) throw new Error("the server closed the connection before the result");
    showResult(result, output);
  } catch (error) {
    showState(page.outcome, signal.aborted ? "stopped" : "no result");
    show(page.message, signal.aborted ? "" : explain(error));
  } finally {
    running?.abort(); // leaves no half-read answer
    running = null;
    clearInterval(ticks);
    output.flush();
    page.run.disabled = false;
    if (document.activeElement === page.stop) page.run.focus();
    page.stop.disabled = true;
    refresh();
  }
}

function begin() {
  page.output.replaceChildren();
  page.displays.replaceChildren();
  for (const element of [page.message, page.notes, page.elapsed]) show(element, "");
  showState(page.outcome, "running");
  page.stop.disabled = false;
  if (document.activeElement === page.run) page.stop.focus();
  page.run.disabled = true;
}

function makeBody() {
  return JSON.stringify({
    language: page.language.value,
    code: page.code.value,
    displays: health.languages[page.language.value].displays,
    sandbox: { timeout_ms: page.seconds.valueAsNumber * 1_000, memory_limit_mb: page.memory.valueAsNumber },
    ...(page.stdin.disabled ? {} : { stdin: page.stdin.value }),
  });
}

async function* readLines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const parts = read.value.split("\n");
    parts[0] = rest + parts[0];
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
  if (rest) yield JSON.parse(rest);
}

class Output {
  pieces = []; // the last ones
  total = 0;
  shown = 0;
  timer = 0;

  add(stream, text) {
    this.pieces.push(make("span", text, stream));
    this.total += text.length;
    this.shown += text.length;
    while (this.shown > MAX_SHOWN || this.pieces.length > MAX_PIECES) {
      const oldest = this.pieces.shift();
      this.shown -= oldest.textContent.length;
      oldest.remove();
    }
    this.timer ||= setTimeout(() => this.flush(), 100); // layout takes time
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = 0;
    const { output } = page;
    const follows = output.scrollTop + output.clientHeight >= output.scrollHeight - 20;
    output.append(...this.pieces.filter((piece) => !piece.isConnected));
    if (follows) output.scrollTop = output.scrollHeight;
  }
}

function showResult({ outcome, output: { ret_val }, metadata, error_info: error, truncated, displays = [] }, output) {
  output.flush();
  const notes = [`${metadata.duration} ms`];
  if (metadata.compile_ms !== undefined) notes.push(`compiled in ${Math.round(metadata.compile_ms)} ms`);
  if (metadata.exit_code !== null) notes.push(`exit code ${metadata.exit_code}`);
  notes.push(`${metadata.engine}, ${metadata.runtime}`);
  if (output.shown < output.total) notes.push(`only the last ${output.shown} of ${output.total} characters are shown`);
  if (truncated.length) notes.push(`cut by the server: ${truncated.join(", ")}`);
  show(page.elapsed, "");
  showState(page.outcome, outcome);
  show(page.notes, notes.join(" · "));
  show(page.message, error ? `${error.name}: ${error.message}`.slice(0, 2_000) : "");
  if (ret_val) page.displays.append(make("small", "return value"), make("pre", ret_val.slice(0, MAX_SHOWN)));
  page.displays.append(...displays.slice(0, MAX_DISPLAYS).flatMap(makeDisplay));
  if (displays.length > MAX_DISPLAYS) page.displays.append(make("small", `${displays.length - MAX_DISPLAYS} more`));
}

function makeDisplay({ data, omitted }) {
  const parts = omitted.length ? [make("small", `too large: ${omitted.join(", ")}`)] : [];
  const type = [...IMAGES, "text/plain", ...Object.keys(data)].find((name) => data[name]);
  if (type === undefined) return parts;
  if (!IMAGES.includes(type)) {
    const label = type === "text/plain" ? [] : [make("small", `source of ${type}`)];
    return [...label, make("pre", data[type].slice(0, MAX_SHOWN)), ...parts];
  }
  const image = document.createElement("img");
  image.src = `data:${type};base64,${data[type]}`;
  image.alt = data["text/plain"]?.slice(0, 500) || "image";
  return [image, ...parts];
}

page.play.addEventListener("submit", run);
page.play.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  page.play.requestSubmit();
});
page.login.addEventListener("submit", (event) => {
  event.preventDefault();
  token = page.token.value.trim();
  page.token.value = "";
  show(page.refused, "");
  refresh();
});
page.forget.addEventListener("click", forget);
page.stop.addEventListener("click", () => running?.abort());
page.language.addEventListener("change", choose);
page.code.addEventListener("keydown", editKey);
page.code.addEventListener("input", numberLines);
page.code.addEventListener("scroll", () => (page.numbers.scrollTop = page.code.scrollTop));
document.addEventListener("visibilitychange", refresh);
refresh();
