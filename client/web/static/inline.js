/* Marks inside a line: code, strong, emphasis, struck out, links. Gives nodes; see markdown.js for what is not done.
   Underscores are left alone except around whole words: `__init__` is a name. */

import { el } from "./dom.js";

const MARKS = new RegExp(
  [
    /\\(?<escaped>[!-/:-@[-`{-~])/,
    /(?<ticks>`+)(?<code>[\s\S]*?[^`])\k<ticks>(?!`)/,
    /!?\[(?<label>(?:\\.|[^[\]\\]|\[[^[\]]*\])*)\]\(\s*<?(?<target>(?:[^\s()<>]|\([^\s()<>]*\))*)>?(?:\s+["'(][^"')\n]*["')])?\s*\)/,
    /\*\*(?=\S)(?<strong>[\s\S]*?[^\s*]\**)\*\*/,
    /\*(?=[^\s*])(?<em>[^*\n]*[^\s*])\*(?!\*)/,
    /(?<![\w_])_(?=[^\s_])(?<under>[^_\n]*[^\s_])_(?![\w_])/,
    /~~(?=\S)(?<struck>[^~\n]*\S)~~/,
    /(?<bare>https?:\/\/[^\s<>"'`\\^{}|]*[^\s<>"'`\\^{}|.,;:!?)\]*_~])/,
  ]
    .map((part) => part.source)
    .join("|"),
  "g",
);
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const MOST_NESTED = 6;

/** Nodes for the text of one paragraph, heading or cell. */
export function inline(text, depth = 0) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(MARKS)) {
    nodes.push(document.createTextNode(text.slice(at, match.index)), node(match, depth));
    at = match.index + match[0].length;
  }
  nodes.push(document.createTextNode(text.slice(at)));
  return nodes.filter((one) => one.nodeType !== Node.TEXT_NODE || one.data);
}

function node(match, depth) {
  const { escaped, code, label, target, strong, em, under, struck, bare } = match.groups;
  if (escaped !== undefined) return document.createTextNode(escaped);
  if (code !== undefined) return el("code", { text: code.replace(/^ (.*\S.*) $/s, "$1") });
  if (depth >= MOST_NESTED) return document.createTextNode(match[0]);
  if (label !== undefined) return link(target, inline(label || target, MOST_NESTED), match[0]);
  if (bare !== undefined) return link(bare, [bare], bare);
  if (strong !== undefined) return el("strong", {}, inline(strong, depth + 1));
  if (struck !== undefined) return el("del", {}, inline(struck, depth + 1));
  return el("em", {}, inline(em ?? under, depth + 1));
}

function link(target, inside, source) {
  const href = safe(target);
  if (href === null) return document.createTextNode(source);
  return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow", title: href }, inside);
}

/** An address that may be followed, or null: no scripts, no files, nothing on this origin. */
function safe(target) {
  try {
    const url = new URL(target);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
