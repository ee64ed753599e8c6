// Endpoints, instances and the tiles of their models: made once, then changed where an event says so.

import { STATES, make, megabytes, milliseconds, plural, read, write } from "./states.js";

const DENSE_FROM = 60; // models on an instance; more are shown small

const fleet = document.getElementById("fleet");
const find = document.getElementById("find");
const legend = document.getElementById("legend");
const instances = new Map(); // by id: what is known of it, and its elements
const counts = Object.fromEntries(Object.keys(STATES).map((state) => [state, 0]));
const pending = new Map(); // instance id -> target -> tile, until the next frame
let shownPlan = "[]";
let changed = () => {};

for (const [state, name] of Object.entries(STATES)) {
  const button = make("button", { type: "button", title: `show those ${name}` },
    make("span", { className: "mark" }), `${name} `, make("b", { textContent: "0" }));
  button.dataset.state = state;
  button.addEventListener("click", () => look(find.value === name ? "" : name));
  legend.append(make("li", {}, button));
}

// Calls back after tiles were changed.
export function onChange(callback) {
  changed = callback;
}

const short = (target, variant) => (target === "" ? variant.model : target.replace(/\.tar\.gz$/, ""));

export function showFleet(endpoints) {
  const variants = endpoints.flatMap(({ name, variants }) =>
    variants.map((variant) => ({ endpoint: name, variant, isOne: variants.length === 1 })));
  for (const { endpoint, variant, isOne } of variants) {
    for (const told of variant.instances) {
      const place = [endpoint, ...(isOne ? [] : [variant.name]), `instance ${told.number}`].join(", ");
      const instance = instances.get(told.id) ?? makeInstance(told.id, place);
      Object.assign(instance, { endpoint, variant, number: told.number });
      showInstance(instance, told);
    }
  }
  const plan = JSON.stringify(variants.map(({ endpoint, variant }) =>
    [endpoint, variant.name, variant.instance_type, variant.weight, variant.instances.map(({ id }) => id)]));
  if (plan !== shownPlan) arrange(variants);
  shownPlan = plan;
}

// Lay out the endpoints anew, with the instances that are there already.
function arrange(variants) {
  const kept = new Set(variants.flatMap(({ variant }) => variant.instances.map(({ id }) => id)));
  for (const [id, instance] of instances) {
    if (kept.has(id)) continue;
    for (const tile of instance.tiles.values()) counts[tile.seen.state] -= 1;
    instances.delete(id);
  }
  const focused = document.activeElement;
  fleet.replaceChildren(...variants.map(({ endpoint, variant, isOne }) => {
    const about = [variant.name, variant.instance_type, ...(isOne ? [] : [`weight ${variant.weight}`])].join(" · ");
    return make("div", { className: "endpoint" },
      make("h3", { textContent: endpoint }, make("span", { textContent: about })),
      ...variant.instances.map(({ id }) => instances.get(id).element));
  }));
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  document.getElementById("nothing").hidden = variants.length > 0;
  showCounts();
  changed();
}

function makeInstance(id, name) {
  const title = make("h4");
  const meter = make("meter", { ariaLabel: `memory of ${name}` });
  const gauge = make("span");
  const disk = make("span");
  const list = make("ul", { className: "tiles", ariaLabel: `models of ${name}` });
  const facts = make("div", { className: "facts" }, title, make("span", { className: "gauge" }, meter, gauge), disk);
  const element = make("div", { className: "instance" }, facts, list);
  const instance = { id, title, meter, gauge, disk, list, element, tiles: new Map() };
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
  const max = told.budget_mb;
  Object.assign(instance.meter, { min: 0, max, high: 0.9 * max, optimum: 0, value: told.used_mb ?? 0 });
  write(instance.disk, `${megabytes(told.disk_mb)} on disk`);
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
  if (!pending.size) return;
  pending.clear();
  showCounts();
  changed();
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
  }
  if (added.length) insert(instance, added);
  instance.list.classList.toggle("dense", instance.tiles.size > DENSE_FROM);
  if (!instance.list.querySelector(".tile:not([hidden]) button[tabindex='0']")) setStop(instance.list);
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
  const latency = make("span", { className: "latency", title: "a warm call, median" });
  const detail = make("span", { className: "detail" });
  const button = make("button", { type: "button", tabIndex: -1 },
    make("span", { className: "mark" }), make("span", { className: "name", textContent: name, title: name }),
    latency, detail);
  const element = make("li", { className: "tile" }, button);
  element.dataset.target = target;
  element.dataset.instance = instance.id;
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
    tile.element.hidden = !matches(tile);
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
  if (seen.waiting > 1) parts.push(`${seen.waiting} calls`);
  if (seen.workers > 1) parts.push(plural(seen.workers, "worker"));
  if (seen.memoryMb !== null) parts.push(megabytes(seen.memoryMb));
  return parts.join(" · ");
}

function showCounts() {
  for (const button of legend.querySelectorAll("button")) {
    write(button.lastElementChild, String(counts[button.dataset.state]));
  }
}

// One tile of an instance is a stop of the Tab key; arrow keys go on from there.
function setStop(list, next = list.querySelector(".tile:not([hidden]) button")) {
  for (const stop of list.querySelectorAll("button[tabindex='0']")) stop.tabIndex = -1;
  if (next) next.tabIndex = 0;
}

function move(event, list) {
  const shown = [...list.children].filter((tile) => !tile.hidden);
  const here = shown.indexOf(event.target.closest(".tile"));
  const perRow = shown.filter((tile) => tile.offsetTop === shown[0].offsetTop).length;
  const steps = {
    ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow, Home: -here, End: shown.length - 1 - here,
  };
  const next = event.key in steps ? shown[here + steps[event.key]] : undefined;
  if (!next) return;
  event.preventDefault();
  const button = next.querySelector("button");
  setStop(list, button);
  button.focus();
}

// By its name, or by where it is.
function matches(tile) {
  const wanted = find.value.trim().toLowerCase();
  const { state } = tile.seen;
  const places = [STATES[state], state === "answering" ? STATES.memory : ""];
  return tile.name.toLowerCase().includes(wanted) || places.some((place) => place.toLowerCase() === wanted);
}

function look(text) {
  find.value = text;
  for (const button of legend.querySelectorAll("button")) {
    button.ariaPressed = String(STATES[button.dataset.state] === text);
  }
  for (const instance of instances.values()) {
    for (const tile of instance.tiles.values()) tile.element.hidden = !matches(tile);
    setStop(instance.list);
  }
}

find.addEventListener("input", () => look(find.value));
look("");

export function placeOf(element) {
  const item = element.closest?.(".tile");
  const instance = item && instances.get(item.dataset.instance);
  if (!instance) return undefined;
  const { endpoint, variant, number } = instance;
  return { endpoint, variant: variant.name, instance: number, target: item.dataset.target };
}

const instanceAt = (place) => [...instances.values()].find((one) =>
  one.endpoint === place.endpoint && one.variant.name === place.variant && one.number === place.instance);

export const nameOf = (place) => short(place.target, instanceAt(place).variant);

export const seenAt = (place) => instanceAt(place)?.tiles.get(place.target)?.seen;
