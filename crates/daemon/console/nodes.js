// Nodes, disks, and where the copies of all segments are.

import { get } from "./api.js";
import { badge, el, keyed, row, table, text } from "./dom.js";
import { bytes, kind, plural, span } from "./format.js";

const MAP_EVERY_MS = 2000;

export function nodes(main, known) {
  const all = table("Nodes", ["Node", "State", "Since", "Breakers of peers", "Vote", "Guests", "Volumes owned", "API", "NBD"]);
  const disks = table("Disks", ["Disk", "Node", "State", "Used", "Size", "Space", "Copies", "Corrupt blocks", "Breaker"]);
  const map = el("div", {});
  const left = el("p", { class: "quiet" });
  main.append(el("h1", {}, "Nodes and disks"),
    el("section", { class: "card" }, el("h2", {}, "Nodes"), all.node),
    el("section", { class: "card" }, el("h2", {}, "Disks"), disks.node),
    el("section", { class: "card" }, el("h2", {}, "Map of segments"),
      el("p", { class: "map key quiet" }, ...[["s", "in sync"], ["l", "in sync, and alone"], ["j", "being filled"], ["t", "left behind"]]
        .map(([letter, word]) => el("span", {}, el("i", { class: letter, "aria-hidden": "true" }), word))),
      map, left));

  function update(what) {
    if (!known.status || what === "sample" || what === "event") return;
    const { nodes: told, volumes } = known.status;
    keyed(all.body, told, (node) => node.id, () => nodeRow(known));
    for (const entry of all.body.kept.values()) entry.owned(known.status.volumes);
    const flat = told.flatMap((node) => node.disks.map((disk) => ({ ...disk, on: node.name })));
    keyed(disks.body, flat, (disk) => disk.id, diskRow);
  }

  async function draw() {
    const found = await get("/segments").catch(() => null);
    if (!found || !known.status) return;
    const flat = known.status.nodes.flatMap((node) => node.disks.map((disk) => ({ ...disk, on: node.name })));
    keyed(map, flat, (disk) => disk.id, mapLine);
    for (const [id, line] of map.kept) line.draw(cellsOf(found.volumes, Number(id)));
    text(left, found.left_out ? `${plural(found.left_out, "segment")} more are not drawn.` : "");
  }

  draw();
  const timer = setInterval(draw, MAP_EVERY_MS);
  return { update, leave: () => clearInterval(timer) };
}

function nodeRow(known) {
  const { node, cells } = row([["Node"], ["State"], ["Since", "number"], ["Breakers of peers"], ["Vote"], ["Guests", "number"], ["Volumes owned"], ["API"], ["NBD"]]);
  const state = el("span", {});
  const peers = breakerIn(cells[3]);
  cells[1].append(state);
  let id = null;
  return { node, update: (told) => {
    id = told.id;
    text(cells[0], told.name);
    badge(state, told.reachable || told.state !== "up" ? told.state : "does not answer", told.reachable ? kind(told.state) : "warn");
    text(cells[2], span(told.since_ms));
    peers(peersOf(told, known.status.nodes));
    text(cells[4], told.leader ? "leads" : told.voter ? "votes" : "no");
    text(cells[5], told.guests);
    text(cells[7], told.api);
    text(cells[8], told.nbd);
  }, owned: (volumes) => {
    const names = volumes.filter((volume) => volume.owner?.node === id).map((volume) => volume.name);
    text(cells[6], names.length > 6 ? plural(names.length, "volume") : names.join(", "));
  } };
}

/** The worst state of what is not closed, and how good it is. */
const worst = (breakers) => breakers.some((breaker) => breaker.state === "open") ? ["open", "bad"] : ["half-open", "warn"];

/** Since when and why a breaker is not closed. */
const reason = (breaker) => `${breaker.state.replace("_", "-")} for ${span(breaker.lasts_ms)}, ${breaker.why}`;

/** Whether a node asks its peers: a word, how good that is, and why not. */
function peersOf(told, nodes) {
  if (!told.peers.length) return told.reachable ? ["none", "good", ""] : ["?", "unknown", ""];
  const apart = told.peers.filter((peer) => peer.breaker && peer.breaker.state !== "closed");
  if (!apart.length) return ["closed", "good", ""];
  const name = (id) => nodes.find((node) => node.id === id)?.name ?? id;
  const why = apart.map((peer) => `${name(peer.node)}: ${reason(peer.breaker)}`);
  return [...worst(apart.map((peer) => peer.breaker)), why.join("; ")];
}

/** Whether a disk is used by its node, and by the owners of volumes. */
function breakerOf(disk) {
  if (!disk.breaker) return ["?", "unknown", ""];
  const all = [["its node", disk.breaker], ...disk.doubted.map((doubt) => [doubt.volume, doubt.breaker])];
  const apart = all.filter(([, breaker]) => breaker && breaker.state !== "closed");
  if (!apart.length) return ["closed", "good", ""];
  const why = apart.map(([who, breaker]) => `${who}: ${reason(breaker)}`);
  return [...worst(apart.map(([, breaker]) => breaker)), why.join("; ")];
}

/** A breaker in a cell: its state as a badge, and why behind it. */
function breakerIn(cell) {
  const [state, why] = [el("span", {}), el("span", { class: "quiet" })];
  cell.append(state, " ", why);
  return ([word, how, reasons]) => {
    badge(state, word, how);
    text(why, reasons);
  };
}

function diskRow() {
  const { node, cells } = row([["Disk"], ["Node"], ["State"], ["Used", "number"], ["Size", "number"], ["Space"], ["Copies", "number"], ["Corrupt blocks", "number"], ["Breaker"]]);
  const [state, space] = [el("span", {}), el("span", {})];
  cells[2].append(state);
  cells[5].append(space);
  const breaker = breakerIn(cells[8]);
  return { node, update: (disk) => {
    text(cells[0], `${disk.id} (${disk.path.split("/").at(-1)})`);
    cells[0].title = disk.path;
    text(cells[1], disk.on);
    badge(state, disk.state.replace("_", " "), kind(disk.state));
    text(cells[3], disk.used_bytes === null ? "?" : bytes(disk.used_bytes));
    text(cells[4], bytes(disk.capacity_bytes));
    badge(space, disk.space, kind(disk.space));
    text(cells[6], disk.replicas);
    text(cells[7], disk.corrupt_blocks ?? "?");
    breaker(breakerOf(disk));
  } };
}

/** What one disk has of each segment: a letter, and what it is of. */
function cellsOf(volumes, disk) {
  const cells = [];
  for (const volume of volumes) {
    volume.segments.forEach((segment, index) => {
      const letter = segment.in_sync.includes(disk) ? (segment.in_sync.length === 1 && volume.rf > 1 ? "l" : "s")
        : segment.joining.includes(disk) ? "j" : segment.stale.includes(disk) ? "t" : null;
      if (letter) cells.push([letter, `${volume.name}, segment ${index}`]);
    });
  }
  return cells;
}

function mapLine() {
  const name = el("p", { class: "quiet" });
  const cells = el("div", { class: "map", role: "img" });
  let shown = "";
  return { node: el("div", { class: "disk" }, name, cells), update: (disk) => text(name, `Disk ${disk.id} on ${disk.on}`),
    draw: (found) => {
      const now = JSON.stringify(found);
      if (now === shown) return;
      shown = now;
      cells.replaceChildren(...found.map(([letter, title]) => el("i", { class: letter, title })));
      const of = (letters) => found.filter(([letter]) => letters.includes(letter)).length;
      cells.setAttribute("aria-label", `${of("sl")} segments in sync, ${of("l")} of them alone, ${of("j")} being filled, ${of("t")} left behind`);
    } };
}
