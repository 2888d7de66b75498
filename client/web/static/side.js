/* The list of conversations: beside the page, or on a phone a drawer over it. */

import { el, iconButton } from "./dom.js";

const NARROW = matchMedia("(max-width: 760px)");

export class Side {
  /** `actions`: choose(id), remove(id), create(). */
  constructor(actions) {
    this.actions = actions;
    this.element = document.getElementById("side");
    this.veil = document.getElementById("veil");
    this.opener = document.getElementById("open-side");
    this.opener.addEventListener("click", () => this.open(true));
    document.getElementById("close-side").addEventListener("click", () => this.open(false));
    this.veil.addEventListener("click", () => this.open(false));
    document.getElementById("new").addEventListener("click", () => {
      this.open(false);
      actions.create();
    });
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOpen) {
        event.stopPropagation();
        this.open(false);
      }
    });
    NARROW.addEventListener("change", () => this.open(false));
    this.open(false);
  }

  open(wanted) {
    const wasOpen = this.isOpen;
    this.isOpen = wanted && NARROW.matches;
    this.element.classList.toggle("open", this.isOpen);
    this.element.inert = NARROW.matches && !this.isOpen;
    this.veil.hidden = !this.isOpen;
    this.opener.setAttribute("aria-expanded", String(this.isOpen));
    if (this.isOpen) document.getElementById("new").focus();
    else if (wasOpen) this.opener.focus();
  }

  show(conversations, current) {
    const list = document.getElementById("past");
    const rows = conversations.map((one) => {
      const choose = el("button", {
        type: "button", class: "past-name", text: one.title || "New conversation",
        "aria-current": one === current ? "true" : null,
        on: { click: () => { this.open(false); this.actions.choose(one.id); } },
      });
      return el("li", {}, choose, iconButton("trash", `Delete ${one.title}`, () => this.actions.remove(one.id)));
    });
    list.replaceChildren(...rows);
  }
}
