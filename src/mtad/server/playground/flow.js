// Lays an answer's text out over its tokens.

const BROKEN = "\ufffd";

/**
 * Texts of single tokens do not always add up to the answer: a character may take several tokens, some tokeniser's
 * single tokens lack their leading blank, special tokens do not show. This cuts the answer's own text into parts that
 * know their tokens, as both come in.
 */
export class TextFlow {
  constructor() {
    this.rest = "";
    this.waiting = [];
  }

  /** Takes new text and tokens (objects with a `text`); returns the parts that are certain, {text, tokens}. */
  add(text, tokens) {
    this.rest += text;
    this.waiting.push(...tokens);
    const parts = [];
    for (let part = this.#take(); part; part = this.#take()) parts.push(part);
    return parts;
  }

  /** What is left at the end; tokens that show no text get parts of their own. */
  finish() {
    const parts = this.add("", []);
    if (this.rest && this.waiting.length) parts.push(this.#part(this.waiting.length, this.rest.length));
    while (this.waiting.length) parts.push(this.#part(1, 0));
    if (this.rest) parts.push(this.#part(0, this.rest.length));
    return parts;
  }

  #take() {
    if (!this.waiting.length || !this.rest) return null;
    const { text } = this.waiting[0];
    if (text.includes(BROKEN)) return this.#takeBroken();
    for (const lead of ["", " "]) {
      const wanted = lead + text;
      if (text && this.rest.startsWith(wanted)) return this.#part(1, wanted.length);
      if (wanted.startsWith(this.rest)) return null;
    }
    return this.#part(1, 0);
  }

  #takeBroken() {
    const next = this.waiting.findIndex((token) => token.text && !token.text.includes(BROKEN));
    const place = next < 0 ? -1 : this.rest.indexOf(this.waiting[next].text, 1);
    return place < 0 ? null : this.#part(next, place);
  }

  #part(numTokens, length) {
    const part = { text: this.rest.slice(0, length), tokens: this.waiting.slice(0, numTokens) };
    this.rest = this.rest.slice(length);
    this.waiting = this.waiting.slice(numTokens);
    return part;
  }
}
