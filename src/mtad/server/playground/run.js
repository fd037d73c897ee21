// One answer while it comes in: its iterations, tokens and figures.

import { streamJson } from "./client.js";
import { TextFlow } from "./flow.js";

const WINDOW_S = 0.5;
const BURST_S = 0.05;

/** An answer. States: running, done, stopped, failed. */
export class Run {
  constructor(request, onChange) {
    this.request = request;
    this.state = "running";
    this.text = "";
    this.parts = [];
    this.tokens = [];
    this.iterations = [];
    this.statistics = null;
    this.isLossless = null;
    this.error = null;
    this.began = performance.now();
    this.control = new AbortController();
    this.flow = new TextFlow();
    this.onChange = onChange;
  }

  /** Asks the server; ends when the answer has. */
  async start(key) {
    const { path, body } = this.request;
    try {
      await streamJson(path, body, { key, signal: this.control.signal, onChunk: (chunk) => this.#take(chunk) });
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      this.error = this.state === "failed" ? error : null;
    }
    this.parts.push(...this.flow.finish());
    this.onChange();
  }

  /** Ends the answer here; the server frees its place as it notices. */
  stop() {
    this.control.abort();
  }

  #take(chunk) {
    const choice = chunk.choices[0];
    if (!choice?.mtad) return;
    const text = choice.delta ? choice.delta.content : choice.text;
    const { step, statistics, is_lossless: isLossless } = choice.mtad;
    const tokens = readTokens(choice).map((token, place) => ({
      ...token,
      place: this.tokens.length + place,
      iteration: this.iterations.length,
    }));
    if (tokens.length) {
      const kept = tokens.filter((token) => token.isDrafted).length;
      this.iterations.push({
        tokens,
        step,
        kept,
        at: (performance.now() - this.began) / 1000,
        total: this.tokens.length + tokens.length,
      });
    }
    this.tokens.push(...tokens);
    this.text += text;
    this.parts.push(...this.flow.add(text, tokens));
    if (statistics) Object.assign(this, { statistics, isLossless });
    this.onChange();
  }

  /** Tokens per call after each iteration. */
  get tokensPerCall() {
    return this.iterations.map(({ total }, place) => total / (place + 1));
  }

  /** Share of the iterations that kept at least 1, 2, ... drafted tokens. */
  get keptByDepth() {
    const deepest = Math.max(
      this.statistics?.acceptance_by_depth.length ?? 0,
      ...this.iterations.map(({ kept }) => kept),
    );
    const shares = [];
    for (let depth = 1; depth <= deepest; depth++) {
      shares.push(this.iterations.filter(({ kept }) => kept >= depth).length / this.iterations.length);
    }
    return this.statistics?.acceptance_by_depth ?? shares;
  }

  /**
   * Seconds since the first iteration, and speed over the last `width` iterations and half a second. Of iterations that
   * came in one burst, the last one counts.
   */
  speeds(width = 8) {
    const points = [];
    let from = 0;
    this.iterations.forEach(({ at, total }, place) => {
      while (from + width < place && at - this.iterations[from + 1].at >= WINDOW_S) from += 1;
      const past = at - this.iterations[from].at;
      if (past < WINDOW_S) return;
      const point = { at: at - this.iterations[0].at, speed: (total - this.iterations[from].total) / past };
      if (points.length && point.at - points.at(-1).at < BURST_S) points.pop();
      points.push(point);
    });
    return points;
  }

  /** Figures so far, or the server's own once it has sent them. */
  figures() {
    const [first, last] = [this.iterations[0], this.iterations.at(-1)];
    const calls = this.iterations.length;
    const sum = this.tokens.reduce((total, { logProb }) => total + logProb, 0);
    const seconds = calls > 1 ? last.at - first.at : null;
    const live = {
      target_calls: calls,
      tokens_per_call: calls ? this.tokens.length / calls : null,
      perplexity: this.tokens.length ? Math.exp(-sum / this.tokens.length) : null,
      tokens_per_s: seconds ? (last.total - first.total) / seconds : null,
      refused_share: null,
      finish_reason: { running: "still running", stopped: "stopped here", failed: "failed" }[this.state] ?? null,
      seed: this.request.body.seed,
    };
    return { ...live, ...this.statistics, num_tokens: this.tokens.length };
  }
}

/** Tokens of a chunk, of a chat's or of a raw text's. */
function readTokens(choice) {
  const { provenance = [] } = choice.mtad;
  const { content, tokens, token_logprobs: values, top_logprobs: tops } = choice.logprobs ?? {};
  const rows = content
    ? content.map((item) => ({
        text: item.token,
        logProb: item.logprob,
        best: item.top_logprobs.map((other) => [other.token, other.logprob]),
      }))
    : (tokens ?? []).map((text, place) => ({
        text,
        logProb: values[place],
        best: Object.entries(tops?.[place] ?? {}),
      }));
  return rows.map((row, place) => ({ ...row, isDrafted: provenance[place] === "drafted" }));
}
