// What the responder decided, what firewalls answered, what operators did.

import {$, badge, el, empty, keyed, show} from "./dom.js";
import {get} from "./api.js";
import {date, list, number, plural, time} from "./format.js";

const most = 50;

export class Deeds {
  constructor() {
    this.entries = []; // newest first
    this.known = false;
    this.number = 0;
  }

  async load() {
    const {entries} = await get("audit", {since: "1h", limit: most});
    this.entries = [];
    entries.forEach((e) => this.take(e));
    this.known = true;
  }

  // take takes an entry of the audit.
  take(e) {
    this.entries.unshift({...e, number: ++this.number});
    this.entries.length = Math.min(this.entries.length, most);
  }

  render() {
    keyed($("deed-rows"), this.entries, (e) => e.number, (e) => deed(Date.parse(e.time), e), () => {});
    if (this.entries.length > 0 || !this.known) show($("deeds-empty"), false);
    else empty($("deeds-empty"), el("p", null, "Nothing was decided or done within the last hour."), el("p", {class: "note"},
      "A responder decides by its policy; without one it observes. ", el("code", null, "ctfleet flush ADDRESS --dry-run"), " shows what a flush would do."));
  }
}

// deed is an entry as an item of a list: {decision}, {receipt} or {act}.
export function deed(ms, e) {
  const {word, kind, flags, what, why} = e.decision ? decided(e.decision) : e.receipt ? received(e.receipt) : acted(e.act, e.unsigned);
  return el("li", {class: "deed"}, el("time", {datetime: new Date(ms).toISOString(), title: date(ms)}, time(ms)), " ", badge(word, kind), " ",
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
