/* The chat page: which conversation is shown, what is being answered in it, and what the keys do. */

import { AnswerView, QuestionView } from "./answer.js";
import { el, say } from "./dom.js";
import { Pill } from "./pill.js";
import { Run, Sentences, bodyOf } from "./run.js";
import { Failure, getJson } from "./server.js";
import { Settings } from "./settings.js";
import { Side } from "./side.js";
import { Store, messagesOf, newConversation, titleOf } from "./store.js";
import { Trouble } from "./trouble.js";
import { welcome } from "./welcome.js";

const SAVE_MS = 2000;
const NEAR_END_PX = 80;
const byId = (id) => document.getElementById(id);

class Chat {
  constructor() {
    this.store = new Store(() => this.toast("This browser has no room left: the oldest conversations are not kept."));
    this.runs = new Map(); // by conversation id: { run, answer, view }
    this.troubles = new Map(); // by conversation id: { trouble, index }
    this.model = null;
    this.swarm = null;
    this.names = new Map();
    this.stuck = true; // to the end of the thread
    this.lastTop = 0;
    this.settings = new Settings(this.store, () => this.settingsChanged());
    this.side = new Side({ choose: (id) => this.choose(id), remove: (id) => this.remove(id), create: () => this.choose(null) });
    this.pill = new Pill((swarm) => this.look(swarm));
    this.wire();
    this.choose(location.hash.slice(1) || null);
    this.learnModel();
    this.pill.look();
  }

  wire() {
    this.input = byId("input");
    this.thread = byId("thread");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("open-settings").addEventListener("click", () => this.settings.open());
    byId("latest").addEventListener("click", () => this.toEnd(true));
    this.input.addEventListener("input", () => this.sized());
    this.input.addEventListener("keydown", (event) => this.typed(event));
    this.thread.addEventListener("scroll", () => this.scrolled(), { passive: true });
    document.addEventListener("keydown", (event) => this.pressed(event));
    window.addEventListener("hashchange", () => location.hash.slice(1) !== this.conversation.id && this.choose(location.hash.slice(1) || null));
    window.addEventListener("pagehide", () => this.runs.size && this.store.save(this.conversation));
    window.addEventListener("storage", (event) => event.key?.startsWith("shoal.") && this.otherTab());
    new ResizeObserver(() => this.stuck && this.toEnd(false)).observe(byId("turns"));
  }

  // -- keys ----------------------------------------------------------------------------------------------------------

  typed(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && !this.input.value) {
      const last = this.views.findLast((view) => view instanceof QuestionView);
      if (last) {
        event.preventDefault();
        last.edit();
      }
    }
  }

  pressed(event) {
    const isTyping = event.target.closest?.("input, textarea, dialog");
    if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) this.stop();
    else if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.input.focus();
    }
  }

  // -- conversations -------------------------------------------------------------------------------------------------

  choose(id) {
    this.conversation = this.store.find(id) ?? newConversation();
    const known = this.store.find(this.conversation.id);
    history.replaceState(null, "", known ? `#${this.conversation.id}` : location.pathname);
    this.draw();
    this.toEnd(true);
    this.input.focus();
  }

  remove(id) {
    const gone = this.store.find(id);
    this.runs.get(id)?.run.stop();
    this.forgetTrouble(id);
    this.store.remove(id);
    if (this.conversation.id === id) this.choose(null);
    else this.list();
    this.toast("Deleted.", "Undo", () => {
      this.store.restore(gone);
      this.choose(id);
    });
  }

  otherTab() {
    this.store.refresh(this.store.conversations.filter((one) => this.runs.has(one.id) || one === this.conversation));
    this.list();
  }

  list() {
    this.side.show(this.store.sorted(), this.conversation);
    document.title = `${this.conversation.title || "Chat"} · Shoal`;
  }

  draw() {
    const { turns } = this.conversation;
    this.views = turns.map((turn, index) => this.viewOf(turn, index));
    byId("turns").replaceChildren(...(turns.length ? this.views.map((view) => view.element) : [this.greeting()]));
    byId("turns").classList.toggle("empty", !turns.length);
    this.list();
    this.busy();
  }

  viewOf(turn, index) {
    if (turn.role === "user") return new QuestionView(turn, (text) => this.edit(index, text));
    const actions = {
      again: () => this.answer(index),
      goOn: () => this.answer(index, true),
      turnTo: (number) => {
        turn.shown = number;
        this.store.save(this.conversation);
        view.update();
      },
    };
    const view = new AnswerView(turn, actions, { plain: () => this.store.settings.plain, nameOf: (peer) => this.names.get(peer) });
    view.onGrown = () => this.stuck && this.toEnd(false);
    const job = this.runs.get(this.conversation.id);
    if (job && job.turn === turn) {
      job.view = view;
      view.isLive = true;
    }
    const known = this.troubles.get(this.conversation.id);
    if (known?.turn === turn) view.trouble.replaceChildren(known.trouble.element);
    view.update();
    return view;
  }

  greeting() {
    return welcome(this.swarm, (text) => {
      this.input.value = text;
      this.sized();
      this.input.focus();
    });
  }

  // -- asking --------------------------------------------------------------------------------------------------------

  send() {
    const text = this.input.value.trim();
    if (!text || this.runs.has(this.conversation.id)) return;
    this.input.value = "";
    this.sized();
    this.ask(this.conversation.turns.length, text);
  }

  edit(index, text) {
    this.stop();
    this.conversation.turns.length = index;
    this.ask(index, text.trim());
    this.input.focus();
  }

  ask(index, text) {
    const { turns } = this.conversation;
    if (!turns.length || !this.conversation.title) this.conversation.title = titleOf(text);
    turns[index] = { role: "user", text };
    turns[index + 1] = { role: "assistant", answers: [], shown: 0 };
    this.store.save(this.conversation);
    history.replaceState(null, "", `#${this.conversation.id}`);
    this.draw();
    this.answer(index + 1);
    this.toEnd(true);
  }

  /** Answer turn `index`, anew or going on from where its answer ended. */
  async answer(index, goOn = false, tries = 0) {
    const conversation = this.conversation;
    if (this.runs.has(conversation.id)) return;
    this.forgetTrouble(conversation.id);
    conversation.turns.length = index + 1;
    const turn = conversation.turns[index];
    this.draw();
    const goesOn = goOn || Boolean(turn.answers[turn.shown]?.text && tries);
    if (!goesOn) this.addAnswer(turn);
    const answer = turn.answers[turn.shown];
    answer.finish = "";
    const messages = messagesOf(conversation, goesOn ? index + 1 : index, this.store.settings.system);
    const sentences = new Sentences(say);
    sentences.told = answer.text.length;
    const job = { turn, view: this.views[index], savedAt: Date.now() };
    job.run = new Run(answer, (run) => this.grown(job, run, sentences, conversation));
    this.runs.set(conversation.id, job);
    job.view.isLive = true;
    job.view.update();
    this.busy();
    say("Answering.");
    let failure = null;
    try {
      await job.run.go(bodyOf(this.model ?? (await this.learnModel()), messages, this.store.settings, goesOn));
    } catch (error) {
      failure = error instanceof Failure ? error : new Failure("server", String(error));
      answer.finish = answer.text ? "lost" : "";
    }
    sentences.end(answer.text);
    this.runs.delete(conversation.id);
    if (this.store.find(conversation.id)) this.store.save(conversation);
    if (failure) this.failed(failure, conversation, turn, index, tries);
    job.view.isLive = false;
    job.view.update();
    this.list();
    this.busy();
    this.pill.look();
  }

  /** A new answer beside the earlier ones; one that stayed empty makes room. */
  addAnswer(turn) {
    turn.answers = turn.answers.filter((one) => one.text);
    turn.answers.push({ text: "", finish: "", via: null, at: Date.now() });
    turn.shown = turn.answers.length - 1;
  }

  grown(job, run, sentences, conversation) {
    job.view.grown(run.rate);
    sentences.grown(run.answer.text);
    if (Date.now() - job.savedAt > SAVE_MS) {
      job.savedAt = Date.now();
      this.store.save(conversation);
    }
  }

  failed(failure, conversation, turn, index, tries) {
    const retry = () => this.conversation === conversation && this.answer(index, false, tries + 1);
    const trouble = new Trouble(failure, tries, { retry, openSettings: () => this.settings.open(true) });
    this.troubles.set(conversation.id, { trouble, turn, index, kind: failure.kind });
    if (this.conversation === conversation) this.views[index]?.trouble.replaceChildren(trouble.element);
  }

  forgetTrouble(id) {
    this.troubles.get(id)?.trouble.stop();
    this.troubles.delete(id);
  }

  stop() {
    this.runs.get(this.conversation.id)?.run.stop();
    this.troubles.get(this.conversation.id)?.trouble.stop();
  }

  settingsChanged() {
    const known = this.troubles.get(this.conversation.id);
    this.pill.look();
    if (known?.kind === "key") this.answer(known.index, false, 1);
    else this.draw();
  }

  async learnModel() {
    try {
      const { data } = await getJson("/v1/models");
      this.model = data[0]?.id ?? null;
      byId("model").textContent = this.model ?? "Shoal";
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
    }
    return this.model;
  }

  look(swarm) {
    const isFilled = Boolean(this.swarm?.missing.length && swarm && !swarm.missing.length);
    this.swarm = swarm ?? this.swarm;
    const known = this.troubles.get(this.conversation.id);
    if (isFilled && known?.kind === "missing") known.trouble.sooner(); // no need to wait for the countdown
    for (const peer of swarm?.peers ?? []) if (peer.name) this.names.set(peer.peer, peer.name);
    if (!this.model && swarm) this.learnModel();
    if (!this.conversation.turns.length) byId("turns").replaceChildren(this.greeting());
  }

  // -- the page ------------------------------------------------------------------------------------------------------

  busy() {
    const isBusy = this.runs.has(this.conversation.id);
    const hadFocus = document.activeElement === byId("stop") || document.activeElement === byId("send");
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    if (hadFocus) this.input.focus();
  }

  sized() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, innerHeight * 0.4)}px`;
  }

  get atEnd() {
    return this.thread.scrollHeight - this.thread.scrollTop - this.thread.clientHeight < NEAR_END_PX;
  }

  scrolled() {
    const top = this.thread.scrollTop;
    if (this.atEnd) this.stuck = true;
    else if (top < this.lastTop - 1) this.stuck = false; // a reader's own hand: what grows pushes nothing up
    this.lastTop = top;
    byId("latest").hidden = this.stuck;
  }

  toEnd(now) {
    if (now) this.stuck = true;
    this.thread.scrollTop = this.thread.scrollHeight;
  }

  toast(text, action, onAction) {
    const box = byId("toast");
    clearTimeout(this.toasting);
    const button = action && el("button", { type: "button", class: "ghost named", text: action, on: { click: () => { box.hidden = true; onAction(); } } });
    box.replaceChildren(...[el("span", { text }), button].filter(Boolean));
    box.hidden = false;
    say(text);
    this.toasting = setTimeout(() => { box.hidden = true; }, 8000);
  }
}

new Chat();
