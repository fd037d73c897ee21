// What the methods are, in a line each, and which dials they leave alone.

export const METHODS = {
  mmtad: { note: "A tree of beams; the deepest path is kept whose joint probability holds up.", idle: [] },
  mtad: { note: "The best beam only; its longest prefix is kept whose joint probability holds up.", idle: [] },
  speculative: {
    note: "One drafted chain, token by token rejection: the large model\u2019s own distribution.",
    idle: ["threshold", "beam_width"],
  },
  autoregressive: { note: "The large model alone, one token a call.", idle: ["threshold", "beam_width", "gamma"] },
};

/** Rules that hold a joint ratio against the threshold, as the tree shows it. */
export const JOINT_RULES = ["joint", "joint_own_path"];

export const DIALS = {
  method: "Method",
  threshold: "Threshold",
  gamma: "Gamma",
  beam_width: "Beam width",
  temperature: "Temperature",
  top_k: "Top-k",
  top_p: "Top-p",
  max_new_tokens: "Most tokens",
  seed: "Seed",
  drafter: "Drafter",
  verifier: "Rule",
};

/** Names of the server's sentences and fields, by names of requests. */
export const REQUEST_NAMES = { max_new_tokens: "max_tokens" };
