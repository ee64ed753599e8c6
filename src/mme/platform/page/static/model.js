// One model: its figures as they change, its package, and a form that sends it a request.

import { onChange, seenOf, short, tileOf } from "./fleet.js";
import { make, megabytes, milliseconds, plural, write } from "./states.js";

const dialog = document.getElementById("model");
const form = document.getElementById("send");
const example = document.getElementById("example");
const contentType = document.getElementById("content-type");
const requestBody = document.getElementById("request-body");
const answer = document.getElementById("answer");
const about = document.getElementById("model-package");
let open = null; // { instance, target } while the dialog shows it
let examples = [];

document.getElementById("fleet").addEventListener("click", (event) => {
  const tile = tileOf(event.target);
  if (tile) show(tile);
});
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => { open = null; });
dialog.addEventListener("click", (event) => { if (event.target === dialog && event.offsetX < 0) dialog.close(); });
onChange((instance, target) => { if (open && open.instance === instance && open.target === target) showFigures(); });

const address = ({ instance, target }) => ({ endpoint: instance.endpoint, variant: instance.variant.name, target });

async function show(tile) {
  open = tile;
  write(document.getElementById("model-name"), short(tile.target, tile.instance.variant));
  answer.replaceChildren();
  example.replaceChildren();
  requestBody.value = "";
  contentType.value = "application/json";
  examples = [];
  about.replaceChildren(make("p", { textContent: "Reading the package" }));
  showFigures();
  dialog.showModal();
  document.getElementById("model-name").focus();
  const response = await fetch(`/model?${new URLSearchParams(address(tile))}`);
  const told = await response.json();
  if (open !== tile) return;
  if (response.ok) showPackage(told);
  else about.replaceChildren(make("p", { className: "trouble", textContent: told.message }));
}

function showFigures() {
  const seen = seenOf(open.instance, open.target);
  const state = document.getElementById("model-state");
  state.dataset.state = seen?.state ?? "s3";
  state.replaceChildren(make("span", { className: "mark" }), seen?.name ?? "no longer there");
  const trouble = document.getElementById("model-trouble");
  trouble.hidden = !seen?.trouble;
  write(trouble, seen?.trouble ?? "");
  if (!seen) return;
  const figures = {
    "workers": seen.workers, "calls waiting": seen.waiting, "memory": megabytes(seen.memoryMb), "calls": seen.calls,
    "found in memory": seen.calls ? `${Math.round((100 * seen.hits) / seen.calls)} %` : "–",
    "evictions": seen.evictions, "warm, median": milliseconds(seen.warmMs), "cold, median": milliseconds(seen.coldMs),
  };
  document.getElementById("model-figures").replaceChildren(...Object.entries(figures).map(([name, value]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
}

function showPackage(told) {
  examples = told.examples;
  example.replaceChildren(...examples.map((one, index) => make("option", { value: index, textContent: one.name })));
  if (!examples.length) example.replaceChildren(make("option", { textContent: "the package brings none" }));
  fill();
  const parts = [
    make("h3", { textContent: "Package" }),
    make("p", { textContent: `${told.url}, ${megabytes(told.size_bytes / 2 ** 20)}, ETag ${told.etag}` }),
    make("pre", { textContent: told.files.join("\n"), tabIndex: 0, ariaLabel: "files of the package" }),
  ];
  const requirements = told.texts["requirements.txt"] ?? "None: it uses the container's own libraries.";
  for (const [title, text] of [
    ["Requirements", requirements],
    ["serving.properties", told.texts["serving.properties"] ?? "None."],
    ["Log", told.log.length ? told.log.join("\n") : "It has said nothing yet, or is not loaded."],
    ["model.py", told.texts["model.py"]],
  ]) {
    if (text) parts.push(make("h3", { textContent: title }), make("pre", { textContent: text, tabIndex: 0, ariaLabel: title }));
  }
  if (told.workers.length) {
    const workers = told.workers.map((one) => `${one.pid ?? one.id}: ${one.origin}${one.status ? `, ${one.status}` : ""}`);
    parts.push(make("h3", { textContent: plural(workers.length, "worker") }), make("pre", { textContent: workers.join("\n"), tabIndex: 0, ariaLabel: "workers" }));
  }
  about.replaceChildren(...parts);
}

function fill() {
  const chosen = examples[example.value];
  if (!chosen) return;
  requestBody.value = pretty(chosen.body);
  contentType.value = chosen.content_type;
}

example.addEventListener("change", fill);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  const sentFrom = open;
  const asked = { ...address(open), content_type: contentType.value, accept: examples[example.value]?.accept ?? "*/*", body: requestBody.value };
  button.disabled = true;
  try {
    const response = await fetch("/invoke", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked) });
    const told = await response.json();
    if (open === sentFrom) showAnswer(response.ok ? told : { status: response.status, error: "refused", body: told.message });
  } catch (error) {
    if (open === sentFrom) showAnswer({ status: 0, error: "no answer", body: String(error.message) });
  } finally {
    button.disabled = false;
  }
});

function showAnswer(told) {
  const took = told.ms === undefined ? "" : `, ${told.is_warm ? "warm" : "cold"}, ${milliseconds(told.ms)}`;
  answer.toggleAttribute("data-failed", Boolean(told.error));
  answer.replaceChildren(
    make("p", { textContent: told.error ? `${told.status} ${told.error}${took}` : `Answered ${told.status}${took}` }),
    make("pre", { textContent: pretty(told.body), tabIndex: 0, ariaLabel: "answer" }));
}

function pretty(text) {
  try {
    const whole = JSON.stringify(JSON.parse(text), null, 2);
    return whole.length < 400 ? whole : text;
  } catch {
    return text;
  }
}
