// What the responder decided, what firewalls answered, what operators did.

import {$, badge, el, empty, keyed, show, text} from "./dom.js";
import {get} from "./api.js";
import {date, iso, list, number, plural, time} from "./format.js";

const hour = 3_600_000; // ms
const most = 50;

export class Deeds {
  constructor() {
    this.entries = new Map(); // by what tells them apart: the stream may say one again
    this.known = false;
    this.failed = ""; // why they could not be read
    this.more = false; // earlier ones were left out
    this.turn = 0; // of the last load
  }

  async load() {
    const turn = ++this.turn;
    try {
      const {entries, more} = await get("audit", {since: "1h", limit: most});
      if (turn !== this.turn) return;
      entries.forEach((e) => this.take(e));
      this.more ||= Boolean(more);
      this.known = true;
      this.failed = "";
    } catch (e) {
      if (turn === this.turn) this.failed = e.message;
      throw e;
    }
  }

  // take takes an entry of the audit.
  take(e) {
    const inner = e.decision ?? e.receipt ?? e.act ?? {};
    this.entries.set([e.time, e.actor, e.verb, inner.id ?? inner.what].join(" "), e);
  }

  render(now) {
    const kept = [...this.entries].map(([key, e]) => ({key, e, ms: Date.parse(e.time)})).filter((x) => !(x.ms < now - hour)).sort((a, b) => b.ms - a.ms);
    this.more ||= kept.length > most;
    kept.length = Math.min(kept.length, most);
    this.entries = new Map(kept.map((x) => [x.key, x.e]));
    keyed($("deed-rows"), kept, (x) => x.key, (x) => deed(x.ms, x.e), () => {});
    text($("deeds-note"), this.failed ? `cannot be read: ${this.failed}` : `of the last hour, newest first${this.more && kept.length === most ? `, the latest ${most}` : ""}`);
    if (kept.length > 0 || !this.known || this.failed) show($("deeds-empty"), false);
    else empty($("deeds-empty"), el("p", null, "Nothing was decided or done within the last hour."), el("p", {class: "note"},
      "A responder decides by its policy; without one it observes. ", el("code", null, "ctfleet flush ADDRESS --dry-run"), " shows what a flush would do."));
  }
}

// deed is an entry as an item of a list: {decision}, {receipt} or {act}.
export function deed(ms, e) {
  const {word, kind, flags, what, why} = e.decision ? decided(e.decision) : e.receipt ? received(e.receipt) : acted(e.act, e.unsigned);
  return el("li", {class: "deed"}, el("time", {datetime: iso(ms), title: date(ms)}, time(ms)), " ", badge(word, kind), " ",
    ...flags.flatMap(([w, k]) => [badge(w, k), " "]), el("span", {class: "text"}, what), why ? el("span", {class: "note text"}, ` ${why}`) : null);
}

const kinds = {commanded: "ok", failed: "bad", declined: "warn", expired: "warn", denied: "warn"};

function decided(d) {
  const where = d.firewalls?.length ? ` on ${list(d.firewalls)}` : "";
  const whose = d.address && d.address !== d.key ? `${d.address} for ${d.key}` : d.key;
  return {
    word: d.outcome, kind: kinds[d.outcome], flags: d.simulated ? [["simulated", "warn"]] : [],
    what: `${d.action} ${whose}${d.towards ? ` towards ${d.towards}` : ""}${where}`,
    why: [d.who && `by ${d.who}`, d.reason, `(${d.rule}, mode ${d.mode})`].filter(Boolean).join(" "),
  };
}

function received(r) {
  const whose = (r.addresses ?? []).join(", ");
  const refused = r.refused ?? [];
  const flags = [];
  if (r.dry_run) flags.push(["dry run", "warn"]);
  if (r.tcp_loose && r.deleted > 0) flags.push(["tcp_loose", "warn"]);
  let what = `${r.firewall}: ${number(r.deleted)} of ${plural(r.matched, "entry", "entries")} of ${whose} deleted in ${r.duration_ms.toFixed(1)}\u202fms, table ${number(r.table_before)} → ${number(r.table_after)}`;
  if (r.residual !== null) what = `${r.firewall}: 2 s later ${plural(r.residual, "entry", "entries")} of ${whose} are back`;
  else if (r.verb === "block" && r.blocked_until !== undefined) what += r.blocked_until === 0 ? ", blocked" : `, blocked until ${date(r.blocked_until)}`;
  else if (r.verb === "unblock") what = `${r.firewall}: ${whose} ${r.unblocked ? "unblocked" : "was not unblocked"}`;
  const bad = r.error || refused.length > 0;
  const why = [refused.map((f) => `refused: ${f.reason}${f.count ? ` (${number(f.count)})` : ""}`).join(", "), r.error, `by ${r.who ?? r.actor}${r.rule ? ` for ${r.rule}` : ""}`, r.rule ? "" : r.reason].filter(Boolean).join(" · ");
  return {word: r.residual !== null ? "residual" : r.verb, kind: bad ? "bad" : "ok", flags, what, why};
}

function acted(a, unsigned) {
  return {word: a.verb, flags: unsigned ? [["not verified", ""]] : [], what: a.what, why: [a.who && `by ${a.who}`, a.reason].filter(Boolean).join(": ")};
}
