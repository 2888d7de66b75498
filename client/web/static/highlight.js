/* Colours code a little: comments, strings, numbers and words that most languages share. Knows no grammar; a wrong guess
   costs a colour and nothing else. */

import { el } from "./dom.js";

const WORDS =
  "and as assert async await bool break case catch char class const constexpr continue crate def default defer del do " +
  "double elif else end enum except export extends extern false final finally float fn for foreach from func function " +
  "global goto if impl implements import in instanceof int interface is lambda let long loop match mod module mut " +
  "namespace new nil None not null nullptr of or override package pass private protected pub public raise readonly " +
  "require return Self self short signed sizeof static struct super switch template then this throw throws trait true " +
  "True False try type typedef typeof undefined union unsafe unsigned use using var virtual void volatile when where " +
  "while with yield SELECT FROM WHERE INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE JOIN LEFT ON GROUP BY ORDER " +
  "LIMIT AND OR NOT NULL AS echo fi done esac";
const KEYWORDS = new Set(WORDS.split(" "));
const HASH = new Set("py python sh bash shell zsh console yaml yml toml ruby rb perl r make makefile dockerfile ini".split(" "));
const DASHES = new Set("sql lua haskell hs ada elm".split(" "));
const PLAIN = new Set("text txt plain output log diff markdown md".split(" "));
const MOST_CHARACTERS = 20000;

const TOKENS =
  /(?<block>\/\*[\s\S]*?(?:\*\/|$))|(?<slashes>\/\/[^\n]*)|(?<hash>#[^\n]*)|(?<dashes>--[^\n]*)|(?<string>"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*`?)|(?<number>\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b)|(?<word>[A-Za-z_$][\w$]*)/g;

/** Nodes for `code`, which is in `language` (as its fence says; may be empty). */
export function highlight(code, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || code.length > MOST_CHARACTERS) return [document.createTextNode(code)];
  const nodes = [];
  let at = 0;
  for (const match of code.matchAll(TOKENS)) {
    const kind = kindOf(match, name, code);
    if (!kind) continue;
    if (match.index > at) nodes.push(document.createTextNode(code.slice(at, match.index)));
    nodes.push(el("span", { class: `tok-${kind}`, text: match[0] }));
    at = match.index + match[0].length;
  }
  nodes.push(document.createTextNode(code.slice(at)));
  return nodes;
}

function kindOf(match, language, code) {
  const { block, slashes, hash, dashes, string, number, word } = match.groups;
  if (hash !== undefined) return HASH.has(language) || language === "" ? "comment" : null;
  if (dashes !== undefined) return DASHES.has(language) ? "comment" : null;
  if (block !== undefined || slashes !== undefined) return HASH.has(language) ? null : "comment";
  if (string !== undefined) return "string";
  if (number !== undefined) return "number";
  if (KEYWORDS.has(word)) return "keyword";
  return code[match.index + word.length] === "(" ? "call" : null;
}
