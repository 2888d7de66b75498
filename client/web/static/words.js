/* Figures and names for people. Pure. */

/** Block numbers as `0–3, 7`. */
export function spans(blocks) {
  const runs = [];
  for (const block of [...blocks].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && block === last[1] + 1) last[1] = block;
    else runs.push([block, block]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`)).join(", ");
}

/** Runs of blocks as half-open pairs. */
export function runs(blocks) {
  const found = [];
  for (const block of [...blocks].sort((a, b) => a - b)) {
    if (found.length && found.at(-1)[1] === block) found.at(-1)[1] = block + 1;
    else found.push([block, block + 1]);
  }
  return found;
}

/** A half-open pair as `block 3` or `blocks 3–5`. */
export function blockNames([start, stop]) {
  return stop - start === 1 ? `block ${start}` : `blocks ${start}–${stop - 1}`;
}

/** `1 peer`, `3 peers`. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** A figure with as many digits as say something. */
export function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

/** Seconds as `340 ms` or `1.2 s`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

/** The end of a peer id: all of them begin alike. */
export function short(peer) {
  return `…${String(peer).slice(-6)}`;
}

/** How long ago, roughly. */
export function ago(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}
