/* The peers as a table: what the picture shows and more, for screen readers, phones and who likes figures. Cells change
   in place, so that a reader does not lose the line. */

import { el } from "./dom.js";
import { count, figure, short } from "./words.js";

const SEEN = { here: "here", lost: "lost", unreached: "not reached", unknown: "announced" };

const COLUMNS = [
  ["Peer", (peer) => peer.name || short(peer.peer)],
  ["Id", (peer) => short(peer.peer)],
  ["Blocks", ({ blocks: [start, stop] }) => (stop - start === 1 ? `${start}` : `${start}–${stop - 1}`)],
  ["State", (peer) => `${stateOf(peer)}${peer.avoided ? ", avoided" : ""}`],
  ["Weights", (peer) => (peer.quantization === "none" ? peer.dtype : peer.quantization)],
  ["ms a token", (peer) => `${figure(peer.token_ms)}${peer.token_measured ? "" : " *"}`],
  ["Prompt/s", (peer) => `${figure(peer.prompt_tokens_per_s)} *`],
  ["Distance", (peer) => (peer.rtt_ms === null ? "–" : `${figure(peer.rtt_ms)} ms`)],
  ["Sessions", (peer) => String(peer.sessions)],
  ["Free tokens", (peer) => peer.free_tokens.toLocaleString("en")],
  ["Reach", (peer) => peer.reach],
  ["Version", (peer) => peer.version],
];

/** How a peer stands, in a word. */
export function stateOf(peer) {
  if (peer.seen === "lost") return "lost";
  return peer.state === "online" ? SEEN[peer.seen] : peer.state;
}

export class PeerTable {
  constructor(container) {
    const heads = COLUMNS.map(([name]) => el("th", { scope: "col", role: "columnheader", text: name }));
    this.body = el("tbody", { role: "rowgroup" });
    const head = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads));
    const table = el("table", { role: "table", "aria-labelledby": "peers-title" }, head, this.body);
    this.wide = el("div", { class: "wide", tabindex: "0", role: "region", "aria-labelledby": "peers-title" }, table);
    this.note = el("p", { class: "muted" });
    this.rows = new Map();
    container.append(this.wide, this.note);
  }

  show(swarm) {
    const names = new Set(swarm.peers.map((peer) => peer.peer));
    for (const [name, row] of this.rows) {
      if (names.has(name)) continue;
      row.remove();
      this.rows.delete(name);
    }
    swarm.peers.forEach((peer, index) => {
      const row = this.rows.get(peer.peer) ?? this.create(peer);
      row.dataset.state = stateOf(peer);
      COLUMNS.forEach(([, read], n) => {
        const text = read(peer);
        if (row.cells[n].textContent !== text) row.cells[n].textContent = text;
      });
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
    this.wide.hidden = !swarm.peers.length;
    this.note.textContent = noteOf(swarm);
  }

  create(peer) {
    const cells = COLUMNS.map(([name], n) => el(n ? "td" : "th", { role: n ? "cell" : "rowheader", scope: n ? null : "row", "data-name": name }));
    const row = el("tr", { role: "row" }, cells);
    row.cells[1].title = peer.peer;
    this.rows.set(peer.peer, row);
    return row;
  }
}

function noteOf(swarm) {
  if (!swarm.peers.length) return "No peer has announced itself.";
  return swarm.hidden_peers ? `${count(swarm.hidden_peers, "more peer")} ${swarm.hidden_peers === 1 ? "is" : "are"} not shown.` : "";
}
