// Endpoints, instances and the tiles of their models: made once, then changed where an event says so.

import { STATES, make, megabytes, milliseconds, plural, read, write } from "./states.js";

const DENSE_FROM = 60; // models on an instance; more are shown small

const fleet = document.getElementById("fleet");
const find = document.getElementById("find");
const legend = document.getElementById("legend");
const instances = new Map(); // by id: what is known of it, and its elements
const counts = Object.fromEntries(Object.keys(STATES).map((state) => [state, 0]));
const pending = new Map(); // instance id -> target -> tile, until the next frame
let changed = () => {};

for (const [state, name] of Object.entries(STATES)) {
  const item = make("li", {}, make("span", { className: "mark" }), `${name} `, make("b", { textContent: "0" }));
  item.dataset.state = state;
  legend.append(item);
}

// Calls back with a tile that was changed: `callback(instance, target)`.
export function onChange(callback) {
  changed = callback;
}

export const short = (target, variant) => (target === "" ? variant.model : target.replace(/\.tar\.gz$/, ""));

export function showFleet(endpoints) {
  const kept = new Set();
  const sections = [];
  for (const endpoint of endpoints) {
    for (const variant of endpoint.variants) {
      const about = `${variant.name}, ${variant.instance_type}, weight ${variant.weight}`;
      const section = make("div", { className: "endpoint" },
        make("h3", { textContent: endpoint.name }, make("span", { textContent: about })));
      for (const told of variant.instances) {
        kept.add(told.id);
        const instance = instances.get(told.id) ?? makeInstance(told.id);
        Object.assign(instance, { endpoint: endpoint.name, variant });
        showInstance(instance, told);
        section.append(instance.element);
      }
      sections.push(section);
    }
  }
  for (const [id, instance] of instances) {
    if (!kept.has(id)) {
      for (const tile of instance.tiles.values()) counts[tile.seen.state] -= 1;
      instances.delete(id);
    }
  }
  const focused = document.activeElement;
  fleet.replaceChildren(...sections);
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  document.getElementById("nothing").hidden = sections.length > 0;
  showCounts();
}

function makeInstance(id) {
  const title = make("h4");
  const meter = make("meter");
  const gauge = make("span");
  const disk = make("span");
  const list = make("ul", { className: "tiles" });
  const facts = make("div", { className: "facts" }, title, make("span", { className: "gauge" }, meter, gauge), disk);
  const instance = { id, title, meter, gauge, disk, list, tiles: new Map(), element: make("div", { className: "instance" }, facts, list) };
  instances.set(id, instance);
  list.addEventListener("keydown", (event) => move(event, list));
  return instance;
}

function showInstance(instance, told) {
  write(instance.title, `Instance ${told.number}${told.is_up ? "" : ", its container is being replaced"}`);
  const label = told.used_mb === null
    ? `budget ${told.budget_mb} MB`
    : `${told.used_mb} of ${told.budget_mb} MB of memory`;
  write(instance.gauge, label);
  Object.assign(instance.meter, { min: 0, max: told.budget_mb, high: 0.9 * told.budget_mb, optimum: 0, value: told.used_mb ?? 0 });
  instance.meter.setAttribute("aria-label", `memory of instance ${told.number}`);
  write(instance.disk, `${told.disk_mb} MB on disk`);
  instance.list.setAttribute("aria-label", `models of ${instance.endpoint}, instance ${told.number}`);
}

export function takeTiles(tiles) {
  for (const [id, changes] of Object.entries(tiles)) {
    if (!pending.has(id)) pending.set(id, new Map());
    for (const [target, tile] of Object.entries(changes)) pending.get(id).set(target, tile);
  }
}

// Put what has come since the last frame on the page.
export function drawTiles() {
  for (const [id, changes] of pending) {
    const instance = instances.get(id);
    if (instance) drawInstance(instance, changes);
  }
  pending.clear();
  showCounts();
}

function drawInstance(instance, changes) {
  const added = [];
  for (const [target, told] of changes) {
    const tile = instance.tiles.get(target);
    if (told === null) {
      if (!tile) continue;
      counts[tile.seen.state] -= 1;
      tile.element.remove();
      instance.tiles.delete(target);
    } else if (tile) {
      drawTile(tile, read(told));
    } else {
      added.push(makeTile(instance, target, read(told)));
    }
    changed(instance, target);
  }
  if (added.length) insert(instance, added);
  instance.list.classList.toggle("dense", instance.tiles.size > DENSE_FROM);
  const stops = instance.list.querySelector("button[tabindex='0']");
  if (!stops && instance.list.firstElementChild) instance.list.querySelector("button").tabIndex = 0;
}

function insert(instance, added) {
  const order = new Intl.Collator("en", { numeric: true });
  if (added.length > 8) {
    for (const tile of added) instance.tiles.set(tile.target, tile);
    const sorted = [...instance.tiles.values()].sort((one, other) => order.compare(one.target, other.target));
    instance.list.append(...sorted.map((tile) => tile.element));
    return;
  }
  for (const tile of added) {
    const after = [...instance.list.children].find((one) => order.compare(one.dataset.target, tile.target) > 0);
    instance.list.insertBefore(tile.element, after ?? null);
    instance.tiles.set(tile.target, tile);
  }
}

function makeTile(instance, target, seen) {
  const name = short(target, instance.variant);
  const latency = make("span", { className: "latency" });
  const detail = make("span", { className: "detail" });
  const button = make("button", { type: "button", tabIndex: -1 },
    make("span", { className: "mark" }), make("span", { className: "name", textContent: name, title: name }), latency, detail);
  const element = make("li", { className: "tile" }, button);
  element.dataset.target = target;
  element.dataset.instance = instance.id;
  element.hidden = !matches(name);
  const tile = { target, name, element, button, latency, detail, seen: null };
  drawTile(tile, seen);
  return tile;
}

function drawTile(tile, seen) {
  const before = tile.seen;
  tile.seen = seen;
  if (before?.state !== seen.state) {
    if (before) counts[before.state] -= 1;
    counts[seen.state] += 1;
    tile.element.dataset.state = seen.state;
  }
  const detail = describe(seen);
  write(tile.detail, detail);
  write(tile.latency, seen.warmMs === null ? "" : milliseconds(seen.warmMs));
  tile.element.toggleAttribute("data-trouble", seen.state === "failed");
  const label = `${tile.name}: ${detail}${seen.warmMs === null ? "" : `, warm ${milliseconds(seen.warmMs)}`}`;
  if (tile.button.ariaLabel !== label) tile.button.ariaLabel = label;
}

function describe(seen) {
  const parts = [seen.name];
  if (seen.waiting) parts.push(`${seen.waiting} waiting`);
  if (seen.workers) parts.push(plural(seen.workers, "worker"));
  if (seen.memoryMb !== null) parts.push(megabytes(seen.memoryMb));
  return parts.join(" · ");
}

function showCounts() {
  for (const item of legend.children) write(item.lastElementChild, String(counts[item.dataset.state]));
}

// One tile of an instance is a stop of the Tab key; arrow keys go on from there.
function move(event, list) {
  const shown = [...list.children].filter((tile) => !tile.hidden);
  const here = shown.indexOf(event.target.closest(".tile"));
  const perRow = shown.filter((tile) => tile.offsetTop === shown[0].offsetTop).length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow, Home: -here, End: shown.length - 1 - here };
  const next = event.key in steps ? shown[here + steps[event.key]] : undefined;
  if (!next) return;
  event.preventDefault();
  for (const stop of list.querySelectorAll("button[tabindex='0']")) stop.tabIndex = -1;
  const button = next.querySelector("button");
  button.tabIndex = 0;
  button.focus();
}

const matches = (name) => name.toLowerCase().includes(find.value.trim().toLowerCase());

find.addEventListener("input", () => {
  for (const instance of instances.values()) {
    for (const tile of instance.tiles.values()) tile.element.hidden = !matches(tile.name);
    for (const stop of instance.list.querySelectorAll("button[tabindex='0']")) stop.tabIndex = -1;
    const first = instance.list.querySelector(".tile:not([hidden]) button");
    if (first) first.tabIndex = 0;
  }
});

export function tileOf(element) {
  const item = element.closest?.(".tile");
  const instance = item && instances.get(item.dataset.instance);
  return instance ? { instance, target: item.dataset.target } : null;
}

export const seenOf = (instance, target) => instance.tiles.get(target)?.seen;
