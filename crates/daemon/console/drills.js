// Drills: run some, watch them, end them, and compare with what earlier ones found.

import { change, get } from "./api.js";
import { ask, el, field, keyed, row, table, text } from "./dom.js";
import { bytes, clock, span } from "./format.js";

const LOOK_EVERY_MS = 1000;
const HARMS = [["kill", "Kill each node"], ["freeze", "Freeze each node"], ["slow", "Slow each node down"]];
const HEADS = ["Drill", "RTO", "RPO", "Longest stall", "Rebuild", "Copied"];

export function drills(main, known) {
  const run = el("button", { class: "main", click: () => start(draw) }, "Run drills");
  const end = el("button", { class: "danger", hidden: true, click: () => stop(draw) }, "Stop the drills");
  const now = el("p", { class: "big", role: "status" });
  const found = table("What the drills that run found", HEADS);
  const none = el("p", { class: "quiet" }, "No drill was run here yet.");
  const rounds = el("div", {});
  main.append(
    el("div", { class: "head" }, el("h1", {}, "Drills"), ...(known.role === "reader" ? [] : [end, run])),
    el("section", { class: "card", "aria-label": "Now" }, el("h2", {}, "Now"), now, found.node),
    el("section", { class: "card", "aria-label": "Earlier" }, el("h2", {}, "Earlier, newest first"), none, rounds));

  let asking = false;

  /** The node that this page comes from may be the one that is hurt: then it answers late. */
  async function draw() {
    if (asking) return;
    asking = true;
    const told = await get("/drills").catch(() => null);
    asking = false;
    if (!told) return;
    const { possible, running, kept } = told;
    run.disabled = !possible || running !== null;
    end.hidden = running === null;
    text(now, !possible ? "Drills are for a cluster of gabion up." : running ? running.doing : "No drill runs.");
    found.node.hidden = !running?.drills.length;
    keyed(found.body, running?.drills ?? [], (drill) => `${drill.harm}/${drill.node}`, drillRow);
    keyed(rounds, kept, (round) => round.time_ms, roundOf);
    none.hidden = kept.length > 0;
  }
  draw();
  const timer = setInterval(draw, LOOK_EVERY_MS);
  return { update: () => {}, leave: () => clearInterval(timer) };
}

function drillRow(drill) {
  const { node, cells } = row([["Drill"], ["RTO", "number"], ["RPO"], ["Longest stall", "number"], ["Rebuild", "number"], ["Copied", "number"]]);
  text(cells[0], `${drill.harm} node ${drill.node}${drill.roles ? ` (${drill.roles})` : ""}`);
  text(cells[1], drill.rto_ms ? span(drill.rto_ms) : "not noticed");
  text(cells[2], drill.rpo_writes_lost ? `LOST: ${drill.lost.join("; ")}` : "0, verified");
  text(cells[3], span(drill.longest_stall_ms));
  text(cells[4], span(drill.rebuild_ms));
  text(cells[5], bytes(drill.copied_bytes));
  return { node, update: () => {} };
}

/** The worst of it in a line; each drill below. */
function roundOf({ time_ms, drills: all }) {
  const worst = (name) => Math.max(0, ...all.map((drill) => drill[name]));
  const lost = all.reduce((sum, drill) => sum + drill.rpo_writes_lost, 0);
  const each = table(`Drills of ${clock(time_ms)}`, HEADS);
  keyed(each.body, all, (drill) => `${drill.harm}/${drill.node}`, drillRow);
  const line = `${clock(time_ms)}: ${all.length} drills, ${lost ? `${lost} WRITES LOST` : "nothing lost"}, ` +
    `worst RTO ${span(worst("rto_ms"))}, longest rebuild ${span(worst("rebuild_ms"))}`;
  return { node: el("details", {}, el("summary", {}, line), each.node), update: () => {} };
}

function start(done) {
  const harms = HARMS.map(([name, words]) => [name, el("input", { type: "checkbox", checked: true }), words]);
  const seconds = el("input", { type: "number", min: "1", max: "3600", value: "6", required: true });
  const every = el("input", { type: "number", min: "0.1", max: "744", step: "0.1", placeholder: "once" });
  const between = el("input", { value: "00:00-24:00", required: true, autocomplete: "off" });
  const weekdays = el("input", { type: "checkbox" });
  ask({ title: "Run drills", button: "Run",
    fields: [
      el("p", {}, "One node at a time is hurt, while guests write to a volume made for it; what they wrote is read back after each."),
      ...harms.map(([, tick, words]) => el("label", { class: "tick" }, tick, words)),
      field("Seconds that a node is away, frozen or slow", seconds),
      field("Again every so many hours", every, "Empty: once."),
      field("Begin only between", between, "By the clock of the machine, such as 09:00-17:00."),
      el("label", { class: "tick" }, weekdays, "Only from Monday to Friday"),
    ],
    act: async () => {
      const only = harms.filter(([, tick]) => tick.checked).map(([name]) => name);
      await change("POST", "/drills", { only, for_ms: Number(seconds.value) * 1000,
        every_ms: every.value ? Math.round(Number(every.value) * 3600000) : null,
        between: between.value, weekdays: weekdays.checked });
      await done();
      return "the drills run";
    } });
}

function stop(done) {
  ask({ title: "Stop the drills", button: "Stop", danger: true,
    fields: [el("p", {}, "The node that is hurt just now is made well again; what was found until now is not kept.")],
    act: async () => {
      await change("POST", "/drills/stop");
      await done();
      return "the drills are stopped";
    } });
}
