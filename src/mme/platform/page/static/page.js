// Follows the platform's events, and draws what they change at most once a frame.

import { drawChart, rate, takeSeconds } from "./chart.js";
import { drawTiles, showFleet, takeTiles } from "./fleet.js";
import { drawLog, takeLog } from "./log.js";
import { milliseconds, write } from "./states.js";
import "./model.js";

const connection = document.getElementById("connection");
const total = (name) => document.querySelector(`[data-total="${name}"]`);
let now = 0;
let totals = null;
let isDrawn = true;

function connect() {
  const source = new EventSource("/events");
  let isFirst = true;
  source.addEventListener("open", () => { isFirst = true; });
  source.addEventListener("message", (event) => {
    take(JSON.parse(event.data), isFirst);
    isFirst = false;
    say("Live");
  });
  source.addEventListener("error", () => {
    const isOver = source.readyState === EventSource.CLOSED;
    say(isOver ? "The platform has ended; mme up starts it, mme open shows it" : "The platform does not answer", true);
  });
}

function take(told, isWhole) {
  if (isWhole) showFleet([]); // what was shown before the connection broke
  if (told.fleet) showFleet(told.fleet);
  if (told.tiles) takeTiles(told.tiles);
  if (told.log) takeLog(told.log);
  if (told.seconds) takeSeconds(told.seconds);
  totals = told.totals ?? totals;
  now = told.now ?? now;
  if (isDrawn) {
    isDrawn = false;
    requestAnimationFrame(draw);
  }
}

function draw() {
  isDrawn = true;
  drawTiles();
  drawLog();
  drawChart(now);
  write(total("rate"), String(rate(now)));
  if (!totals) return;
  const served = totals.calls - totals.failed;
  write(total("hits"), served ? `${Math.round((100 * totals.hits) / served)} %` : "–");
  for (const name of ["cold_ms", "warm_ms"]) write(total(name), milliseconds(totals[name]));
  for (const name of ["evictions", "failed"]) write(total(name), totals[name].toLocaleString("en"));
}

function say(text, isLost = false) {
  write(connection, text);
  connection.toggleAttribute("data-lost", isLost);
}

connect();
