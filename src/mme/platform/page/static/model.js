// One model: its figures as they change, its package, and a form that sends it a request.

import { nameOf, onChange, placeOf, seenAt } from "./fleet.js";
import { make, megabytes, milliseconds, plural, share, write } from "./states.js";

const LOGGED_AFTER_MS = 500; // the platform waits that long for lines that belong to a record

const dialog = document.getElementById("model");
const form = document.getElementById("send");
const example = document.getElementById("example");
const contentType = document.getElementById("content-type");
const requestBody = document.getElementById("request-body");
const button = form.querySelector("button");
const answer = document.getElementById("answer");
const about = document.getElementById("model-package");
const state = document.getElementById("model-state");
const trouble = document.getElementById("model-trouble");
let open = null; // the tile's place while the dialog shows it
let examples = [];
let golden = null; // the example's body while nobody has edited it; the field itself changes its line ends

const FIGURES = {
  "workers": (seen) => String(seen.workers),
  "calls under way": (seen) => String(seen.waiting),
  "memory": (seen) => megabytes(seen.memoryMb),
  "calls": (seen) => seen.calls.toLocaleString("en"),
  "found in memory": (seen) => share(seen.hits, seen.calls),
  "evictions": (seen) => String(seen.evictions),
  "warm call, median": (seen) => milliseconds(seen.warmMs),
  "cold call, median": (seen) => milliseconds(seen.coldMs),
};
const figures = {}; // by name, the element that shows it
for (const name of Object.keys(FIGURES)) {
  figures[name] = make("dd");
  document.getElementById("model-figures").append(make("div", {}, make("dt", { textContent: name }), figures[name]));
}

document.getElementById("fleet").addEventListener("click", (event) => {
  const place = placeOf(event.target);
  if (place) show(place);
});
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => { open = null; });
dialog.addEventListener("click", (event) => { if (event.target === dialog && event.offsetX < 0) dialog.close(); });
onChange(() => { if (open) showFigures(); });

function show(place) {
  open = place;
  write(document.getElementById("model-name"), nameOf(place));
  answer.replaceChildren();
  example.replaceChildren();
  requestBody.value = "";
  golden = null;
  contentType.value = "application/json";
  examples = [];
  about.replaceChildren(make("p", { textContent: "Reading the package" }));
  showFigures();
  dialog.showModal();
  document.getElementById("model-name").focus();
  button.disabled = false;
  readPackage().then((found) => { if (open === place) showExamples(found); });
}

function showFigures() {
  const seen = seenAt(open);
  state.dataset.state = seen?.state ?? "s3";
  write(state.lastElementChild, seen?.name ?? "no longer there");
  trouble.hidden = !seen?.trouble;
  write(trouble, seen?.trouble ?? "");
  for (const [name, text] of Object.entries(FIGURES)) write(figures[name], seen ? text(seen) : "–");
}

async function readPackage() {
  const place = open;
  const told = await ask(`/model?${new URLSearchParams(place)}`);
  if (open !== place) return [];
  if (told.refused) about.replaceChildren(make("p", { className: "trouble", textContent: told.refused }));
  else showPackage(told);
  return told.examples ?? [];
}

// What the platform answers, or `refused` with the reason.
async function ask(address, options) {
  try {
    const response = await fetch(address, options);
    const told = await response.json();
    return response.ok ? told : { refused: told.message };
  } catch {
    return { refused: "The platform does not answer." };
  }
}

function showExamples(found) {
  examples = found;
  example.replaceChildren(...examples.map((one, index) => make("option", { value: index, textContent: one.name })));
  if (!examples.length) example.replaceChildren(make("option", { textContent: "the package brings none" }));
  fill();
}

function showPackage(told) {
  const workers = told.workers.map(({ pid, id, origin, status }) =>
    `${pid ?? id}: ${[origin, status].filter(Boolean).join(", ")}`);
  const parts = [];
  for (const [title, text, note] of [
    ["Log", told.log.join("\n") || "Nothing yet."],
    [plural(workers.length, "worker"), workers.join("\n")],
    ["Package", told.files.join("\n"), `${told.url}, ${megabytes(told.size_bytes / 2 ** 20)}, ETag ${told.etag}`],
    ["Requirements", told.texts["requirements.txt"] ?? "None: it uses the container's own libraries."],
    ["serving.properties", told.texts["serving.properties"] ?? "None."],
    ["model.py", told.texts["model.py"]],
  ]) {
    if (!text) continue;
    parts.push(make("h3", { textContent: title }));
    if (note) parts.push(make("p", { textContent: note }));
    parts.push(make("pre", { textContent: text, tabIndex: 0, ariaLabel: title }));
  }
  about.replaceChildren(...parts);
}

function fill() {
  const chosen = examples[example.value];
  if (!chosen) return;
  requestBody.value = golden = chosen.body;
  contentType.value = chosen.content_type;
}

example.addEventListener("change", fill);
requestBody.addEventListener("input", () => { golden = null; });

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const sentFrom = open;
  const accept = examples[example.value]?.accept ?? "*/*";
  const asked = { ...open, content_type: contentType.value, accept, body: golden ?? requestBody.value };
  button.disabled = true;
  const headers = { "Content-Type": "application/json" };
  const told = await ask("/invoke", { method: "POST", headers, body: JSON.stringify(asked) });
  if (open !== sentFrom) return;
  button.disabled = false;
  showAnswer(told);
  setTimeout(() => { if (open === sentFrom) readPackage(); }, LOGGED_AFTER_MS);
});

function showAnswer({ refused, status, error, is_warm, ms, body }) {
  const outcome = [error ? `${status} ${error}` : `Answered ${status}`, is_warm ? "warm" : "cold", milliseconds(ms)];
  answer.toggleAttribute("data-failed", Boolean(refused || error));
  answer.replaceChildren(
    make("p", { textContent: refused ? "Not sent" : outcome.join(", ") }),
    make("pre", { textContent: refused ?? body, tabIndex: 0, ariaLabel: "answer" }));
}
