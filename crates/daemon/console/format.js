// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count) {
  let [value, unit] = [count, 0];
  while (value >= 1024 && unit < UNITS.length - 1) [value, unit] = [value / 1024, unit + 1];
  const digits = value >= 100 || Number.isInteger(value) ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

export function count(value) {
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}

export function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} days`;
}

export function micros(us) {
  if (us === null || us === undefined) return "–";
  return us < 1000 ? `${Math.round(us)} µs` : span(us / 1000);
}

export function clock(ms) {
  const at = new Date(ms);
  const today = at.toDateString() === new Date().toDateString();
  const time = at.toLocaleTimeString("en-GB");
  return today ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

export function plural(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

/** Something is being copied, or waits for it. */
export function rebuilds(volume) {
  return volume.rebuild.remaining_bytes > 0 || volume.rebuild.eta_ms === null;
}

/** `20GiB` as bytes. What could mean two things is refused, as on the command line. */
export function parseSize(typed) {
  const match = /^\s*(\d+)\s*([a-z]*)\s*$/i.exec(typed);
  if (!match) throw new Error(`${typed || "nothing"} is not a size, such as 20GiB`);
  const [, number, unit] = match;
  const power = ["", "kib", "mib", "gib", "tib"].indexOf(unit.toLowerCase());
  if (power < 0) throw new Error(`${unit} could mean two things: give KiB, MiB, GiB or TiB`);
  const size = Number(number) * 1024 ** power;
  if (!Number.isSafeInteger(size) || size % 4096 !== 0) throw new Error("a size is a multiple of 4KiB");
  return size;
}

/** How good a health, a state or a severity is, for its colour; the word itself is always there. */
export function kind(word) {
  if (["healthy", "up", "in_service", "ready", "ok"].includes(word)) return "good";
  if (["degraded", "silent", "away", "draining", "suspect", "near-full", "warn", "creating"].includes(word)) return "warn";
  if (["held", "lost", "failed", "missing", "full", "error"].includes(word)) return "bad";
  return "unknown";
}
