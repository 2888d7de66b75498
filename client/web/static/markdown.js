/* Cuts a model's text into blocks and shows them as elements. The text is a stranger's: it becomes text nodes in elements
   chosen here, never HTML; links go to http, https and mailto only, and pictures are shown as links, since loading one
   would tell its server who is reading. */

import { copyButton, el } from "./dom.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>[ ]?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const INDENTED = /^(?: {4}|\t)/;
const MOST_NESTED = 8;

/** Show `text` in `container`. Blocks that have not changed since the last call stay: a streamed text grows at its end. */
export function show(container, text) {
  const fresh = blocks(text);
  const kept = container.shownBlocks ?? [];
  let same = 0;
  while (same < fresh.length && same < kept.length && fresh[same].source === kept[same].source) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  container.append(...fresh.slice(same).map((block) => element(block, 0)));
  container.shownBlocks = fresh;
}

/** The blocks of a text: each has `kind`, its `source` and what its kind needs. Pure. */
export function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = READERS.map((read) => read(lines, at)).find(Boolean) ?? paragraph(lines, at);
    block.source = lines.slice(at, block.end).join("\n") + (block.open ? "\0" : "");
    found.push(block);
    at = block.end;
  }
  return found;
}

const READERS = [fence, heading, rule, quote, list, table, indented];

function fence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const close = new RegExp(`^ {0,3}${open[1][0]}{${open[1].length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  const code = lines.slice(at + 1, end).join("\n");
  return { kind: "code", language: open[2], code, open: end >= lines.length, end: Math.min(end + 1, lines.length) };
}

function heading(lines, at) {
  const match = HEADING.exec(lines[at]);
  return match && { kind: "heading", level: match[1].length, text: match[2], end: at + 1 };
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? { kind: "rule", end: at + 1 } : null;
}

function quote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  return end > at ? { kind: "quote", text: strip(lines.slice(at, end), QUOTE), end } : null;
}

function list(lines, at) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const mark = ITEM.exec(lines[end]);
    if (!mark || /\d/.test(mark[2]) !== ordered || RULE.test(lines[end])) break;
    const width = mark[0].trimEnd().length + 1;
    const own = [lines[end].slice(Math.min(mark[0].length, width))];
    end += 1;
    while (end < lines.length && belongs(lines, end, width)) {
      own.push(lines[end].slice(Math.min(width, /^ */.exec(lines[end])[0].length)));
      end += 1;
    }
    loose ||= own.slice(0, -1).some((line) => !line.trim());
    items.push(own.join("\n").trimEnd());
  }
  return { kind: "list", ordered, start: parseInt(first[2], 10) || 0, items, loose, end };
}

/** Whether a line goes on with a list's item whose text begins at column `width`. */
function belongs(lines, at, width) {
  const line = lines[at];
  const deep = Math.min(width, 2);
  if (line.trim()) {
    const indent = /^ */.exec(line)[0].length;
    return indent >= deep || (Boolean(lines[at - 1].trim()) && !ITEM.test(line) && !starts(lines, at));
  }
  const next = lines.slice(at + 1).find((later) => later.trim());
  return next !== undefined && (/^ */.exec(next)[0].length >= deep || (at + 1 < lines.length && ITEM.test(lines[at + 1])));
}

function table(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !DELIMITERS.test(lines[at + 1])) return null;
  const head = cells(lines[at]);
  const marks = cells(lines[at + 1]);
  if (head.length !== marks.length) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end += 1;
  const align = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "left"));
  return { kind: "table", head, align, rows: lines.slice(at + 2, end).map(cells), end };
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function indented(lines, at) {
  let end = at;
  while (end < lines.length && (INDENTED.test(lines[end]) || !lines[end].trim())) end += 1;
  while (end > at && !lines[end - 1].trim()) end -= 1;
  return end > at ? { kind: "code", language: "", code: strip(lines.slice(at, end), INDENTED), end } : null;
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !starts(lines, end)) end += 1;
  return { kind: "paragraph", text: lines.slice(at, end).join("\n").trim(), end };
}

function starts(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function strip(lines, mark) {
  return lines.map((line) => line.replace(mark, "")).join("\n");
}

// -- showing ---------------------------------------------------------------------------------------------------------

function element(block, depth) {
  return SHOWERS[depth > MOST_NESTED ? "paragraph" : block.kind](block, depth);
}

const SHOWERS = {
  paragraph: (block) => el("p", {}, inline(block.text ?? block.source)),
  heading: (block) => el(`h${Math.min(block.level + 2, 6)}`, { class: `h${block.level}` }, inline(block.text)),
  rule: () => el("hr"),
  quote: (block, depth) => el("blockquote", {}, within(block.text, depth)),
  list: (block, depth) => {
    const given = block.ordered && block.start !== 1 ? { start: block.start } : {};
    return el(block.ordered ? "ol" : "ul", given, block.items.map((item) => el("li", {}, itemNodes(item, block.loose, depth))));
  },
  table: (block) => {
    const cell = (tag) => (text, n) => el(tag, { class: block.align[n] }, inline(text ?? ""));
    const row = (texts) => el("tr", {}, block.head.map((_, n) => cell("td")(texts[n], n)));
    const head = el("thead", {}, el("tr", {}, block.head.map(cell("th"))));
    const body = el("tbody", {}, block.rows.map(row));
    return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {}, head, body));
  },
  code: (block) => {
    const name = block.language || "code";
    const head = el("div", { class: "code-head" }, el("span", { text: name }), copyButton("Copy code", () => block.code));
    const code = el("code", {}, highlight(block.code, block.language));
    return el("div", { class: "code" }, head, el("pre", { tabindex: "0", "aria-label": `${name}` }, code));
  },
};

function within(text, depth) {
  return blocks(text).map((block) => element(block, depth + 1));
}

/** A tight item's first paragraph stands without one. */
function itemNodes(item, loose, depth) {
  const task = /^\[([ xX])\][ ]/.exec(item);
  const inside = blocks(task ? item.slice(4) : item);
  const box = task ? [el("span", { class: "box", text: task[1] === " " ? "☐ " : "☑ " })] : [];
  const nodes = inside.map((block) =>
    !loose && block.kind === "paragraph" ? inline(block.text) : [element(block, depth + 1)],
  );
  return [...box, ...nodes.flat()];
}
