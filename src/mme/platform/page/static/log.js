// What happened, the newest first; read out to who can't see it now and then, and not line by line.

import { make, write } from "./states.js";

const SHOWN = 200;
const ANNOUNCED_AFTER_MS = 4000;

const list = document.getElementById("log");
const announcer = document.getElementById("announcer");
const lines = new Map(); // by number
let pending = [];
let unread = 0;
let timer = null;

export function takeLog(entries) {
  pending.push(...entries);
}

export function forgetLog() {
  list.replaceChildren();
  lines.clear();
  pending = [];
}

export function drawLog() {
  if (!pending.length) return;
  const added = [];
  for (const entry of pending.slice(-SHOWN)) {
    const text = entry.times > 1 ? `${entry.text} (${entry.times} times)` : entry.text;
    const known = lines.get(entry.number);
    if (known) {
      write(known.lastElementChild, text);
      continue;
    }
    const at = new Date(1000 * entry.at);
    const time = make("time", { dateTime: at.toISOString(), textContent: at.toLocaleTimeString("en-GB") });
    const line = make("li", {}, time, make("span", { textContent: text }));
    line.dataset.kind = entry.kind;
    lines.set(entry.number, line);
    added.unshift(line);
  }
  list.prepend(...added);
  for (const number of lines.keys()) {
    if (lines.size <= SHOWN) break;
    lines.get(number).remove();
    lines.delete(number);
  }
  announce(pending.length, pending.at(-1).text);
  pending = [];
}

function announce(count, newest) {
  unread += count;
  timer ??= setTimeout(() => {
    write(announcer, unread > 1 ? `${newest}, and ${unread - 1} more` : newest);
    unread = 0;
    timer = null;
  }, ANNOUNCED_AFTER_MS);
}
