/* The swarm in a few words at the head of the chat page; looked at now and then while the page is seen. */

import { el } from "./dom.js";
import { getJson } from "./server.js";
import { count, spans } from "./words.js";

const PERIOD_MS = 10000;

export class Pill {
  /** `onLook(swarm)` gets what the server says of the swarm, or null when it does not answer. */
  constructor(onLook) {
    this.onLook = onLook;
    this.link = document.getElementById("pill");
    this.text = document.getElementById("pill-text");
    document.addEventListener("visibilitychange", () => this.look());
    window.addEventListener("online", () => this.look());
    window.addEventListener("offline", () => this.#show("bad", "you are offline"));
  }

  /** Now, and again after a while. */
  async look() {
    clearTimeout(this.timer);
    if (document.visibilityState === "hidden") return;
    this.timer = setTimeout(() => this.look(), PERIOD_MS);
    try {
      const swarm = await getJson("/swarm.json");
      this.#tell(swarm);
      this.onLook(swarm);
    } catch (failure) {
      this.#show("bad", failure.kind === "key" ? "an API key is needed" : "no answer from the server");
      this.onLook(null);
    }
  }

  #tell(swarm) {
    const here = swarm.peers.filter((peer) => peer.state === "online" && peer.seen !== "lost").length + swarm.hidden_peers;
    if (swarm.missing.length) this.#show("bad", `no peer holds ${spans(swarm.missing)}`);
    else this.#show("good", count(here, "peer"), ", all blocks held");
  }

  /** `more` is left out on phones. */
  #show(state, text, more = "") {
    this.link.dataset.state = state;
    this.text.replaceChildren(text, el("span", { class: "more", text: more }));
    this.link.setAttribute("aria-label", `Swarm: ${text}${more}`);
  }
}
