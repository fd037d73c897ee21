// Talks to the server that sent this page, and to no other.

/** A request that the server refused, or an answer that it broke off, in the server's own sentence. */
export class Refusal extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

const headers = (key) => (key ? { authorization: `Bearer ${key}` } : {});

/** A JSON document of the server. */
export async function getJson(path, key = "") {
  const reply = await answer(path, { headers: headers(key) });
  return reply.json();
}

/** Posts a request for a stream and hands over every chunk as it comes. */
export async function streamJson(path, body, { key, signal, onChunk }) {
  const reply = await answer(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  for await (const text of events(reply.body)) {
    if (text === "[DONE]") return;
    const chunk = JSON.parse(text);
    if (chunk.error) throw new Refusal(chunk.error.message, 200, chunk.error.param);
    onChunk(chunk);
  }
  throw new Refusal("The stream broke off before its end; run it again.");
}

async function answer(path, options) {
  let reply;
  try {
    reply = await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer; check that mtad serve is still running.");
  }
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

async function refusal(reply) {
  try {
    const { error } = await reply.json();
    return new Refusal(error.message, reply.status, error.param);
  } catch {
    return new Refusal(
      `The server answered with status ${reply.status} and no reason; its log may say more.`,
      reply.status,
    );
  }
}

/** The data of server-sent events, one after the other. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
