// Where a model is: what the page calls it, by the state that an event names.

export const STATES = {
  s3: "S3 only",
  disk: "on disk",
  loading: "loading",
  memory: "in memory",
  answering: "answering",
  failed: "failed",
};

const SHOWN_AS = { downloading: "loading", unloading: "loading" };
const NAMES = { downloading: "downloading", unloading: "leaving memory" };

// A tile as it comes in an event, by name.
export function read(tile) {
  const [state, waiting, workers, memoryMb, calls, hits, evictions, coldMs, warmMs, trouble] = tile;
  const shown = SHOWN_AS[state] ?? state;
  const isFailed = trouble && (shown === "s3" || shown === "disk");
  return {
    state: isFailed ? "failed" : shown,
    name: isFailed ? `failed, ${STATES[shown]}` : (NAMES[state] ?? STATES[shown]),
    waiting, workers, memoryMb, calls, hits, evictions, coldMs, warmMs, trouble,
  };
}

export const plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

export const share = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–");

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

export function megabytes(mb) {
  if (mb === null || mb === undefined) return "–";
  if (mb > 0 && mb < 0.1) return `${Math.round(1024 * mb)} KB`;
  return mb < 10 ? `${mb.toFixed(1)} MB` : `${Math.round(mb)} MB`;
}

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Write a text only where it is another one, so that nothing is laid out anew for nothing.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
