// Who has the most, by source and by destination, each with its share on each firewall.

import {$, attr, el, keyed, show, text} from "./dom.js";
import {get} from "./api.js";
import {compact, date, list, number, percent} from "./format.js";

const every = 1_000; // ms
const settle = 200; // ms: who types is not asked about each letter
const colours = 8; // in the style sheet; firewalls share them in the order of their names
const most = 5; // firewalls named in words

export class Top {
  constructor(open, fleet) {
    this.open = open; // called with an address
    this.fleet = fleet;
    this.realm = "";
    this.paused = false;
    this.turn = 0; // of the last question: answers to earlier ones are not shown
    this.form = $("top-form");
    this.by = {src: new Table($("by-src"), open), dst: new Table($("by-dst"), open)};
    this.choose([10, 60]);
    this.form.addEventListener("submit", (e) => e.preventDefault());
    let typed;
    this.form.addEventListener("input", () => {
      clearTimeout(typed);
      typed = setTimeout(() => this.ask(true), settle);
    });
    $("now").addEventListener("click", () => { this.form.at.value = ""; this.ask(true); });
  }

  // run asks again and again, while somebody looks.
  run() {
    const step = async () => {
      // A minute of the past does not change, and what was refused will be again.
      const done = this.answered === JSON.stringify(this.question()) && (this.refused || this.form.at.value);
      if (!document.hidden && !this.busy && !done) await this.ask();
      setTimeout(step, every);
    };
    step();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.ask(); });
  }

  question() {
    const f = this.form;
    const at = f.at.value ? new Date(f.at.value).getTime() : "";
    return {
      metric: f.metric.value, window: at || f.metric.value === "active" ? "" : f.window.value, firewall: f.firewall.value,
      realm: f.firewall.value ? "" : this.realm, prefix: f.prefix.value.trim(), limit: f.limit.value, allowlisted: f.hide.checked ? "hide" : "", at,
    };
  }

  // ask asks, and shows the answer. While it is paused only what a person does counts.
  async ask(byHand = false) {
    if (this.paused && !byHand) return;
    const turn = ++this.turn, q = this.question();
    this.busy = true;
    try {
      const [src, dst] = await Promise.all(["src", "dst"].map((by) => get("top", {by, ...q})));
      if (turn !== this.turn || (this.paused && !byHand)) return;
      this.answered = JSON.stringify(q);
      this.refused = false;
      attr(this.form.prefix, "aria-invalid", false);
      if (src.windows) this.choose(src.windows);
      for (const r of [src, dst]) this.by[r.by].show(r, this.fleet.names());
      this.say(src, false);
    } catch (e) {
      if (turn !== this.turn) return;
      attr(this.form.prefix, "aria-invalid", e.status === 400 && q.prefix !== "" && "true");
      if (e.status === 400) {
        this.answered = JSON.stringify(q);
        this.refused = true;
      }
      this.say(`${e.message}. The rows are of the question before.`, true);
    } finally {
      if (turn === this.turn) this.busy = false;
    }
  }

  // say says what the rows do not.
  say(r, bad) {
    const note = $("top-note");
    attr(note, "class", bad ? "note bad" : "note");
    show($("now"), this.form.at.value !== "");
    attr(this.form.window, "disabled", this.form.metric.value === "active" || this.form.at.value !== "");
    if (bad) {
      text(note, r);
      return;
    }
    const says = [];
    if (r.at) says.push(`As it was in the minute of ${date(r.at)}.`);
    if (r.partial) says.push("The window has not filled yet: the truth may be higher.");
    if (r.stale?.length) says.push(`Silent, and so not in these rows: ${list(r.stale)}.`);
    if (r.unknown?.length) says.push(`Not known yet, and so not in these rows: ${list(r.unknown)}.`);
    const approximate = r.metric === "active" ? this.fleet.list().filter((f) => f.brief.approximate).map((f) => f.brief.firewall) : [];
    if (approximate.length) says.push(`Approximate until the next dump: ${list(approximate)}.`);
    text(note, says.join(" "));
  }

  choose(windows) {
    const s = this.form.window, was = s.value;
    if ([...s.options].map((o) => o.value).join() === windows.join()) return;
    s.replaceChildren(...windows.map((w) => el("option", {value: w}, w % 60 === 0 ? `${w / 60} min` : `${w} s`)));
    s.value = windows.includes(Number(was)) ? was : windows.includes(10) ? 10 : windows[0];
  }

  // firewalls are those that can be chosen.
  firewalls(names) {
    const s = this.form.firewall, was = s.value;
    if (was && !names.includes(was)) names = [was, ...names]; // chosen, and not heard now
    if ([...s.options].slice(1).map((o) => o.value).join() === names.join()) return;
    s.replaceChildren(el("option", {value: ""}, "all"), ...names.map((n) => el("option", {value: n}, n)));
    s.value = names.includes(was) ? was : "";
  }
}

// A Table shows the rows of one answer.
export class Table {
  constructor(table, open) {
    this.open = open;
    this.body = el("tbody");
    this.none = el("p", {class: "empty", hidden: true});
    table.replaceChildren(el("thead", null, el("tr", null,
      el("th", {scope: "col"}, "Address"), el("th", {scope: "col", class: "num"}, "Flows"), el("th", {scope: "col"}, "Share of each firewall"))), this.body);
    table.after(this.none);
  }

  show(r, names) {
    const largest = Math.max(1, ...r.rows.map((row) => row.value));
    keyed(this.body, r.rows, (row) => row.key, (row) => this.make(row), (e, row) => update(e, row, largest, names));
    show(this.none, r.rows.length === 0);
    text(this.none, r.metric === "unreplied" ? "No flow of this selection has ended without an answer within the window." : "No flow of this selection within the window.");
  }

  make(row) {
    const p = {value: el("td", {class: "num"}), bar: el("span", {class: "shares"}), words: el("span", {class: "note words"})};
    const tr = el("tr", null,
      el("th", {scope: "row"}, el("button", {type: "button", class: "link", onclick: () => this.open(row.key)}, row.key)),
      p.value, el("td", {class: "wide"}, p.bar, p.words));
    tr.parts = p;
    return tr;
  }
}

function update(tr, row, largest, names) {
  const p = tr.parts;
  text(p.value, number(row.value));
  const shares = Object.entries(row.firewalls).sort((a, b) => b[1] - a[1]);
  p.bar.style.width = `${(100 * row.value) / largest}%`;
  const parts = shares.slice(0, colours);
  if (shares.length > colours) parts.push([`${shares.length - colours} more`, shares.slice(colours).reduce((sum, [, v]) => sum + v, 0)]);
  keyed(p.bar, parts, ([name]) => name, () => el("span"), (e, [name, value]) => {
    e.style.width = `${(100 * value) / row.value}%`;
    attr(e, "data-colour", names.includes(name) ? names.indexOf(name) % colours : "rest");
    attr(e, "title", `${name}: ${number(value)}, ${percent((100 * value) / row.value)}`);
  });
  const words = shares.slice(0, most).map(([name, value]) => `${name} ${compact(value)}`);
  if (shares.length > most) words.push(`${shares.length - most} more`);
  text(p.words, words.join(" · "));
}
