// A tile per firewall: how full its table is and when it will be, new flows, loss,
// silence. What is urgent comes first.

import {$, attr, badge, code, el, empty, keyed, replace, show, text} from "./dom.js";
import {compact, number, percent, plural, span, time} from "./format.js";

const kept = 60; // s of each that are kept: what the sparkline shows, and how long a loss is a new one
const tilesFirst = 24; // shown until more are asked for
const trend = 30, trendLeast = 5; // s that the net rate is taken from, and ticks that it takes
const settle = 5_000; // ms; tiles change places at most this often

export class Fleet {
  constructor(open) {
    this.open = open; // called with a name
    this.all = new Map(); // by name: the last brief, ticks {t, new, count, lost}
    this.time = 0; // of the last tick
    this.known = false; // one has come
    this.shown = tilesFirst;
    this.order = [];
    this.ordered = 0;
    for (const id of ["fleet-order", "fleet-filter"]) {
      $(id).addEventListener("input", () => { this.ordered = 0; this.render(); });
    }
    $("tiles-more").addEventListener("click", () => {
      this.shown = this.shown === tilesFirst ? Infinity : tilesFirst;
      this.ordered = 0;
      this.render();
    });
  }

  // take takes a tick of the stream.
  take(tick) {
    this.time = tick.time;
    this.known = true;
    const names = new Set();
    for (const brief of tick.firewalls ?? []) {
      names.add(brief.firewall);
      let f = this.all.get(brief.firewall);
      if (!f) this.all.set(brief.firewall, f = {ticks: []});
      f.brief = brief;
      f.ticks.push({t: tick.time / 1000, new: brief.new_per_s, count: brief.table.count, lost: brief.lost + brief.missing});
      // By age, not by number: there may have been a break.
      while (f.ticks[0].t <= tick.time / 1000 - kept) f.ticks.shift();
    }
    for (const name of this.all.keys()) if (!names.has(name)) this.all.delete(name);
  }

  names() { return [...this.all.keys()]; }
  realms() { return [...new Set([...this.all.values()].map((f) => f.brief.realm))].sort(); }
  list() { return [...this.all.values()]; }

  // losing are those that lost events within the last minute.
  losing() { return this.list().filter((f) => losing(f) > 0).map((f) => f.brief.firewall); }

  totals() {
    const t = {firewalls: this.all.size, fresh: 0, new: 0, entries: 0, lost: 0};
    for (const {brief: b} of this.all.values()) {
      if (b.state === "fresh") t.fresh++;
      t.new += b.state === "fresh" ? b.new_per_s : 0;
      t.entries += b.state === "fresh" ? b.table.count : 0;
      t.lost += b.lost + b.missing;
    }
    return t;
  }

  render() {
    const filter = $("fleet-filter").value.trim().toLowerCase();
    const now = Date.now();
    if (now - this.ordered > settle || this.order.some((n) => !this.all.has(n)) || this.order.length < this.all.size) {
      const by = orders[$("fleet-order").value];
      this.order = this.list().sort((a, b) => by(a, b) || (a.brief.firewall < b.brief.firewall ? -1 : 1)).map((f) => f.brief.firewall);
      this.ordered = now;
    }
    const fit = this.order.filter((n) => n.includes(filter));
    const tiles = fit.slice(0, this.shown).map((n) => this.all.get(n));
    keyed($("tiles"), tiles, (f) => f.brief.firewall, (f) => this.make(f), update);
    const more = $("tiles-more");
    show(more, fit.length > tilesFirst);
    text(more, this.shown === tilesFirst ? `Show all ${fit.length}` : `Show the first ${tilesFirst}`);
    this.nothing(filter, fit.length);
  }

  nothing(filter, fit) {
    const place = $("fleet-empty");
    if (fit > 0 || !this.known) show(place, false);
    else if (filter) empty(place, el("p", null, "No firewall has that in its name."));
    else {
      empty(place, el("p", null, "No firewall has reported yet. On each, see what is missing, and start its producer:"),
        code("producer --check", "producer --nats-url nats://THIS-HOST:4222"));
    }
  }

  make(f) {
    const p = {
      name: el("b", {class: "name"}), state: el("span", {class: "badges"}), fill: el("b", {class: "fill"}), bar: el("span", {class: "meter"}, el("span")),
      count: el("span"), rate: el("span"), spark: spark(), full: el("span"), loss: el("span"),
    };
    const tile = el("button", {type: "button", class: "tile", onclick: () => this.open(f.brief.firewall)},
      el("span", {class: "line"}, p.name, p.state),
      el("span", {class: "line"}, p.fill, p.count), p.bar,
      el("span", {class: "line"}, p.rate, p.spark),
      el("span", {class: "line note"}, p.full, p.loss));
    const item = el("li", null, tile);
    item.parts = {...p, tile};
    return item;
  }
}

function update(item, f) {
  const p = item.parts, b = f.brief, table = b.table;
  text(p.name, b.firewall);
  replace(p.state, ...badges(b));
  const known = table.limit > 0;
  text(p.fill, known ? percent(table.percent) : "no table");
  text(p.count, known ? `${compact(table.count)} of ${compact(table.limit)}` : "");
  p.bar.firstChild.style.width = `${Math.min(table.percent, 100)}%`;
  attr(p.tile, "data-level", level(b));
  attr(p.tile, "data-state", b.state);
  text(p.rate, `${compact(b.new_per_s)} new/s`);
  draw(p.spark, f.ticks.map((t) => t.new));
  text(p.full, until(f));
  const lost = b.lost + b.missing;
  text(p.loss, lost > 0 ? `${compact(lost)} lost` : "");
  attr(p.loss, "class", losing(f) > 0 ? "bad" : lost > 0 ? "warn" : null);
}

// badges say what keeps the numbers from being plain ones.
export function badges(b) {
  const out = [];
  if (b.state === "silent") out.push(badge(`silent ${span(b.age_ms / 1000)}`, "bad", "nothing was heard for more than a minute: what it holds is not known"));
  if (b.state === "stale") out.push(badge("stale", "warn", "nothing was heard for 3 s: the numbers are from then"));
  if (b.state === "stopped") out.push(badge("stopped", "", "its producer said good-bye"));
  if (b.source) out.push(badge(b.source === "replay" ? "recording" : b.source, "warn", "these events do not come from a kernel as they happen"));
  if (b.rivals) out.push(badge("two producers", "bad", "two producers use this name"));
  if (!b.active_known && b.state === "fresh") out.push(badge("active unknown", "", "its first dump has not arrived yet"));
  if (b.approximate) out.push(badge("approximate", "", "its active count may differ from the table until the next dump"));
  if (b.muted_until) out.push(badge(`muted until ${time(b.muted_until)}`, "", "nobody is told of its alerts until then"));
  return out;
}

// level is how full a table is: as the alarms, 75 and 90 per cent.
export const level = (b) => (b.table.percent >= 90 ? "bad" : b.table.percent >= 75 ? "warn" : "ok");

// losing is how many events were lost within the ticks that are kept. A counter that
// fell began anew.
function losing(f) {
  return f.ticks.reduce((sum, t, i) => sum + (i > 0 ? Math.max(0, t.lost - f.ticks[i - 1].lost) : 0), 0);
}

// net is the rate at which the table fills, in entries/s: the slope of a straight line
// through the last ticks; null while there are too few.
export function net(ticks) {
  const t = ticks.filter((x) => x.t > ticks.at(-1).t - trend);
  if (t.length < trendLeast) return null;
  const mean = (of) => t.reduce((sum, x) => sum + of(x), 0) / t.length;
  const mt = mean((x) => x.t), mc = mean((x) => x.count);
  const spread = t.reduce((sum, x) => sum + (x.t - mt) ** 2, 0);
  return spread > 0 ? t.reduce((sum, x) => sum + (x.t - mt) * (x.count - mc), 0) / spread : null;
}

// until says when the table will be full at the present net rate.
export function until(f) {
  const {table, state} = f.brief;
  if (table.limit === 0 || state !== "fresh") return "";
  if (table.count >= table.limit) return "full";
  const rate = net(f.ticks);
  if (rate === null) return "";
  const s = (table.limit - table.count) / rate;
  return rate > 0 && s < 86400 ? `full in ${span(s)}` : "not filling";
}

const stateRank = {silent: 0, stale: 1, fresh: 2, stopped: 3};
const orders = {
  // Five per cent are one step, so that tiles do not change places all the time.
  urgent: (a, b) => urgency(a) - urgency(b),
  fill: (a, b) => b.brief.table.percent - a.brief.table.percent,
  new: (a, b) => b.brief.new_per_s - a.brief.new_per_s,
  name: () => 0,
};

function urgency(f) {
  const b = f.brief;
  const calm = level(b) === "ok" && losing(f) === 0 && !b.rivals;
  return stateRank[b.state] * 1000 + (calm ? 100 : 0) + 20 - Math.floor(b.table.percent / 5);
}

const width = 80, height = 20;

export function spark() {
  return el("svg", {class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true"}, el("polyline", null));
}

// draw draws values, the newest at the right edge.
export function draw(svg, values) {
  const most = Math.max(...values, 1), step = width / (kept - 1);
  const points = values.map((v, i) => `${(width - (values.length - 1 - i) * step).toFixed(1)},${(height - 1 - (v / most) * (height - 2)).toFixed(1)}`);
  attr(svg.firstChild, "points", points.join(" "));
}

// describe is what a tile says, for the story of its firewall.
export function describe(f) {
  const {table} = f.brief;
  return table.limit ? `${number(table.count)} of ${plural(table.limit, "entry", "entries")}, ${until(f) || "the trend is not known yet"}` : "its table is not known";
}
