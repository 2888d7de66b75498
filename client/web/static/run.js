/* One answer being made: asks the server, takes the pieces as they come, and says what is known in the end. Knows no
   elements. */

import { Failure, events } from "./server.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export class Run {
  /** Adds to `answer`; `onGrown(run)` after each piece. */
  constructor(answer, onGrown) {
    this.answer = answer;
    this.onGrown = onGrown;
    this.controller = new AbortController();
    this.pieces = 0;
    this.firstAt = 0;
    this.lastAt = 0;
  }

  /** Tokens a second so far, seen from here. */
  get rate() {
    const seconds = (this.lastAt - this.firstAt) / 1000;
    return this.pieces > 3 && seconds > 0 ? (this.pieces - 1) / seconds : null;
  }

  stop() {
    this.controller.abort();
  }

  /** To the end. Errors: `Failure`; being stopped is none. */
  async go(body) {
    let usage = null;
    let shoal = null;
    try {
      for await (const event of events("/v1/chat/completions", body, this.controller.signal)) {
        this.#take(event.choices?.[0]);
        usage = event.usage ?? usage;
        shoal = event.shoal ?? shoal;
      }
    } catch (error) {
      this.answer.via = viaOf(shoal, usage, this.rate) ?? this.answer.via;
      if (error.name !== "AbortError") throw error;
      this.answer.finish = "stopped";
      return;
    }
    this.answer.via = viaOf(shoal, usage, this.rate) ?? this.answer.via;
    if (!this.answer.finish) throw new Failure("lost", "The answer broke off before its end.");
  }

  #take(choice) {
    if (!choice) return;
    const text = choice.delta?.content ?? "";
    const thought = choice.delta?.reasoning_content ?? "";
    if (choice.finish_reason) this.answer.finish = choice.finish_reason;
    if (!text && !thought) return;
    this.pieces += 1;
    this.lastAt = performance.now();
    this.firstAt ||= this.lastAt;
    this.answer.text += text;
    if (thought) this.answer.thought = (this.answer.thought ?? "") + thought;
    this.onGrown(this);
  }
}

/** What is sent. `goOn`: the last message is an answer to be continued. */
export function bodyOf(model, messages, settings, goOn) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) if (settings[name] !== "") body[name] = Number(settings[name]);
  if (goOn) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  return body;
}

/** How an answer was made, in the form that conversations keep; null if the server did not say. */
export function viaOf(shoal, usage, rate) {
  if (!shoal && !usage) return null;
  const one = shoal?.answers?.[0] ?? {};
  return {
    peers: shoal?.peers ?? [],
    route: (one.route ?? []).filter((hop) => Array.isArray(hop.blocks)),
    repairs: shoal?.repairs ?? 0,
    moves: shoal?.moves ?? 0,
    cached_tokens: shoal?.cached_tokens ?? usage?.prompt_tokens_details?.cached_tokens ?? 0,
    ttft_s: shoal?.ttft_s ?? null,
    tokens_per_s: one.tokens_per_s || rate,
    tokens: usage?.completion_tokens ?? null,
    prompt_tokens: usage?.prompt_tokens ?? null,
  };
}

/** Tells whole sentences of a growing text, each once: screen readers would stumble over single tokens. */
export class Sentences {
  constructor(tell) {
    this.tell = tell;
    this.told = 0;
  }

  grown(text) {
    const fresh = text.slice(this.told);
    const end = Math.max(fresh.lastIndexOf("\n"), ...[". ", "! ", "? ", ": "].map((mark) => fresh.lastIndexOf(mark)));
    if (end >= 0) this.#say(text, this.told + end + 1);
  }

  end(text) {
    this.#say(text, text.length);
  }

  #say(text, end) {
    const part = text.slice(this.told, end).trim();
    this.told = end;
    if (part) this.tell(part);
  }
}
