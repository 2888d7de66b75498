/* The dialog of settings. The API key goes to this tab's storage only, everything else to this browser's. */

import { DEFAULTS } from "./store.js";
import { key } from "./server.js";

export class Settings {
  /** `onChange` is told when the dialog is left. */
  constructor(store, onChange) {
    this.store = store;
    this.onChange = onChange;
    this.dialog = document.getElementById("settings");
    this.form = document.getElementById("settings-form");
    this.key = document.getElementById("set-key");
    this.wrong = document.getElementById("settings-wrong");
    this.form.addEventListener("submit", (event) => this.#submit(event));
    this.dialog.addEventListener("cancel", () => this.#keep());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.#submit(event));
    document.getElementById("settings-reset").addEventListener("click", () => this.#fill(DEFAULTS));
  }

  open(atKey = false) {
    this.#fill(this.store.settings);
    this.key.value = key.get();
    this.dialog.showModal();
    if (atKey) this.key.focus();
  }

  #fill(settings) {
    this.wrong.textContent = "";
    for (const [name, value] of Object.entries(settings)) {
      const field = this.form.elements[name];
      if (field?.type === "checkbox") field.checked = Boolean(value);
      else if (field) field.value = value;
    }
  }

  #submit(event) {
    event.preventDefault();
    if (this.#keep()) this.dialog.close();
  }

  /** False, with a line that says what to mend, if something cannot be sent. */
  #keep() {
    const bad = [...this.form.elements].find((field) => field.willValidate && !field.checkValidity());
    if (bad) {
      const name = bad.labels[0]?.firstElementChild?.textContent ?? bad.name;
      this.wrong.textContent = `${name}: ${bad.validationMessage}`;
      bad.focus();
      return false;
    }
    const given = {};
    for (const [name, otherwise] of Object.entries(DEFAULTS)) {
      const field = this.form.elements[name];
      given[name] = typeof otherwise === "boolean" ? field.checked : field.value;
    }
    this.store.set(given);
    key.set(this.key.value.trim());
    this.onChange();
    return true;
  }
}
