/* Talks to the server that this page came from, and to nobody else. Knows no elements. */

const KEY = "shoal.key";

/** What went wrong, for people and for programs. `kind`: busy, missing, broken, key, refused, lost, server. */
export class Failure extends Error {
  constructor(kind, message, { status = 0, retryAfter = null, code = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, retryAfter, code });
  }

  /** Whether asking again later may help without anybody doing anything here. */
  get passes() {
    return ["busy", "missing", "broken", "lost"].includes(this.kind);
  }
}

/** The key lives as long as this tab, and is sent to this origin only. */
export const key = {
  get: () => guarded(() => sessionStorage.getItem(KEY)) ?? "",
  set: (value) => guarded(() => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY))),
};

/** A JSON answer. Errors: `Failure`. */
export async function getJson(path, signal) {
  return (await ask(path, { signal })).json();
}

/** The events of a stream, parsed, as they come; before them, if its headers say so, who makes the answer. Errors: `Failure`; an abort ends it as `AbortError`. */
export async function* events(path, body, signal) {
  const response = await ask(path, { body, signal });
  const made = provenance(response.headers);
  if (made) yield { shoal: made };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reading(reader);
      if (done) return;
      const parts = (waiting + value).replace(/\r\n/g, "\n").split("\n\n");
      waiting = parts.pop();
      for (const part of parts) {
        const data = dataOf(part);
        if (data === "[DONE]") return;
        if (data) yield parsed(data);
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // hangs up: the peers let go of what they hold for us
  }
}

/** What the headers tell of an answer, in the form of the `shoal` object at its end; null if they tell nothing. */
function provenance(headers) {
  const listed = (name) => (headers.get(name) ?? "").split(", ").filter(Boolean);
  const peers = listed("x-shoal-peers");
  if (!peers.length) return null;
  const spans = listed("x-shoal-blocks").map((span) => span.split(":").map(Number));
  const route = spans.length === peers.length ? peers.map((peer, at) => ({ peer, blocks: spans[at] })) : [];
  const number = (name) => Number(headers.get(name) ?? 0);
  return {
    peers,
    repairs: number("x-shoal-repairs"),
    cached_tokens: number("x-shoal-cached-tokens"),
    ttft_s: number("x-shoal-ttft-ms") / 1000,
    answers: [{ route }],
  };
}

async function ask(path, { body, signal }) {
  const headers = { Accept: body ? "text/event-stream" : "application/json, text/event-stream" };
  if (body) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const init = { method: body ? "POST" : "GET", headers, signal, cache: "no-store", redirect: "error" };
  if (body) init.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("lost", "The connection to the server was lost.");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function reading(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("lost", "The connection to the server was lost.");
  }
}

function dataOf(part) {
  const lines = part.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

function parsed(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new Failure("server", "The server sent something that is not JSON.");
  }
  if (event.error) throw failure(Number(event.error.status) || statusOf(event.error), event.error, null);
  return event;
}

/** Errors inside a stream have no status of their own. */
function statusOf(error) {
  if (error.type === "rate_limit_error") return 429;
  return error.type === "service_unavailable_error" ? 503 : 500;
}

async function failureOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's page, say
  }
  const wait = parseInt(response.headers.get("Retry-After") ?? "", 10);
  return failure(response.status, error, Number.isFinite(wait) ? wait : null);
}

function failure(status, error, retryAfter) {
  const message = String(error.message ?? `The server answered ${status}.`);
  const unserved = error.code === "missing_blocks" ? "missing" : "broken";
  const kinds = { 401: "key", 429: "busy", 502: "lost", 503: unserved, 504: "lost" };
  const kind = kinds[status] ?? (status >= 500 ? "server" : "refused");
  return new Failure(kind, message, { status, retryAfter, code: error.code ?? null });
}

function guarded(action) {
  try {
    return action();
  } catch {
    return null; // storage may be forbidden
  }
}
