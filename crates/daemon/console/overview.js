// Health first, then how safe it is, how full, how busy, and what is being copied.

import { el, keyed, text } from "./dom.js";
import { bytes, count, micros, rebuilds, span } from "./format.js";

const CHART_HEIGHT = 170;

/** Steps of an axis that bytes have round numbers at. */
const doublings = (most) => Array.from({ length: most }, (_, power) => 2 ** power);

const CHARTS = [
  { title: "Requests per second", show: count, least: 10, series: [
    { name: "reads", color: "read", of: (s, seconds) => s.reads / seconds },
    { name: "writes", color: "write", of: (s, seconds) => s.writes / seconds }] },
  { title: "Throughput per second", show: bytes, least: 4096, incrs: doublings(50), series: [
    { name: "read", color: "read", of: (s, seconds) => s.read_bytes / seconds },
    { name: "written", color: "write", of: (s, seconds) => s.write_bytes / seconds },
    { name: "copied", color: "fill", of: (s, seconds) => s.filled_bytes / seconds }] },
  { title: "Latency, slowest in a hundred", show: micros, least: 100, series: [
    { name: "reads", color: "read", of: (s) => s.read_us_p99 },
    { name: "writes", color: "write", of: (s) => s.write_us_p99 }] },
];

/** By `INTERVAL_MS` of the node. */
const SECONDS = 5;

export function overview(main, known) {
  const health = el("p", { class: "big" });
  const problems = el("ul", { class: "plain" });
  const survives = el("p", { class: "big" });
  const why = el("ul", { class: "plain" });
  const fits = el("p", {});
  const room = el("p", { class: "big" });
  const bar = el("span", {});
  const used = el("div", { class: "used", "aria-hidden": "true" }, bar);
  const more = el("p", { class: "quiet" });
  const copies = el("ul", { class: "plain" });
  const copied = el("section", { class: "card", "aria-label": "Rebuild" }, el("h2", {}, "Rebuild"), copies);
  main.append(
    el("h1", {}, "Overview"),
    el("div", { class: "grid" },
      el("section", { class: "card", "aria-label": "Health" }, el("h2", {}, "Health"), health, problems),
      el("section", { class: "card", "aria-label": "Safety" },
        el("h2", {}, "Survives the loss of any one node"), survives, why, fits),
      el("section", { class: "card", "aria-label": "Capacity" }, el("h2", {}, "Capacity"), room, used, more)),
    copied);
  const charts = CHARTS.map((spec) => chart(spec));
  main.append(el("div", { class: "grid" }, ...charts.map((made) => made.node)));
  const size = new ResizeObserver(() => charts.forEach((made) => made.resize()));
  size.observe(main);
  // Axes have colours of their own: drawn anew in the other scheme.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () => charts.forEach((made) => made.remake(known.samples));
  dark.addEventListener("change", recolour);

  function update(what) {
    if (what === undefined || what === "sample") charts.forEach((made) => made.draw(known.samples));
    if (known.status && what !== "sample" && what !== "event") status(known.status);
  }

  function status(told) {
    const words = { healthy: "All is well", degraded: "Served, and something is wrong", held: "Some I/O waits", lost: "Blocks are lost" };
    text(health, words[told.health] ?? told.health);
    lines(problems, [...told.problems, ...told.notes]);
    text(survives, told.safety.survives_any_node ? "Yes" : "No");
    lines(why, told.safety.why);
    const room_ = told.capacity;
    text(fits, room_.survives_largest_node
      ? "All data would still fit, with all copies, after the loss of the largest node."
      : "All data would NOT fit any more, with all copies, after the loss of the largest node.");
    text(room, `${bytes(room_.used_bytes)} of ${bytes(room_.total_bytes)} used`);
    bar.style.width = `${(100 * room_.used_bytes) / Math.max(room_.total_bytes, 1)}%`;
    text(more, `${bytes(room_.free_bytes)} left for new data; ${bytes(room_.promised_bytes)} promised to volumes.`);
    const moving = told.volumes.filter(rebuilds);
    keyed(copies, moving.length ? moving : [null], (volume) => volume?.name ?? "", rebuildLine);
  }

  return { update, leave: () => {
    size.disconnect();
    dark.removeEventListener("change", recolour);
    charts.forEach((made) => made.destroy());
  } };
}

function lines(list, words) {
  keyed(list, words, (word) => word, () => {
    const node = el("li", {});
    return { node, update: (word) => text(node, word) };
  });
}

/** Of a volume; null: nothing is being copied. What was left when it was first seen is the whole. */
function rebuildLine(first) {
  if (!first) return { node: el("li", { class: "quiet" }, "Nothing is being copied."), update: () => {} };
  const words = el("span", {});
  const bar = el("progress", { max: 1, value: 0, "aria-label": `rebuild of ${first.name}` });
  let most = 0;
  return { node: el("li", {}, words, bar), update: (volume) => {
    const { remaining_bytes: left, bytes_per_s: speed, eta_ms: eta } = volume.rebuild;
    most = Math.max(most, left);
    bar.value = most ? 1 - left / most : 1;
    text(words, `${volume.name}: ${bytes(left)} left` +
      (eta === null ? ", waiting" : `, ${bytes(speed)} per second, done in ${span(eta)}`));
  } };
}

const minute = (seconds) => new Date(seconds * 1000).toTimeString().slice(0, 5);

function chart({ title, show, least, incrs, series }) {
  const place = el("div", { class: "chart", role: "img" });
  const values = series.map(() => el("span", { class: "number" }));
  const legend = el("p", { class: "legend" }, ...series.map((one, index) =>
    el("span", { class: `c-${one.color}` }, el("i", { "aria-hidden": "true" }), `${one.name} `, values[index])));
  const node = el("section", { class: "card", "aria-label": title }, el("h2", {}, title), place, legend);
  let plot = null;

  function make(data) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { stroke: color("quiet"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false } };
    plot = new uPlot({
      width: place.clientWidth || 300, height: CHART_HEIGHT, legend: { show: false }, cursor: { show: false }, padding: [12, 24, 0, 0],
      scales: { y: { range: (_, __, most) => [0, Math.max(most ?? 0, least) * 1.1] } },
      axes: [{ ...axis, space: 70, size: 32, values: (_, ticks) => ticks.map(minute) }, { ...axis, size: 74, incrs, values: (_, ticks) => ticks.map((tick) => show(tick)) }],
      series: [{}, ...series.map((one) => ({ stroke: color(one.color), width: 2, points: { show: false }, spanGaps: false }))],
    }, data, place);
  }

  function draw(samples) {
    const data = [samples.map((sample) => sample.time_ms / 1000),
      ...series.map((one) => samples.map((sample) => one.of(sample, SECONDS) ?? null))];
    if (plot) plot.setData(data);
    else make(data);
    const last = samples.at(-1);
    const now = series.map((one) => (last ? show(one.of(last, SECONDS)) : "–"));
    values.forEach((value, index) => text(value, now[index]));
    const words = series.map((one, index) => `${one.name} ${now[index]}`).join(", ");
    place.setAttribute("aria-label", `${title} over the last hour; now ${words}`);
  }

  const destroy = () => {
    plot?.destroy();
    plot = null;
  };
  return { node, draw, destroy,
    remake: (samples) => {
      destroy();
      draw(samples);
    },
    resize: () => plot?.setSize({ width: place.clientWidth, height: CHART_HEIGHT }) };
}
