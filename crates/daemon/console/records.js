// What happened, and what is set.

import { change, get } from "./api.js";
import { ask, badge, el, field, keyed, row, table, text } from "./dom.js";
import { clock, kind } from "./format.js";

const SHOWN_MAX = 300;

export function events(main, known) {
  const least = el("select", {}, ...[["info", "All"], ["warn", "Warnings and errors"], ["error", "Errors"]]
    .map(([value, word]) => el("option", { value }, word)));
  const all = table("Events, newest first", ["Time", "Severity", "Node", "Kind", "What happened"]);
  const none = el("p", { class: "quiet" }, "Nothing happened yet.");
  all.node.classList.add("events");
  main.append(el("div", { class: "head" }, el("h1", {}, "Events"), field("Show", least)), el("section", { class: "card" }, all.node, none));
  least.addEventListener("change", () => update());

  function update(what) {
    if (what === "status" || what === "sample") return;
    const ranks = ["info", "warn", "error"];
    const wanted = known.events.filter((event) => ranks.indexOf(event.severity) >= ranks.indexOf(least.value));
    const newest = wanted.slice(-SHOWN_MAX).reverse();
    keyed(all.body, newest, (event) => `${event.node}/${event.number}/${event.time_ms}`, eventRow);
    none.hidden = newest.length > 0;
  }
  return { update };
}

function eventRow(event) {
  const { node, cells } = row([["Time", "number"], ["Severity"], ["Node"], ["Kind"], ["What happened", "long"]]);
  const severity = el("span", {});
  badge(severity, event.severity, kind(event.severity));
  text(cells[0], clock(event.time_ms));
  cells[1].append(severity);
  text(cells[2], event.node);
  text(cells[3], event.kind);
  text(cells[4], event.text);
  return { node, update: () => {} };
}

export function settings(main, known) {
  const all = table("Settings", ["Setting", "Value", "Default", "Range", "Meaning", ""]);
  main.append(el("h1", {}, "Settings"), el("section", { class: "card" }, all.node));

  async function draw() {
    const found = await get("/settings").catch(() => null);
    if (found) keyed(all.body, found.settings, (setting) => setting.name, () => settingRow(known, draw));
  }
  draw();
  return { update: () => {} };
}

function settingRow(known, done) {
  const { node, cells } = row([["Setting", "number"], ["Value", "number"], ["Default", "number"], ["Range", "number"], ["Meaning", "long"], ["", "buttons"]]);
  let told = null;
  if (known.role !== "reader") cells[5].append(el("button", { click: () => set(told, done) }, "Change"));
  return { node, update: (setting) => {
    told = setting;
    text(cells[0], setting.name);
    text(cells[1], setting.value);
    cells[1].style.fontWeight = setting.value === setting.default ? "" : "700";
    text(cells[2], setting.default);
    text(cells[3], `${setting.least} – ${setting.most}`);
    text(cells[4], setting.help);
    cells[5].firstChild?.setAttribute("aria-label", `Change ${setting.name}`);
  } };
}

function set(setting, done) {
  const value = el("input", { required: true, value: setting.value, autocomplete: "off" });
  ask({ title: `Change ${setting.name}`, button: "Change",
    fields: [el("p", {}, setting.help), field("Value", value, `${setting.least} to ${setting.most}; default ${setting.default}.`)],
    act: async () => {
      await change("PUT", `/settings/${encodeURIComponent(setting.name)}`, { value: value.value });
      await done();
      return `${setting.name} is ${value.value}`;
    } });
}
