// Calls a second over the last two minutes, drawn by uPlot.

const SECONDS = 120;
const place = document.getElementById("chart");
const counts = new Map(); // second -> [warm, cold, failed]
let plot = null;

export function takeSeconds(seconds) {
  for (const [second, ...values] of seconds) counts.set(second, values);
}

// The calls of the last whole second.
export const rate = (now) => (counts.get(now - 1) ?? [0]).reduce((sum, value) => sum + value, 0);

export function drawChart(now) {
  for (const second of counts.keys()) if (second < now - SECONDS) counts.delete(second);
  const times = Array.from({ length: SECONDS }, (_, index) => now - SECONDS + index);
  const data = [times, ...[0, 1, 2].map((kind) => line(times.map((second) => counts.get(second)?.[kind] ?? 0), kind))];
  plot ??= makePlot();
  plot.setData(data);
}

// Cold and failed calls are drawn only around the seconds that had any, so that they don't cover the base line.
const line = (values, kind) =>
  kind === 0 ? values : values.map((value, at) => (value || values[at - 1] || values[at + 1] ? value : null));

function makePlot() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = {
    stroke: color("--soft"), font: "11px Inter, system-ui",
    grid: { stroke: color("--line"), width: 1 }, ticks: { show: false },
  };
  return new uPlot({
    width: place.clientWidth,
    height: place.clientHeight,
    legend: { show: false },
    cursor: { show: false },
    scales: { y: { range: (_, low, high) => [0, Math.max(4, high * 1.1)] } },
    axes: [
      { ...axis, grid: { show: false }, size: 22, space: 90, values: (_, ticks) => ticks.map(clock) },
      { ...axis, size: 34, space: 32, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
    ],
    series: [
      {},
      { stroke: color("--memory"), width: 2, points: { show: false } },
      { stroke: color("--answering"), width: 2, dash: [6, 4], points: { show: false } },
      { stroke: color("--failed"), width: 3, dash: [2, 4], points: { show: false } },
    ],
  }, [[], [], [], []], place);
}

const clock = (second) => new Date(1000 * second).toLocaleTimeString("en-GB");

function anew() {
  plot?.destroy();
  plot = null;
}

new ResizeObserver(() => plot?.setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", anew);
