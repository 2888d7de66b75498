/* Owns the choice of light or dark: runs before the first paint, so that no page flashes in the wrong one. */
"use strict";

(() => {
  const KEY = "shoal.theme";
  const CHOICES = ["system", "light", "dark"];
  const root = document.documentElement;

  const stored = () => {
    try {
      const found = localStorage.getItem(KEY);
      return CHOICES.includes(found) ? found : "system";
    } catch {
      return "system"; // storage may be forbidden
    }
  };

  const apply = (choice) => {
    root.dataset.theme = choice;
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      const next = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      button.setAttribute("aria-label", `Colours: ${choice}. Change to ${next}`);
      button.title = `Colours: ${choice}`;
    }
  };

  apply(stored());
  document.addEventListener("DOMContentLoaded", () => {
    apply(stored());
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.addEventListener("click", () => {
        const choice = CHOICES[(CHOICES.indexOf(root.dataset.theme) + 1) % CHOICES.length];
        try {
          localStorage.setItem(KEY, choice);
        } catch {
          // it then lasts as long as this page
        }
        apply(choice);
      });
    }
  });
  window.addEventListener("storage", (event) => {
    if (event.key === KEY) apply(stored());
  });
})();
