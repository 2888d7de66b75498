/* Shows one answer: its text as it grows, how it was made, and what can be done with it. Starts nothing itself. */

import { copyButton, el, icon, iconButton } from "./dom.js";
import { show } from "./markdown.js";
import { blockNames, count, duration, figure, short } from "./words.js";

const ENDS = {
  length: "Ended at the token limit.",
  stopped: "Stopped.",
  lost: "The answer broke off.",
};

export class AnswerView {
  /** `actions`: again, goOn, turnTo(number); `look`: { plain(), nameOf(peer) }. */
  constructor(turn, actions, look) {
    this.turn = turn;
    this.actions = actions;
    this.look = look;
    this.body = el("div", { class: "md" });
    this.thought = el("details", { class: "thought" }, el("summary", { class: "small" }), el("div", { class: "small muted" }));
    this.waiting = el("p", { class: "waiting" }, el("span", { class: "pulse", "aria-hidden": "true" }), el("span", { text: "Finding a way through the swarm" }));
    this.trouble = el("div");
    this.foot = el("div", { class: "answer-foot" });
    this.element = el("article", { class: "turn answer", "aria-label": "Answer" }, this.thought, this.body, this.waiting, this.trouble, this.foot);
    this.isLive = false;
    this.due = false;
    this.update();
  }

  get answer() {
    return this.turn.answers[this.turn.shown] ?? { text: "", finish: "", via: null };
  }

  get isBegun() {
    return Boolean(this.answer.text || this.answer.thought);
  }

  /** Everything anew. */
  update() {
    this.write();
    this.element.classList.toggle("live", this.isLive);
    this.element.setAttribute("aria-busy", String(this.isLive));
    this.waiting.hidden = !this.isLive || this.isBegun;
    this.foot.replaceChildren(...(this.isLive ? [] : this.parts()));
  }

  /** The text has grown: shown with the next frame. */
  grown(rate) {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      if (!this.isLive) return;
      this.waiting.hidden = this.isBegun;
      this.write();
      this.foot.replaceChildren(el("p", { class: "small muted rate", text: rate ? `${figure(rate)} tokens/s` : "" }));
      this.onGrown?.();
    });
  }

  write() {
    const { text, thought } = this.answer;
    const [summary, reasoning] = this.thought.children;
    this.thought.hidden = !thought;
    summary.textContent = this.isLive && !text ? "Thinking …" : "Thought before answering";
    reasoning.textContent = thought ?? "";
    const plain = this.look.plain();
    this.body.classList.toggle("as-is", plain);
    if (plain) {
      this.body.textContent = text;
      this.body.shownBlocks = null;
    } else {
      if (this.body.shownBlocks === null) this.body.replaceChildren();
      show(this.body, text);
    }
  }

  parts() {
    const { text, finish, via } = this.answer;
    const note = ENDS[finish] ?? (text || this.trouble.hasChildNodes() ? "" : "The model had nothing to say.");
    const line = note && el("p", { class: "small muted note", text: note });
    return [line, el("div", { class: "answer-tools" }, this.tools(finish, text)), via && this.via(via)].filter(Boolean);
  }

  tools(finish, text) {
    const { answers, shown } = this.turn;
    const turner = answers.length > 1 && el("span", { class: "versions" },
      iconButton("left", "Earlier answer", () => this.actions.turnTo(shown - 1), { disabled: shown === 0 }),
      el("span", { class: "small", text: `${shown + 1} / ${answers.length}` }),
      iconButton("right", "Later answer", () => this.actions.turnTo(shown + 1), { disabled: shown === answers.length - 1 }));
    const goOn = text && ["length", "stopped", "lost"].includes(finish) &&
      el("button", { type: "button", class: "ghost named", on: { click: this.actions.goOn } }, icon("more"), "Go on");
    const again = !this.trouble.hasChildNodes() && iconButton("again", "Answer again", this.actions.again);
    return [turner, text && copyButton("Copy answer", () => this.answer.text), again, goOn].filter(Boolean);
  }

  via(via) {
    const line = [via.peers.length && `via ${count(via.peers.length, "peer")}`, via.tokens_per_s && `${figure(via.tokens_per_s)} tokens/s`];
    const text = line.filter(Boolean).join(", ");
    return el("details", { class: "via" }, el("summary", { class: "small" }, icon("route"), text || "how it was made"), this.details(via));
  }

  details(via) {
    const tiles = via.route.map(({ peer, blocks }) => {
      const name = this.look.nameOf(peer);
      const tile = el("li", {}, el("b", { text: name || short(peer), title: peer }), el("span", { class: "muted", text: blockNames(blocks) }));
      tile.style.flexGrow = String(blocks[1] - blocks[0]);
      return tile;
    });
    const facts = [
      ["First token after", duration(via.ttft_s)],
      ["Tokens", via.tokens === null ? "–" : `${via.tokens} after a prompt of ${via.prompt_tokens}`],
      ["Of the prompt from cache", count(via.cached_tokens, "token")],
      ["Repairs on the way", via.repairs ? `${count(via.repairs, "time")}: a peer was lost and replaced` : "none"],
      ["Peers replaced ahead", via.moves ? count(via.moves, "time") : "none"],
    ];
    const list = el("dl", { class: "facts small" }, facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })]));
    return el("div", { class: "via-body" }, el("ol", { class: "tiles small", "aria-label": "Route" }, tiles), list);
  }
}

/** What was asked, with a way to ask differently. */
export class QuestionView {
  constructor(turn, onEdit) {
    this.turn = turn;
    this.onEdit = onEdit;
    this.element = el("article", { class: "turn question", "aria-label": "You" });
    this.show();
  }

  show() {
    const tools = el("div", { class: "question-tools" },
      iconButton("edit", "Edit and send again", () => this.edit()),
      copyButton("Copy message", () => this.turn.text));
    this.element.replaceChildren(el("div", { class: "bubble", text: this.turn.text }), tools);
  }

  edit() {
    const area = el("textarea", { "aria-label": "Edit the message", rows: Math.min(12, this.turn.text.split("\n").length + 1) });
    area.value = this.turn.text;
    const leave = () => {
      this.show();
      this.element.querySelector("button").focus();
    };
    const send = () => (area.value.trim() ? this.onEdit(area.value) : leave());
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const buttons = el("div", { class: "edit-tools" },
      el("button", { type: "button", class: "plain", text: "Cancel", on: { click: leave } }),
      el("button", { type: "button", class: "primary", text: "Send again", on: { click: send } }));
    this.element.replaceChildren(el("div", { class: "editing" }, area, buttons));
    area.focus();
  }
}
