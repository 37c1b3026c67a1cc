// Volumes: make, look at, enlarge, move, delete.

import { change, get } from "./api.js";
import { ask, badge, el, field, keyed, row, table, text } from "./dom.js";
import { bytes, count, kind, parseSize, plural, rebuilds, span } from "./format.js";

const EXPLAIN_EVERY_MS = 2000;

export function volumes(main, known) {
  const reader = known.role === "reader";
  const make = el("button", { class: "main", click: () => create(known) }, "Create a volume");
  const all = table("Volumes", ["Volume", "Size", "Copies", "Health", "Owner", "Guests", "Requests/s", "Rebuild", ""]);
  const none = el("p", { class: "quiet" }, "There are no volumes yet.");
  const detail = el("section", { class: "card", hidden: true, "aria-live": "off" });
  main.append(el("div", { class: "head" }, el("h1", {}, "Volumes"), reader ? null : make),
    el("section", { class: "card" }, all.node, none), detail);
  let shown = null;

  const actions = (volume) => [
    ["Explain", () => explain(volume().name), false],
    ...(reader ? [] : [["Resize", () => resize(volume()), false], ["Move", () => move(volume(), known), false],
      ["Delete", () => remove(volume()), true]]),
  ];

  function update(what) {
    if (!known.status || what === "sample" || what === "event") return;
    keyed(all.body, known.status.volumes, (volume) => volume.id, () => volumeRow(actions));
    none.hidden = known.status.volumes.length > 0;
    all.node.hidden = !none.hidden;
  }

  async function explain(name) {
    shown = name;
    await draw();
    detail.scrollIntoView({ block: "nearest" });
    detail.querySelector("h2")?.focus();
  }

  async function draw() {
    if (!shown) return;
    const found = await get(`/volumes/${encodeURIComponent(shown)}/explain`).catch((error) => error);
    if (found instanceof Error) {
      detail.hidden = true;
      shown = null;
      return;
    }
    const focused = detail.contains(document.activeElement);
    detail.hidden = false;
    detail.replaceChildren(...explained(found, () => {
      detail.hidden = true;
      shown = null;
      all.body.querySelector("button")?.focus();
    }));
    if (focused) detail.querySelector("h2").focus({ preventScroll: true });
  }

  const timer = setInterval(draw, EXPLAIN_EVERY_MS);
  return { update, leave: () => clearInterval(timer) };
}

function volumeRow(actions) {
  const { node, cells } = row([["Volume"], ["Size", "number"], ["Copies", "number"], ["Health"], ["Owner"], ["Guests", "number"], ["Requests/s", "number"], ["Rebuild"], ["", "buttons"]]);
  const health = el("span", {});
  cells[3].append(health);
  let told = null;
  let before = null;
  for (const [word, act, danger] of actions(() => told)) {
    cells[8].append(el("button", { click: act, class: danger ? "danger" : null }, word));
  }
  return { node, update: (volume) => {
    told = volume;
    for (const button of cells[8].children) button.setAttribute("aria-label", `${button.textContent} ${volume.name}`);
    text(cells[0], volume.name);
    text(cells[1], bytes(volume.size_bytes));
    text(cells[2], volume.rf);
    const word = volume.state === "ready" ? volume.health : volume.state;
    badge(health, word, kind(word));
    health.title = volume.reasons.join("\n");
    text(cells[4], volume.owner?.name ?? "nobody");
    text(cells[5], volume.guests);
    const now = { at: performance.now(), done: (volume.traffic?.reads ?? 0) + (volume.traffic?.writes ?? 0) };
    if (!before || now.at - before.at > 500) {
      const per = before ? Math.max(0, now.done - before.done) / ((now.at - before.at) / 1000) : 0;
      text(cells[6], count(Math.round(per)));
      before = now;
    }
    const rebuild = volume.rebuild;
    text(cells[7], !rebuilds(volume) ? "" : rebuild.eta_ms === null ? `${bytes(rebuild.remaining_bytes)}, waiting`
      : `${bytes(rebuild.remaining_bytes)}, ${span(rebuild.eta_ms)}`);
  } };
}

function explained({ volume, safety, copying }, close) {
  const list = (words) => el("ul", { class: "plain" }, ...words.map((word) => el("li", {}, word)));
  const copies = copying.filter((one) => !one.waiting).map((one) =>
    `segment ${one.segment}: from ${one.from.node ? `node ${one.from.node}, disk ${one.from.disk}` : "a copy"} ` +
    `to node ${one.to.node}, disk ${one.to.disk}, ${Math.floor((100 * one.copied_bytes) / Math.max(1, one.total_bytes))} %`);
  const waiting = copying.length - copies.length;
  if (waiting) copies.push(`${plural(waiting, "segment")} wait for their turn`);
  if (!copying.length) copies.push("Nothing is being copied.");
  const rebuild = volume.rebuild;
  if (rebuild.eta_ms) copies.unshift(`${bytes(rebuild.remaining_bytes)} left, ${bytes(rebuild.bytes_per_s)} per second, done in ${span(rebuild.eta_ms)}`);
  const survives = `Survives the loss of any one node: ${safety.survives_any_node ? "yes" : "NO"}; of any one disk: ${safety.survives_any_disk ? "yes" : "NO"}.`;
  return [
    el("div", { class: "head" }, el("h2", { tabindex: "-1" }, `${volume.name}: ${volume.health}`), el("button", { click: close }, "Close")),
    list(volume.reasons.length ? volume.reasons : ["All copies are there."]),
    el("h2", {}, "Copies under way"), list(copies),
    el("h2", {}, "What one loss would cost now"), list([survives, ...safety.why]),
  ];
}

function create() {
  const name = el("input", { required: true, autocomplete: "off", spellcheck: "false" });
  const size = el("input", { required: true, value: "1GiB", autocomplete: "off" });
  const copies = el("select", {}, ...[2, 3, 1].map((rf) => el("option", { value: rf }, String(rf))));
  ask({ title: "Create a volume", button: "Create",
    fields: [field("Name", name), field("Size", size, "With KiB, MiB, GiB or TiB; thin, and it can grow."), field("Copies of each block", copies)],
    act: async () => {
      await change("POST", "/volumes", { name: name.value, size_bytes: parseSize(size.value), rf: Number(copies.value) });
      return `${name.value} is made`;
    } });
}

function resize(volume) {
  const size = el("input", { required: true, value: `${volume.size_bytes / 2 ** 20}MiB` });
  ask({ title: `Resize ${volume.name}`, button: "Resize", fields: [field("New size", size, "A volume only grows.")],
    act: async () => {
      await change("PATCH", `/volumes/${encodeURIComponent(volume.name)}`, { size_bytes: parseSize(size.value) });
      return `${volume.name} is resized`;
    } });
}

function move(volume, known) {
  const others = known.status.nodes.filter((node) => node.id !== volume.owner?.node && node.state === "up");
  const to = el("select", { required: true }, ...others.map((node) => el("option", { value: node.id }, node.name)));
  ask({ title: `Move ${volume.name}`, button: "Move", fields: [field("New owner", to, "Guests go on; its copies stay where they are.")],
    act: async () => {
      await change("POST", `/volumes/${encodeURIComponent(volume.name)}/move`, { to: to.value });
      return `${volume.name} moves`;
    } });
}

function remove(volume) {
  const typed = el("input", { required: true, autocomplete: "off", spellcheck: "false" });
  const force = el("input", { type: "checkbox" });
  const tick = volume.guests ? el("label", { class: "tick" }, force, `Also while ${plural(volume.guests, "guest")} use it`) : null;
  ask({ title: `Delete ${volume.name}`, button: "Delete", danger: true,
    fields: [el("p", {}, `All ${bytes(volume.size_bytes)} of it go, with all copies.`), field(`Type ${volume.name} to confirm`, typed), tick ?? ""],
    act: async () => {
      if (typed.value !== volume.name) throw new Error(`type ${volume.name}, the name of what goes`);
      await change("DELETE", `/volumes/${encodeURIComponent(volume.name)}`, { force: force.checked });
      return `${volume.name} is deleted`;
    } });
}
