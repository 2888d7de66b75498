/* Keeps conversations and settings in this browser: nothing of them is kept on the server. Knows no elements.

   A conversation: { id, title, at, turns }. A turn: { role: "user", text } or { role: "assistant", answers, shown }, an
   answer being { text, finish, via, at, thought? }; asking again adds an answer and leaves the old ones to look at. */

const CONVERSATIONS = "shoal.conversations";
const SETTINGS = "shoal.settings";
const MOST_KEPT = 200;

export const DEFAULTS = Object.freeze({
  temperature: "",
  top_p: "",
  max_tokens: "",
  seed: "",
  system: "",
  plain: false,
});

export class Store {
  /** `onFull` is told when the browser has no room left for conversations. */
  constructor(onFull) {
    this.onFull = onFull;
    this.conversations = this.#read(CONVERSATIONS, []).filter(isConversation);
    this.settings = { ...DEFAULTS, ...this.#read(SETTINGS, {}) };
  }

  /** Read again what another tab has written; those in `kept` stay as they are here. */
  refresh(kept) {
    const ids = new Set(kept.map((one) => one.id));
    const others = this.#read(CONVERSATIONS, []).filter((one) => isConversation(one) && !ids.has(one.id));
    this.conversations = [...kept, ...others];
    this.settings = { ...DEFAULTS, ...this.#read(SETTINGS, {}) };
  }

  find(id) {
    return this.conversations.find((one) => one.id === id) ?? null;
  }

  /** Newest first. */
  sorted() {
    return [...this.conversations].sort((a, b) => b.at - a.at);
  }

  save(conversation) {
    conversation.at = Date.now();
    if (!this.find(conversation.id)) this.conversations.push(conversation);
    this.#write();
  }

  remove(id) {
    this.conversations = this.conversations.filter((one) => one.id !== id);
    this.#write();
  }

  restore(conversation) {
    this.conversations.push(conversation);
    this.#write();
  }

  set(settings) {
    this.settings = { ...DEFAULTS, ...settings };
    put(SETTINGS, this.settings);
  }

  #write() {
    this.conversations = this.sorted().slice(0, MOST_KEPT);
    const kept = [...this.conversations];
    while (!put(CONVERSATIONS, kept) && kept.length > 1) {
      kept.pop();
      this.onFull();
    }
  }

  #read(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }
}

export function newConversation() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", at: Date.now(), turns: [] };
}

/** The first words of what was asked. */
export function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 58).trimEnd()}…` : line || "New conversation";
}

/** The messages before turn `end`, as the API takes them. */
export function messagesOf(conversation, end, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of conversation.turns.slice(0, end)) {
    const content = turn.role === "user" ? turn.text : (turn.answers[turn.shown]?.text ?? "");
    if (content) messages.push({ role: turn.role, content });
  }
  return messages;
}

function isConversation(one) {
  return typeof one?.id === "string" && typeof one.title === "string" && Array.isArray(one.turns) && one.turns.every(isTurn);
}

function isTurn(turn) {
  if (turn?.role === "user") return typeof turn.text === "string";
  return turn?.role === "assistant" && Array.isArray(turn.answers) && Number.isInteger(turn.shown);
}

/** False if there is no room. */
function put(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch (error) {
    return error.name !== "QuotaExceededError"; // forbidden storage is not mended by keeping less
  }
}
