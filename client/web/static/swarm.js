/* The swarm page: listens to the server's live pictures of the swarm and shows each. */

import { el, say } from "./dom.js";
import { draw } from "./picture.js";
import { PeerTable } from "./peertable.js";
import { Failure, events, key } from "./server.js";
import { gapNotice } from "./welcome.js";
import { ago, blockNames, count, duration, figure, short, spans } from "./words.js";

const SILENT_MS = 12000;
const LONGEST_PAUSE_MS = 10000;
const byId = (id) => document.getElementById(id);

class SwarmPage {
  constructor() {
    this.swarm = null;
    this.table = new PeerTable(byId("peers"));
    this.width = 0;
    new ResizeObserver(([entry]) => this.resized(entry.contentRect.width)).observe(byId("picture"));
    document.addEventListener("visibilitychange", () => this.listen());
    window.addEventListener("online", () => this.listen());
    this.listen();
  }

  /** Listen while the page is seen, and again whenever the line breaks. */
  async listen() {
    this.controller?.abort();
    clearTimeout(this.pause);
    clearTimeout(this.silence);
    if (document.visibilityState === "hidden") return;
    const controller = (this.controller = new AbortController());
    try {
      for await (const swarm of events("/swarm/live", null, controller.signal)) {
        if (controller !== this.controller) return;
        this.pauseMs = 1000;
        this.heard();
        this.show(swarm);
      }
      throw new Failure("lost", "The server ended the connection.");
    } catch (error) {
      if (controller === this.controller) this.broken(error);
    }
  }

  heard() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.controller.abort(), SILENT_MS);
  }

  broken(error) {
    clearTimeout(this.silence);
    const known = error instanceof Failure ? error : new Failure("lost", "The connection to the server was lost.");
    this.state("bad", "not live");
    const text = known.kind === "key" ? this.needsKey(known) : [el("p", { text: `${known.message} What is shown may be old; trying again.` })];
    byId("wrong").replaceChildren(...text);
    if (byId("wrong").hidden) say(known.message);
    byId("wrong").hidden = false;
    this.pauseMs = Math.min(LONGEST_PAUSE_MS, (this.pauseMs ?? 500) * 2);
    this.pause = setTimeout(() => this.listen(), this.pauseMs);
  }

  needsKey(failure) {
    const existing = byId("wrong").querySelector("form");
    if (existing) return [existing];
    const field = el("input", { type: "password", autocomplete: "off", id: "key", spellcheck: "false" });
    const form = el("form", { class: "key-form" }, el("label", { for: "key", text: `${failure.message} Enter it here:` }), field, el("button", { class: "primary", text: "Look" }));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      key.set(field.value.trim());
      form.remove();
      this.listen();
    });
    return [form];
  }

  state(state, text) {
    byId("live").dataset.state = state;
    byId("live-text").textContent = text;
  }

  resized(width) {
    if (Math.abs(width - this.width) < 1) return;
    this.width = width;
    if (this.swarm) draw(byId("picture"), this.swarm, width);
  }

  // -- showing -------------------------------------------------------------------------------------------------------

  show(swarm) {
    this.tell(this.swarm, swarm);
    this.swarm = swarm;
    this.state("good", "live");
    byId("wrong").hidden = true;
    byId("model").textContent = swarm.model;
    byId("revision").textContent = swarm.revision ? `revision ${swarm.revision}` : "";
    this.figures(swarm);
    this.gap(swarm);
    draw(byId("picture"), swarm, this.width || byId("picture").clientWidth);
    this.route(swarm);
    this.table.show(swarm);
  }

  /** What has changed, for who does not see it. */
  tell(before, now) {
    if (!before) return;
    const lost = (swarm) => new Set(swarm.peers.filter((peer) => peer.seen === "lost").map((peer) => peer.peer));
    const known = lost(before);
    for (const peer of now.peers) if (peer.seen === "lost" && !known.has(peer.peer)) say(`Peer ${peer.name || short(peer.peer)} was lost.`);
    if (String(before.missing) === String(now.missing)) return;
    say(now.missing.length ? `Nobody holds blocks ${spans(now.missing)} now.` : "Every block is held again.");
  }

  figures(swarm) {
    const here = swarm.peers.filter((peer) => peer.state === "online" && peer.seen !== "lost").length + swarm.hidden_peers;
    const lost = swarm.peers.filter((peer) => peer.seen === "lost").length;
    const held = swarm.n_blocks - swarm.missing.length;
    const least = Math.min(...swarm.coverage);
    const entries = [
      ["Blocks held", `${held} of ${swarm.n_blocks}`, swarm.missing.length ? "bad" : "good"],
      ["Peers", lost ? `${here}, ${lost} lost` : `${here}`, lost ? "bad" : ""],
      ["Every block has at least", count(least, "holder"), least === 0 ? "bad" : least === 1 ? "warn" : "good"],
      ["Answers being made", `${swarm.in_flight}`, ""],
    ];
    if (swarm.other_revisions) entries.push(["Serve another revision", count(swarm.other_revisions, "peer"), "warn"]);
    const boxes = entries.map(([name, value, state]) => el("div", { "data-state": state || null }, el("dt", { text: name }), el("dd", { text: value })));
    byId("figures").replaceChildren(...boxes);
  }

  gap(swarm) {
    const box = byId("gap");
    const text = String(swarm.missing);
    if (box.dataset.missing === text) return;
    box.dataset.missing = text;
    box.hidden = !swarm.missing.length;
    box.replaceChildren(...(swarm.missing.length ? [gapNotice(swarm)] : []));
  }

  route(swarm) {
    const { last } = swarm;
    if (!last?.route.length) {
      byId("route").replaceChildren(el("p", { class: "muted" }, "No answer has gone through this server yet. ", el("a", { href: "/", text: "Ask something" }), " and its way shows here."));
      return;
    }
    const peers = new Map(swarm.peers.map((peer) => [peer.peer, peer]));
    const you = () => el("li", { class: "end", text: "you" });
    const hops = last.route.map(({ peer, blocks }) => {
      const known = peers.get(peer);
      const name = el("b", { text: known?.name || short(peer), title: peer });
      return el("li", { class: known?.seen === "lost" ? "lost" : null }, name, el("span", { class: "muted", text: blockNames(blocks) }));
    });
    const facts = [
      last.tokens_per_s && `${figure(last.tokens_per_s)} tokens/s`,
      last.ttft_s !== null && `first token after ${duration(last.ttft_s)}`,
      count(last.tokens, "token"),
      last.cached_tokens && `${count(last.cached_tokens, "prompt token")} from cache`,
      last.repairs ? count(last.repairs, "repair") : "no repairs",
      last.moves && `${count(last.moves, "peer")} replaced ahead`,
      last.finish ? ago(swarm.at - last.at) : swarm.in_flight ? "being made now" : "broke off or was stopped",
    ];
    byId("route").replaceChildren(el("ol", { class: "way" }, you(), hops, you()), el("p", { class: "muted small", text: facts.filter(Boolean).join(" · ") }));
  }
}

new SwarmPage();
