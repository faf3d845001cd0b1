// What fires, and what was resolved within the last hour, on one line of time.

import {$, attr, badge, el, empty, keyed, show, text} from "./dom.js";
import {get} from "./api.js";
import {list, number, span, time} from "./format.js";

const hour = 3_600_000; // ms
const first = 12; // rows shown until more are asked for
const mostKept = 500; // of those resolved

export class Alerts {
  constructor(open) {
    this.open = open; // called with a key and a realm, or null and a firewall
    this.all = new Map(); // by id; with each when it was heard
    this.known = false; // what fires has been read
    this.failed = ""; // why something of it could not be read
    this.more = false; // older ones were left out
    this.turn = 0; // of the last load
    this.shown = first;
    $("alerts-more").addEventListener("click", () => {
      this.shown = this.shown === first ? Infinity : first;
      this.render(this.now);
    });
    $("alert-rows").append(
      el("thead", null, el("tr", null, ...["State", "What", "Last hour"].map((h) => el("th", {scope: "col"}, h)))),
      this.body = el("tbody"));
  }

  // load asks for all of them: what came since the last time may have been missed. What
  // the stream says meanwhile is newer than the answer, and stays.
  async load() {
    const turn = ++this.turn, began = performance.now();
    const [firing, past] = await Promise.allSettled([get("alerts"), get("alerts", {state: "past"})]);
    if (turn !== this.turn) return;
    if (firing.status === "fulfilled") {
      const ids = new Set(firing.value.alerts.map((a) => a.id));
      for (const [id, a] of this.all) if (a.state === "firing" && a.heard < began && !ids.has(id)) this.all.delete(id);
      firing.value.alerts.forEach((a) => this.take(a, began));
      this.known = true;
    }
    if (past.status === "fulfilled") {
      past.value.alerts.forEach((a) => this.take(a, began));
      this.more = Boolean(past.value.more);
    }
    const failed = [firing, past].find((r) => r.status === "rejected");
    this.failed = failed ? failed.reason.message : "";
    if (failed) throw failed.reason;
  }

  // take takes an alert, unless a later state of it is known.
  take(a, heard = performance.now()) {
    const old = this.all.get(a.id);
    if (old && (old.updated > a.updated || (old.updated === a.updated && old.state === "resolved"))) return;
    this.all.delete(a.id); // the last taken is the last in the map
    this.all.set(a.id, {...a, heard});
    const past = this.list("resolved");
    for (const gone of past.slice(0, Math.max(0, past.length - mostKept))) {
      this.all.delete(gone.id);
      this.more = true;
    }
  }

  list(state) { return [...this.all.values()].filter((a) => a.state === state); }

  // firing is how many fire; null: it is not known.
  firing() { return this.known ? this.list("firing").length : null; }

  render(now) {
    this.now = now;
    for (const a of this.list("resolved")) if (a.updated < now - hour) this.all.delete(a.id);
    const newest = (state, of) => this.list(state).sort((a, b) => of(b) - of(a));
    const all = [...newest("firing", (a) => a.started), ...newest("resolved", (a) => a.updated)];
    keyed(this.body, all.slice(0, this.shown), (a) => a.id, (a) => this.make(a), (e, a) => update(e, a, now));
    const more = $("alerts-more");
    show(more, all.length > first);
    text(more, this.shown === first ? `Show all ${all.length}${this.more ? ", of more" : ""}` : `Show the first ${first}`);
    show($("alert-rows"), all.length > 0);
    text($("alerts-note"), this.failed ? `cannot be read: ${this.failed}` : "of the last hour");
    if (all.length > 0 || !this.known || this.failed) show($("alerts-empty"), false);
    else empty($("alerts-empty"), el("p", null, "Nothing fires, and nothing did within the last hour."), el("p", {class: "note"},
      "Thresholds are the rules that the aggregator was started with; ", el("code", null, "ctfleet rules check FILE"), " tells what a file says."));
  }

  make(a) {
    const p = {state: el("td", {class: "state"}), what: el("p", {class: "text"}), flags: el("span", {class: "badges"}), bar: el("rect", {y: 3, height: 10, rx: 2}), times: el("span", {class: "note"})};
    const about = opens(a, this.open);
    const ticks = [0, 1, 2, 3, 4].map((i) => el("line", {x1: i * 25, x2: i * 25, y1: 0, y2: 16}));
    const tr = el("tr", null, p.state,
      el("th", {scope: "row"}, about ? el("button", {type: "button", class: "link", onclick: about}, a.key === "table" ? a.scope : a.key) : el("b", null, a.key),
        " ", el("span", {class: "note"}, `${a.rule}, ${a.scope}`), " ", p.flags, p.what),
      el("td", {class: "wide"}, el("svg", {class: "line-of-time", viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true"}, ...ticks, p.bar), p.times));
    tr.parts = p;
    return tr;
  }
}

// opens is what a click on the key of an alert does; null: nothing.
export function opens(a, open) {
  if (a.track === "table") return a.scope === "fleet" || a.scope.startsWith("realm_") ? null : () => open(null, a.scope);
  return a.key.includes("/") ? null : () => open(a.key, a.realm);
}

function update(tr, a, now) {
  const p = tr.parts, firing = a.state === "firing";
  keyed(p.state, [a.state], (s) => s, (s) => badge(s, firing ? "bad" : "ok"), () => {});
  attr(tr, "data-state", a.state);
  keyed(p.flags, flags(a), ([word]) => word, ([word, kind, why]) => badge(word, kind, why), () => {});
  text(p.what, a.text);
  // A bar from when it began to when it ended; what began earlier begins at the edge.
  const x = (t) => 100 * Math.min(1, Math.max(0, 1 - (now - t) / hour));
  const to = firing ? 100 : x(a.updated), width = Math.max(0.8, to - x(a.started));
  attr(p.bar, "x", Math.max(0, to - width).toFixed(2));
  attr(p.bar, "width", width.toFixed(2));
  const lasted = span(Math.max(0, (firing ? now : a.updated) - a.started) / 1000);
  text(p.times, firing ? `since ${time(a.started)}, ${lasted}` : `${time(a.started)} to ${time(a.updated)}, ${lasted}`);
}

// flags say what keeps an alert from being a plain one: [word, kind, why].
export function flags(a) {
  const out = [];
  if (a.severity) out.push([a.severity, a.severity === "critical" ? "bad" : a.severity === "warning" ? "warn" : ""]);
  if (a.allowlisted) out.push(["allowlisted", "", "an allowlist covers it: nothing will be done about it"]);
  if (a.lossy) out.push(["lossy", "warn", "events were lost within the window: the truth may be higher"]);
  if (a.stale) out.push(["stale", "warn", "a firewall of its scope is silent"]);
  if (a.approximate) out.push(["approximate", "", "the active count may differ from the table"]);
  if (a.partial) out.push(["partial", "", "counted for less than its window: it may be more"]);
  if (a.muted) out.push(["muted", "", "nobody was told: its firewall is muted"]);
  if (a.simulated) out.push(["simulated", "warn", "it comes from a recording"]);
  return out;
}

// summary is an alert in a line, for the story of an address.
export function summary(a) {
  const shares = Object.entries(a.firewalls ?? {}).sort((x, y) => y[1] - x[1]).map(([n, v]) => `${n} ${number(v)}`);
  return el("li", null, badge(a.state, a.state === "firing" ? "bad" : "ok"), " ", el("span", {class: "text"}, a.text),
    el("span", {class: "note"}, ` ${a.state === "firing" ? `since ${time(a.started)}` : `${time(a.started)} to ${time(a.updated)}`}${shares.length ? ` · ${list(shares)}` : ""}`));
}
