/* What an empty conversation shows: who will answer, or what the swarm lacks and what to do about it. */

import { copyButton, el } from "./dom.js";
import { count, runs, spans } from "./words.js";

const IDEAS = [
  ["Explain", "How does a hash table find a key so quickly? Explain it simply."],
  ["Write code", "Write a Python function that merges two sorted lists."],
  ["Draft", "Draft a short, friendly note that reminds a friend to bring back a book."],
];

/** `use(text)` puts an idea into the message box. */
export function welcome(swarm, use) {
  if (swarm?.missing.length) return el("section", { class: "welcome" }, gapNotice(swarm));
  const ideas = IDEAS.map(([title, text]) =>
    el("button", { type: "button", class: "idea", on: { click: () => use(text) } }, el("b", { text: title }), el("span", { text })),
  );
  return el("section", { class: "welcome" },
    el("h2", { text: "What would you like to know?" }),
    el("p", { class: "muted", text: who(swarm) }),
    el("div", { class: "ideas" }, ideas));
}

/** Which blocks nobody holds, and the command that fills them. */
export function gapNotice(swarm) {
  const first = runs(swarm.missing)[0];
  const command = `shoal peer --model ${swarm.model} --join INVITE --blocks ${first.join(":")}`;
  const whole = swarm.missing.length === swarm.n_blocks;
  return el("div", { class: "gap-notice" },
    el("h2", { text: whole ? "No peer is here yet" : `No peer holds ${count(swarm.missing.length, "block").replace(/^[\d,]+ /, "")} ${spans(swarm.missing)}` }),
    el("p", { text: whole
      ? `The model has ${swarm.n_blocks} blocks, and somebody has to hold each of them. Until then there are no answers.`
      : "Without them no answer can be computed. Other peers move to fill a gap by themselves if that pays; you can fill it now:" }),
    el("p", { class: "small muted", text: "On a machine with room for some blocks, with the swarm's invite in place of INVITE:" }),
    el("div", { class: "command" }, el("code", { text: command }), copyButton("Copy command", () => command)));
}

function who(swarm) {
  if (!swarm) return "Answered by a swarm of volunteers' machines.";
  const here = swarm.peers.filter((peer) => peer.state === "online" && peer.seen !== "lost").length + swarm.hidden_peers;
  return `${swarm.model} answers, its ${swarm.n_blocks} blocks held by ${count(here, "volunteer's machine", "volunteers' machines")}.`;
}
