// What one iteration drafted, in words: shared by the drawing and the table.

import { quoted, signed } from "./dom.js";
import { JOINT_RULES } from "./methods.js";

/** The nodes of a step as objects, with what was decided about each. */
export function nodesOf(step) {
  const isJoint = JOINT_RULES.includes(step.rule);
  const bar = Math.log(step.threshold);
  return step.tokens.map((_, number) => ({
    number,
    text: step.texts[number],
    parent: step.parents[number],
    depth: step.depths[number],
    draft: step.joint_draft_log_probs[number],
    target: step.joint_target_log_probs[number],
    ratio: step.joint_log_ratios[number],
    passes: isJoint ? step.joint_log_ratios[number] !== null && step.joint_log_ratios[number] > bar : null,
    isKept: step.kept_path.includes(number),
    isWinner: step.rule === "joint" && step.winner_path.includes(number),
  }));
}

/** What happened in an iteration, in one or two sentences. */
export function summaryOf(step, iteration) {
  const { next_text: next, texts, kept_path: kept } = step;
  if (!texts.length) return `Nothing was drafted; the large model wrote ${quoted(next)}.`;
  const deepest = Math.max(...step.depths);
  const text = kept.map((number) => texts[number]).join("");
  const first = kept.length
    ? `Kept ${kept.length} of ${deepest} levels, ${quoted(text)}, and the large model went on with ${quoted(next)}.`
    : `Kept nothing of ${deepest} levels; the large model wrote ${quoted(next)} instead.`;
  const cut = iteration.tokens.length < kept.length + 1 ? " The answer ended inside this block." : "";
  return first + cut + ` ${ruleOf(step)}`;
}

function ruleOf({ rule, threshold }) {
  const bar = `log\u00a0\u03c4\u00a0=\u00a0${signed(Math.log(threshold))}`;
  if (rule === "joint") {
    const winner = "log Q of the winner\u2019s path (\u2605) of the same depth";
    return `A node passes where log P of its path is more than ${bar} above ${winner}.`;
  }
  if (rule === "joint_own_path") return `A node passes where log P \u2212 log Q of its path is above ${bar}.`;
  const numbers = "the numbers are log P \u2212 log Q of each path";
  return `The rule ${rule} decides token by token or by draws of its own; ${numbers}.`;
}

/** What was decided about a node, in sentences. */
export function decisionOf(node, step) {
  const bar = signed(Math.log(step.threshold));
  const measured = step.rule === "joint" ? "log P \u2212 log Q of the winner" : "log P \u2212 log Q";
  const numbers = `log P ${signed(node.target)}, log Q ${signed(node.draft)}; ${measured} is ${signed(node.ratio)}`;
  const winner = node.isWinner ? ", on the draft\u2019s winner" : "";
  const start = `${quoted(node.text)} at depth ${node.depth}${winner}: ${numbers}`;
  if (node.passes === null) return `${start}. ${node.isKept ? "Kept." : "Not kept."}`;
  const verdict = node.passes ? `above log \u03c4 ${bar}: it passes` : `not above log \u03c4 ${bar}: it fails`;
  return `${start}, ${verdict}. ${fateOf(node, step)}`;
}

function fateOf(node, step) {
  if (node.isKept) return node.passes ? "Kept." : "Kept all the same, as a deeper node of this path passes.";
  if (!node.passes) return "Not kept.";
  return step.kept_path.length > node.depth
    ? "Not kept, as another path passes deeper."
    : "Not kept, as another path of this depth has a higher P.";
}
