// Which page is shown, and what all pages share: who looks, and what the node tells.

import { get, live, token, Unknown } from "./api.js";
import { badge, el, field, say, text } from "./dom.js";
import { kind } from "./format.js";
import { overview } from "./overview.js";
import { nodes } from "./nodes.js";
import { volumes } from "./volumes.js";
import { events, settings } from "./records.js";
import { drills } from "./drills.js";

const EVENTS_MAX = 1000;

/** What is known. `listeners` of the page that is shown hear what changes. */
export const known = { status: null, samples: [], events: [], role: "reader", node: null };

const PAGES = { overview, nodes, volumes, events, settings, drills };
let page = null;

function show() {
  const name = location.hash.slice(1).split("/")[0];
  if (name === "main") return;
  const make = PAGES[name] ?? overview;
  for (const link of document.querySelectorAll("nav a")) {
    const current = link.getAttribute("href") === `#${PAGES[name] ? name : "overview"}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  page?.leave?.();
  const main = document.getElementById("main");
  main.replaceChildren();
  page = make(main, known);
  page.update();
  document.title = `${main.querySelector("h1")?.textContent ?? "Overview"} · Gabion`;
}

function tell(name, value) {
  if (name === "status") {
    const before = known.status?.health;
    known.status = value;
    badge(document.getElementById("health"), value.health, kind(value.health));
    if (before && before !== value.health) say(`the cluster is ${value.health}`);
    foot(value);
  } else if (name === "sample") {
    known.samples.push(value);
    if (known.samples.length > 720) known.samples.shift();
  } else if (name === "event") {
    note(value);
  }
  page?.update(name);
}

function note(event) {
  const same = (other) => other.node === event.node && other.number === event.number && other.time_ms === event.time_ms;
  if (known.events.some(same)) return;
  known.events.push(event);
  known.events.sort((a, b) => a.time_ms - b.time_ms);
  if (known.events.length > EVENTS_MAX) known.events.shift();
}

function foot(status) {
  text(document.getElementById("foot"),
    `Cluster ${status.cluster_id}, told by node ${status.answered_by}; ` +
    (status.leader ? `node ${status.leader} leads.` : "nobody leads.") +
    (known.role === "reader" ? " You may read only." : ""));
}

function state(why) {
  const node = document.getElementById("live");
  if (why instanceof Unknown) return login(why.message);
  text(node, why ?? "live");
  if (why) badge(document.getElementById("health"), "unknown", "unknown");
}

function login(why) {
  page = null;
  const input = el("input", { type: "password", autocomplete: "current-password", required: true });
  const form = el("form", {}, el("h1", {}, "Log in"), field("Token", input, "As in the node's configuration, under [http]."),
    el("p", { class: "wrong", role: "alert" }, token.get() ? why : ""),
    el("button", { class: "main", type: "submit" }, "Log in"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    token.set(input.value);
    start();
  });
  badge(document.getElementById("health"), "locked", "unknown");
  document.getElementById("main").replaceChildren(el("div", { class: "card" }, form));
  input.focus();
}

/** What was there before this page; then what happens. */
async function start() {
  try {
    const session = await get("/session");
    Object.assign(known, { role: session.role, node: session.node });
    const [status, history, past] = await Promise.all([get("/status"), get("/history"), get("/events")]);
    known.samples = history.samples;
    known.events = past.events;
    tell("status", status);
    show();
  } catch (error) {
    if (error instanceof Unknown) return login(error.message);
    state(error.message);
    setTimeout(start, 1000);
    return;
  }
  live(tell, state);
}

addEventListener("hashchange", () => {
  show();
  document.getElementById("main").focus();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
start();
