// The story of an address, or of a firewall: all that is known of it, in a dialog that
// has an address of its own, so that it can be sent to somebody.

import {$, attr, badge, code, el, replace, text} from "./dom.js";
import {get} from "./api.js";
import {badges, describe, draw, level, spark} from "./fleet.js";
import {summary} from "./alerts.js";
import {deed} from "./deeds.js";
import {Table} from "./top.js";
import {bytes, compact, date, list, number, percent, span} from "./format.js";

const every = 2_000; // ms
const metrics = {new: "new flows", active: "active flows", unreplied: "ended unanswered"};

export class Story {
  constructor(fleet, close) {
    this.fleet = fleet;
    this.dialog = $("story");
    this.what = null; // {kind: "address" | "firewall", name, realm}
    this.turn = 0;
    $("story-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => { if (!this.dialog.open) close(); }); // the event comes late: another may be open
    this.dialog.addEventListener("click", (e) => { if (e.target === this.dialog) this.dialog.close(); }); // beside it
    const step = async () => {
      if (this.what && !this.paused && !document.hidden) await this.tell();
      setTimeout(step, every);
    };
    step();
  }

  open(what) {
    this.what = what;
    text($("story-title"), what.name);
    text($("story-note"), "");
    $("story-body").replaceChildren(el("p", {class: "note"}, "Asking…"));
    this.parts = null;
    if (!this.dialog.open) this.dialog.showModal();
    $("story-title").focus();
    this.tell();
  }

  // shows reports whether it is open on that.
  shows(what) {
    return this.what !== null && ["kind", "name", "realm"].every((k) => this.what[k] === what[k]);
  }

  close() {
    this.what = null;
    this.turn++;
    if (this.dialog.open) this.dialog.close();
  }

  async tell() {
    const turn = ++this.turn, {kind, name, realm} = this.what;
    const note = $("story-note");
    try {
      const tell = kind === "address" ? await this.address(name, realm) : await this.firewall(name);
      if (turn === this.turn) tell();
    } catch (e) {
      if (turn !== this.turn) return;
      attr(note, "class", "note bad");
      text(note, e.message);
      if (!this.parts) $("story-body").replaceChildren();
    }
  }

  // address asks, and returns what shows the answer.
  async address(name, realm) {
    const a = await get(`addresses/${encodeURIComponent(name)}`, {realm});
    return () => {
      const says = [];
      if (a.lossy) says.push("Events were lost within the longest window: the truth may be higher.");
      if (a.stale?.length) says.push(`Silent, and so not counted: ${list(a.stale)}.`);
      if (a.unknown?.length) says.push(`Active not known yet: ${list(a.unknown)}.`);
      const note = $("story-note");
      attr(note, "class", "note");
      text(note, says.join(" "));
      const done = [...a.decisions.map((d) => [d.time, {decision: d}]), ...a.receipts.map((r) => [r.time, {receipt: r}]), ...a.acts.map((x) => [x.time, {act: x}])].sort((x, y) => y[0] - x[0]);
      const p = this.parts ??= this.addressFrame(a);
      replace(p.live,
        a.realm === "default" ? null : el("p", null, `Realm ${a.realm}`),
        a.allowlisted && el("p", null, badge("allowlisted", "ok"), ` ${a.allowlisted.prefix}: ${a.allowlisted.why}`),
        el("div", {class: "pair"}, side("As source", a.src, "peers it opened flows to"), side("As destination", a.dst, "peers that opened flows to it")),
        el("h3", null, "Alerts"), a.alerts.length + a.past.length ? el("ul", {class: "plain"}, ...[...a.alerts, ...a.past].map(summary)) : el("p", {class: "empty"}, "None fires, and none was resolved within the last hour."),
        el("h3", null, "What was done"), done.length ? el("ol", {class: "plain"}, ...done.map(([ms, e]) => deed(ms, e))) : el("p", {class: "empty"}, "Nothing within the last hour."),
        a.more && el("p", {class: "note"}, "There are earlier ones: ctfleet audit list."));
    };
  }

  // addressFrame makes the places of the story of an address. What may be copied stays
  // while the rest changes.
  addressFrame(a) {
    const live = el("div");
    $("story-body").replaceChildren(live, el("h3", null, "To act"), code(...commands(a)));
    return {live};
  }

  async firewall(name) {
    const [all, src, dst] = await Promise.all([get("firewalls"), ...["src", "dst"].map((by) => get("top", {by, firewall: name, limit: 10}))]);
    return () => {
      const f = all.firewalls.find((x) => x.firewall === name);
      const note = $("story-note");
      attr(note, "class", f ? "note" : "note bad");
      text(note, f ? "" : "The aggregator knows no firewall of this name.");
      if (!f) {
        $("story-body").replaceChildren();
        this.parts = null;
        return;
      }
      const p = this.parts ??= this.frame(f.realm);
      const seen = this.fleet.all.get(name) ?? {brief: f, ticks: []};
      replace(p.badges, ...badges(f));
      p.bar.firstChild.style.width = `${Math.min(f.table.percent, 100)}%`;
      attr(p.bar, "data-level", level(f));
      text(p.fill, f.table.limit ? `${percent(f.table.percent)}: ${describe(seen)}` : "Its table is not known.");
      draw(p.spark, seen.ticks.map((t) => t.new));
      text(p.rate, `${compact(f.new_per_s)} new flows/s, ${compact(f.events_per_s)} events/s`);
      p.src.show(src, [name]);
      p.dst.show(dst, [name]);
      replace(p.problems, ...(f.problems ?? []).map((x) => el("li", {class: "text"}, x)));
      replace(p.facts, ...facts(f).flatMap(([k, v, bad]) => [el("dt", null, k), el("dd", {class: bad ? "bad" : null}, String(v))]));
    };
  }

  // frame makes the places of the story of a firewall, once for as long as it is open.
  frame(realm) {
    const bar = el("span", {class: "meter"}, el("span"));
    const tables = ["By source, new within 10 s", "By destination, new within 10 s"].map((t) => el("table", {"aria-label": t}));
    const p = {badges: el("p", {class: "badges"}), bar, fill: el("p"), spark: spark(), rate: el("p"), problems: el("ul", {class: "warn"}), facts: el("dl", {class: "facts"})};
    $("story-body").replaceChildren(p.badges, p.fill, bar, p.rate, p.spark, p.problems,
      el("div", {class: "pair"}, el("div", null, el("h3", null, "By source, new within 10 s"), tables[0]), el("div", null, el("h3", null, "By destination, new within 10 s"), tables[1])),
      el("h3", null, "Facts"), p.facts);
    const open = (key) => { location.hash = addressHash(key, realm); };
    return {...p, src: new Table(tables[0], open), dst: new Table(tables[1], open)};
  }
}

// addressHash and firewallHash are where the stories are.
export const addressHash = (ip, realm) => `#/address/${encodeURIComponent(ip)}${realm && realm !== "default" ? `?realm=${encodeURIComponent(realm)}` : ""}`;
export const firewallHash = (name) => `#/firewall/${encodeURIComponent(name)}`;

// storyOf reads such a place; null: it is none.
export function storyOf(hash) {
  const m = /^#\/(address|firewall)\/([^?]+)(?:\?realm=(.*))?$/.exec(hash);
  try {
    return m && {kind: m[1], name: decodeURIComponent(m[2]), realm: decodeURIComponent(m[3] ?? "")};
  } catch {
    return null; // bad escapes
  }
}

function side(title, s, peers) {
  const sample = (what, shares) => shares.length > 0 && el("p", {class: "note"}, `Most frequent ${what}, of a sample of ${number(s.sample_size)}: `,
    el("span", {class: "text"}, shares.map((x) => `${x.value} (${number(x.count)})`).join(", ")));
  const rows = s.counts.map((c) => el("tr", null,
    el("th", {scope: "row"}, c.window_s ? `${metrics[c.metric]}, ${span(c.window_s)}` : metrics[c.metric]),
    el("td", {class: "num"}, c.value === null ? "not known" : number(c.value)),
    el("td", {class: "wide note"}, [
      Object.entries(c.firewalls).sort((x, y) => y[1] - x[1]).slice(0, 8).map(([n, v]) => `${n} ${number(v)}`).join(" · "),
      c.share === undefined || c.share === null ? "" : `${percent(100 * c.share)} of those that ended`, c.partial ? "the window has not filled yet" : "",
    ].filter(Boolean).join("; "))));
  return el("div", null, el("h3", null, title), el("table", {"aria-label": title}, el("tbody", null, ...rows)), sample(peers, s.peers_sample), sample("ports", s.ports_sample));
}

// commands are what an operator may want to type next.
function commands(a) {
  const where = a.realm === "default" ? "" : ` --realm ${a.realm}`;
  return [`ctfleet observe --ip ${a.address} --last 20`, `ctfleet flush ${a.address}${where} --dry-run`, `ctfleet allowlist add ${a.address}${where} --for 1h`];
}

// facts are [name, value, whether it is bad].
function facts(f) {
  const k = f.kernel, s = f.stream;
  const out = [
    ["realm", f.realm], ["version", f.version], ["running since", date(f.started)], ["heard of", `${span(f.age_ms / 1000)} ago`],
    ["may flush", f.allow_flush ? "yes" : "no"], ["may block", f.allow_block ? "yes" : "no"], ["tcp_loose", f.tcp_loose ? "yes: a flush alone does not stop routed TCP" : "no"],
    ["active flows", f.active_known ? number(f.active) + (f.approximate ? ", approximate" : "") : "not known yet"],
    ["lost, by its own account", number(f.lost), f.lost > 0], ["missing on the way", number(f.missing), f.missing > 0],
    ["lost: socket, ring, bus", [s.lost_socket, s.lost_ring, s.lost_bus].map(number).join(", "), s.lost_socket + s.lost_ring + s.lost_bus > 0],
    ["lag", `${number(s.lag_ms)} ms`], ["ring", `${bytes(s.ring_bytes)} of ${bytes(s.ring_limit)}`], ["socket buffer", `${bytes(s.buffer_used)} of ${bytes(s.buffer_bytes)}`],
    ["drop", number(k.drop), k.drop > 0], ["early_drop", number(k.early_drop), k.early_drop > 0], ["insert_failed", number(k.insert_failed), k.insert_failed > 0],
  ];
  for (const [name, value] of Object.entries(f.labels ?? {})) out.push([`label ${name}`, value]);
  return out;
}
