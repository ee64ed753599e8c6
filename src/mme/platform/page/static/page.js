// Follows the platform's events, and draws what they change at most once a frame.

import { drawChart, rate, takeSeconds } from "./chart.js";
import { drawTiles, showFleet, takeTiles } from "./fleet.js";
import { drawLog, forgetLog, takeLog } from "./log.js";
import { milliseconds, share, write } from "./states.js";
import "./model.js";

const AGAIN_MS = 3000; // between two attempts to follow a platform that refuses

const connection = document.getElementById("connection");
const total = (name) => document.querySelector(`[data-total="${name}"]`);
let secret = ""; // what the keys of this home's starts are made from
let entered = ""; // the nonce of the start that was entered last
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
    if (source.readyState === EventSource.CLOSED) refused();
    else say("The platform does not answer; mme up starts it", true);
  });
}

// The stream was refused: by the platform's next start, whose key is another one, or because too many pages are open.
async function refused() {
  try {
    if (await enter()) return connect();
    const answer = await fetch("/events");
    if (answer.ok) {
      await answer.body.cancel();
      return connect();
    }
    say((await answer.json()).message, true);
  } catch {
    say("The platform does not answer; mme up starts it", true);
  }
  setTimeout(connect, AGAIN_MS);
}

// Make the key of the platform's present start from its nonce and our secret, and come in with it.
async function enter() {
  const { nonce } = await (await fetch("/start")).json();
  if (nonce === entered || !secret) return false;
  entered = nonce;
  const encoder = new TextEncoder();
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const hmac = await crypto.subtle.importKey("raw", encoder.encode(secret), algorithm, false, ["sign"]);
  const digest = await crypto.subtle.sign("HMAC", hmac, encoder.encode(`${location.port} ${nonce}`));
  const key = [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("").slice(0, 32);
  return (await fetch(`/?key=${key}`)).ok;
}

function take(told, isWhole) {
  if (isWhole) { // what was shown before the connection broke
    showFleet([]);
    forgetLog();
  }
  secret = told.secret ?? secret;
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
  write(total("hits"), share(totals.hits, totals.calls - totals.failed));
  for (const name of ["cold_ms", "warm_ms"]) write(total(name), milliseconds(totals[name]));
  for (const name of ["evictions", "failed"]) write(total(name), totals[name].toLocaleString("en"));
}

function say(text, isLost = false) {
  write(connection, text);
  connection.toggleAttribute("data-lost", isLost);
}

connect();
