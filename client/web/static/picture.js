/* Draws blocks against peers: one column a block, one row a peer, its span a bar; above them how many hold each block. */

import { svg } from "./dom.js";
import { stateOf } from "./peertable.js";
import { count, figure, runs, short, spans } from "./words.js";

const WIDE_PX = 640;
const HEAD_PX = 62;
const GAP_PX = 22;
const LEAST_TICK_PX = 30;
const CHARACTER_PX = 7;

/** The swarm in `container`, `width` pixels wide. */
export function draw(container, swarm, width) {
  if (width < 50) return;
  const frame = frameOf(swarm, width);
  const rows = swarm.peers.map((peer, n) => row(frame, peer, n));
  const height = frame.top + swarm.peers.length * frame.rowPx + 6;
  const picture = svg("svg", { role: "img", "aria-label": summary(swarm), viewBox: `0 0 ${width} ${height}`, width, height },
    hatch(), coverage(frame), gaps(frame, height), rows, route(frame));
  if (swarm.peers.length) container.replaceChildren(picture);
  else container.replaceChildren(picture, Object.assign(document.createElement("p"), { className: "muted", textContent: "No peer has announced itself." }));
}

function frameOf(swarm, width) {
  const isWide = width >= WIDE_PX;
  const left = isWide ? 176 : 0;
  const right = isWide ? 122 : 0;
  const cell = (width - left - right) / swarm.n_blocks;
  return {
    swarm, isWide, left, cell,
    end: width - right,
    top: HEAD_PX + (swarm.missing.length ? GAP_PX : 0),
    rowPx: isWide ? 40 : 54,
    x: (block) => left + block * cell,
    width: (blocks) => Math.max(2, blocks * cell - 2),
    hops: new Map((swarm.last?.route ?? []).map((hop, n) => [hop.peer, { ...hop, number: n + 1 }])),
  };
}

/** For screen readers: the picture in a sentence or two. */
export function summary(swarm) {
  const lost = swarm.peers.filter((peer) => peer.seen === "lost");
  const parts = [`${count(swarm.peers.length, "peer")} over ${count(swarm.n_blocks, "block")}.`];
  parts.push(swarm.missing.length ? `Nobody holds blocks ${spans(swarm.missing)}.` : "Every block is held.");
  if (lost.length) parts.push(`Lost: ${lost.map((peer) => peer.name || short(peer.peer)).join(", ")}.`);
  parts.push("The table of peers below tells the same.");
  return parts.join(" ");
}

// -- above the peers -------------------------------------------------------------------------------------------------

function coverage(frame) {
  const { swarm, cell } = frame;
  const every = Math.max(1, Math.ceil(LEAST_TICK_PX / cell));
  const parts = [];
  if (frame.isWide) parts.push(svg("text", { class: "side-text", x: 0, y: 16, "text-anchor": "start" }, "block"), svg("text", { class: "side-text", x: 0, y: 42 }, "holders"));
  swarm.coverage.forEach((held, block) => {
    const middle = frame.x(block) + cell / 2;
    if (block % every === 0) parts.push(svg("text", { class: "tick", x: middle, y: 16, "text-anchor": "middle" }, String(block)));
    const box = { x: frame.x(block) + 1, y: 24, width: frame.width(1), height: 26, rx: 3 };
    parts.push(svg("rect", { ...box, class: `cover cover-${Math.min(held, 3)}`, fill: held ? null : "url(#hatch)" }, svg("title", {}, `block ${block}: ${count(held, "holder")}`)));
    if (cell >= 12) parts.push(svg("text", { class: held ? "cover-text" : "cover-text none", x: middle, y: 42, "text-anchor": "middle" }, String(held)));
  });
  return svg("g", {}, parts);
}

/** Gaps are named, and go through all rows. */
function gaps(frame, height) {
  return runs(frame.swarm.missing).map(([start, stop]) => {
    const x = frame.x(start);
    const text = `gap ${spans([...Array(stop - start).keys()].map((n) => n + start))}`;
    const width = (stop - start) * frame.cell;
    const middle = Math.min(Math.max(x + width / 2, frame.left + text.length * 3.5), frame.end - text.length * 3.5);
    return svg("g", {},
      svg("rect", { class: "gap-band", x, y: HEAD_PX - 8, width, height: height - HEAD_PX + 4, rx: 4 }),
      svg("text", { class: "gap-text", x: middle, y: HEAD_PX + 8, "text-anchor": "middle" }, text));
  });
}

// -- peers -----------------------------------------------------------------------------------------------------------

function row(frame, peer, n) {
  const [start, stop] = peer.blocks;
  const state = stateOf(peer);
  const y = frame.top + n * frame.rowPx + (frame.isWide ? 7 : 22);
  const hop = frame.hops.get(peer.peer);
  const parts = frame.isWide ? sides(frame, peer, y) : above(frame, peer, y);
  const bar = { x: frame.x(start) + 1, y, width: frame.width(stop - start), height: 26, rx: 6 };
  parts.push(svg("rect", { ...bar, class: `bar ${barClass(state)}`, fill: state === "lost" ? "url(#hatch)" : null }));
  if (hop) {
    const [from, to] = hop.blocks;
    parts.push(svg("rect", { ...bar, class: state === "lost" ? "lit lost" : "lit", x: frame.x(from) + 1, width: frame.width(to - from) }));
  }
  parts.push(...inside(frame, peer, state, hop, y));
  return svg("g", { "data-peer": peer.peer, "data-state": state }, svg("title", {}, `${peer.name || short(peer.peer)}: blocks ${spanOf(peer)}, ${state}`), parts);
}

/** What a bar says, in the widest part of it that is of one colour. */
function inside(frame, peer, state, hop, y) {
  const [start, stop] = peer.blocks;
  const [from, to] = hop && state !== "lost" ? hop.blocks : [start, start];
  const parts = [[start, from, ""], [from, to, " on-lit"], [to, stop, ""]].sort((a, b) => b[1] - b[0] - (a[1] - a[0]));
  const [left, right, colour] = parts[0];
  const weights = peer.quantization === "none" ? peer.dtype : peer.quantization;
  const texts = state === "lost" ? [`lost · ${spanOf(peer)}`, "lost"] : [`${spanOf(peer)} · ${weights}`, spanOf(peer)];
  const text = texts.find((one) => one.length * CHARACTER_PX + 14 < (right - left) * frame.cell);
  return text ? [svg("text", { class: `bar-text${colour}`, x: frame.x(left) + 9, y: y + 17.5 }, text)] : [];
}

function sides(frame, peer, y) {
  const far = peer.rtt_ms === null ? "" : `${figure(peer.rtt_ms)} ms away`;
  const below = [peer.name && short(peer.peer), stateText(peer)].filter(Boolean).join(" · ");
  return [
    svg("text", { class: "name", x: 0, y: below ? y + 11 : y + 17.5 }, fitted(peer.name || short(peer.peer), frame.left - 16)),
    svg("text", { class: "side-text state-text", x: 0, y: y + 25 }, below),
    svg("text", { class: "name figure", x: frame.end + 12, y: far ? y + 11 : y + 17.5 }, `${figure(peer.token_ms)} ms a token`),
    svg("text", { class: "side-text", x: frame.end + 12, y: y + 25 }, far),
  ];
}

function above(frame, peer, y) {
  const far = peer.rtt_ms === null ? "" : `, ${figure(peer.rtt_ms)} ms away`;
  const figures = `${figure(peer.token_ms)} ms a token${far}`;
  const room = frame.end - figures.length * 6.2 - 12;
  return [
    svg("text", { class: "name", x: 0, y: y - 6 }, fitted(peer.name || short(peer.peer), room)),
    svg("text", { class: "side-text", x: frame.end, y: y - 6, "text-anchor": "end" }, figures),
  ];
}

/** The way of the last answer: from hop to hop, down or up at the block where one takes over. */
function route(frame) {
  const places = new Map(frame.swarm.peers.map((peer, n) => [peer.peer, frame.top + n * frame.rowPx + (frame.isWide ? 20 : 35)]));
  const hops = [...frame.hops.values()].filter((hop) => places.has(hop.peer));
  const lines = hops.slice(1).map((hop, n) => {
    const [x, from, to] = [frame.x(hop.blocks[0]), places.get(hops[n].peer), places.get(hop.peer)];
    return svg("g", {},
      svg("path", { class: "way-line", d: `M${x} ${from}V${to}` }),
      svg("circle", { class: "way-dot", cx: x, cy: from, r: 4 }),
      svg("circle", { class: "way-dot", cx: x, cy: to, r: 4 }));
  });
  return svg("g", { class: "way-lines" }, lines);
}

function hatch() {
  const line = svg("path", { class: "hatch-line", d: "M0 6L6 0" });
  return svg("defs", {}, svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, line));
}

function barClass(state) {
  return { lost: "gone", here: "there", announced: "there" }[state] ?? "doubtful";
}

function stateText(peer) {
  const state = stateOf(peer);
  return state === "here" ? "" : state;
}

function spanOf({ blocks: [start, stop] }) {
  return stop - start === 1 ? `${start}` : `${start}–${stop - 1}`;
}

/** Names are strangers': cut by characters, whatever they are. */
function fitted(text, px) {
  const most = Math.max(4, Math.floor(px / CHARACTER_PX));
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}
