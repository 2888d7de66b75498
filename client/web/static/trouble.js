/* Shows what went wrong with an answer, and counts down to the next try where time may mend it. */

import { el, say } from "./dom.js";

const TITLES = {
  busy: "The swarm is full",
  missing: "Some blocks are held by nobody",
  broken: "The swarm could not finish this",
  lost: "Connection lost",
  key: "This server asks for an API key",
  refused: "The server will not answer this",
  server: "The server has failed",
};
const MOST_TRIES = 8;
const FIRST_WAIT_S = 3;
const LONGEST_WAIT_S = 60;
const LONG = 160;

export class Trouble {
  /** `retry()` asks again; `openSettings()` is for a missing key. `tries`: how many attempts failed before. */
  constructor(failure, tries, { retry, openSettings }) {
    this.failure = failure;
    this.retry = retry;
    this.timer = 0;
    this.line = el("p", { class: "small countdown" });
    const again = el("button", { type: "button", class: "plain", text: "Try now", on: { click: () => this.again() } });
    this.leave = el("button", { type: "button", class: "ghost named", text: "Stop trying", on: { click: () => this.stop() } });
    const key = el("button", { type: "button", class: "primary", text: "Enter a key", on: { click: openSettings } });
    const help = failure.kind === "missing" && el("p", { class: "small" }, "The swarm page shows which, and how to fill them: ", el("a", { href: "/swarm", text: "look at the swarm" }), ".");
    this.buttons = el("div", { class: "trouble-tools" }, failure.kind === "key" && key, again, this.leave);
    const title = TITLES[failure.kind];
    this.element = el("div", { class: "trouble", "data-kind": failure.kind }, el("strong", { text: title }), ...told(failure.message), help, this.line, this.buttons);
    say(`${title}. ${failure.message}`);
    if (failure.passes && tries < MOST_TRIES) this.count(waitOf(failure, tries));
    else this.stop();
  }

  count(seconds) {
    this.end = Date.now() + seconds * 1000;
    say(`Trying again in ${Math.ceil(seconds)} seconds.`);
    this.tick();
  }

  tick() {
    const left = Math.ceil((this.end - Date.now()) / 1000);
    if (left <= 0) {
      this.again();
      return;
    }
    this.line.textContent = `Trying again in ${left} s`;
    this.timer = setTimeout(() => this.tick(), 250);
  }

  /** What was missing is there: now, unless nobody waits for it any more. */
  sooner() {
    if (this.timer) this.again();
  }

  again() {
    clearTimeout(this.timer);
    this.retry();
  }

  /** No further try by itself. */
  stop() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.line.textContent = "";
    this.leave.hidden = true;
  }
}

/** A long message's first sentence, and the rest for who wants it. */
function told(message) {
  const end = message.search(/[.:] /) + 1;
  if (message.length <= LONG || !end) return [el("p", { text: message })];
  const more = el("details", { class: "small" }, el("summary", { text: "More" }), el("p", { text: message.slice(end).trim() }));
  return [el("p", { text: message.slice(0, end).replace(/:$/, ".") }), more];
}

function waitOf(failure, tries) {
  const growing = FIRST_WAIT_S * 2 ** tries;
  return Math.min(LONGEST_WAIT_S, Math.max(failure.retryAfter ?? 0, tries ? growing : (failure.retryAfter ?? growing)));
}
