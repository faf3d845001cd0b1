// The screen: what comes goes to the views, and the views are drawn when it has come.

import {$, attr, el, keyed, show, text} from "./dom.js";
import {follow, onToken, setToken} from "./api.js";
import {Alerts} from "./alerts.js";
import {Deeds} from "./deeds.js";
import {Fleet} from "./fleet.js";
import {Story, addressHash, firewallHash, storyOf} from "./story.js";
import {Top} from "./top.js";
import {compact, list, number, plural, time} from "./format.js";

const go = (hash) => { location.hash = hash; };
const fleet = new Fleet((name) => go(firewallHash(name)));
const top = new Top((key) => go(addressHash(key, top.form.firewall.value ? realmOf(top.form.firewall.value) : top.realm)), fleet);
const alerts = new Alerts((key, where) => go(key ? addressHash(key, where) : firewallHash(where)));
const deeds = new Deeds();
const story = new Story(fleet, () => { if (storyOf(location.hash)) history.pushState(null, "", "#"); story.close(); });
const link = {up: false, since: Date.now(), why: "", ever: false};
let paused = false;

const realmOf = (name) => fleet.all.get(name)?.brief.realm ?? "";

// The stream.

const stream = follow((kind, data) => {
  switch (kind) {
    case "fleet": fleet.take(data); break;
    case "alert": alerts.take(data); break;
    case "decision": case "receipt": case "act": deeds.take(data); break;
    case "gap": load(); break; // it says that some were missed
  }
  draw();
}, (up, why) => {
  if (up === link.up && link.ever) return;
  const again = up && link.ever;
  Object.assign(link, {up, why, since: Date.now(), ever: link.ever || up});
  if (again) top.ask();
  if (up && !loaded) load();
  draw();
});

// What was before the stream began. Where it cannot be had it is asked for again.
let loaded = false;
async function load() {
  loaded = true;
  const said = await Promise.allSettled([alerts.load(), deeds.load()]);
  loaded = said.every((s) => s.status === "fulfilled");
  if (!loaded && link.up) setTimeout(load, 3_000);
  draw();
}

// Drawing.

let asked = false;
function draw() {
  header(); // at once: a tab that is hidden draws nothing else, and its title counts
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    if (paused) return;
    const now = fleet.time || Date.now();
    realms();
    top.firewalls(fleet.names());
    fleet.render();
    alerts.render(now);
    deeds.render(now);
  });
}

function header() {
  text($("link"), link.up ? (paused ? "Paused" : "Live") : link.ever ? "Disconnected" : "Connecting");
  attr($("link"), "data-link", link.up ? (paused ? "paused" : "up") : "down");
  attr(document.body, "data-link", link.up ? "up" : "down");
  keyed($("notices"), notices(), (n) => n.kind + n.id, (n) => el("li", {class: `notice ${n.kind}`}), (e, n) => text(e, n.says));
  if (paused) return;
  const t = fleet.totals(), firing = alerts.firing();
  const facts = [
    ["firewalls", t.fresh === t.firewalls ? number(t.firewalls) : `${number(t.fresh)} of ${number(t.firewalls)} fresh`, t.fresh < t.firewalls ? "warn" : ""],
    ["new flows/s", compact(t.new)], ["table entries", compact(t.entries)],
    ["events lost", compact(t.lost), t.lost > 0 ? "warn" : ""],
  ];
  if (!fleet.known) facts.forEach((f) => { f[1] = "–"; f[2] = ""; });
  facts.push(["alerts firing", firing === null ? "–" : number(firing), firing > 0 ? "bad" : ""]);
  keyed($("totals"), facts, ([k]) => k, ([k]) => el("div", null, el("dt", null, k), el("dd")), (e, [, v, kind]) => {
    text(e.lastChild, v);
    attr(e.lastChild, "class", kind);
  });
  document.title = firing > 0 ? `(${firing}) ctfleet` : "ctfleet";
}

// notices are what keeps the picture from being the whole truth.
function notices() {
  const out = [];
  if (!link.up && link.ever) out.push({id: "link", kind: "bad", says: `Disconnected since ${time(link.since)}: ${link.why}. What you see is from before; it is tried again.`});
  else if (!link.up && link.why) out.push({id: "link", kind: "bad", says: `Not connected: ${link.why}. It is tried again.`});
  const of = (want) => fleet.list().filter((f) => want(f.brief)).map((f) => f.brief.firewall);
  const silent = of((b) => b.state === "silent" || b.state === "stale"), stopped = of((b) => b.state === "stopped");
  const recorded = of((b) => b.source === "replay"), printed = of((b) => b.source && b.source !== "replay");
  if (silent.length) out.push({id: "silent", kind: "warn", says: `Nothing is heard from ${list(silent)}: what ${silent.length === 1 ? "it holds" : "they hold"} is missing from the counts.`});
  if (stopped.length) out.push({id: "stopped", kind: "warn", says: `${list(stopped)} ${stopped.length === 1 ? "was" : "were"} stopped: what came since is not counted.`});
  const losing = fleet.losing();
  if (losing.length) out.push({id: "loss", kind: "warn", says: `${plural(losing.length, "firewall")} lost events within the last minute (${list(losing)}): the truth is higher than the counts.`});
  if (recorded.length) out.push({id: "recorded", kind: "warn", says: `Simulated: what ${list(recorded)} ${recorded.length === 1 ? "sends is a recording" : "send are recordings"}, no live traffic.`});
  if (printed.length) out.push({id: "printed", kind: "warn", says: `The events of ${list(printed)} do not come from a kernel as they happen.`});
  return out;
}

let chosen = ""; // realm, by a person
function realms() {
  const heard = fleet.realms(), s = $("realm");
  // The default realm need not be one that a firewall is in.
  const now = chosen || (heard.includes("default") || !heard.length ? "default" : heard[0]);
  const all = heard.includes(now) ? heard : [now, ...heard];
  show($("realm-choice"), heard.length > 1);
  if ([...s.options].map((o) => o.value).join() !== all.join()) s.replaceChildren(...all.map((r) => el("option", {value: r}, r)));
  s.value = now;
  if (now !== (top.realm || "default")) {
    top.realm = now;
    top.ask(true);
  }
}
$("realm").addEventListener("input", () => { chosen = $("realm").value; realms(); });

// Pause, keys, the address bar, the token.

function pause(on) {
  paused = top.paused = story.paused = on;
  attr($("pause"), "aria-pressed", String(on));
  text($("pause"), on ? "Go on" : "Pause");
  if (!on) top.ask();
  draw();
}
$("pause").addEventListener("click", () => pause(!paused));
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, select, textarea, dialog")) return;
  if (e.key === "p") pause(!paused);
  else if (e.key === "/") {
    e.preventDefault();
    top.form.prefix.focus();
  }
});

function route() {
  const what = storyOf(location.hash);
  if (what) {
    if (!story.shows(what)) story.open(what); // one step may be told twice
  }
  else story.close();
}
addEventListener("hashchange", route);
addEventListener("popstate", route);

onToken((why) => {
  text($("token-note"), why);
  if (!$("sign-in").open) $("sign-in").showModal();
});
$("token-form").addEventListener("submit", (e) => {
  if (!/^[\x21-\x7e]+$/.test($("token").value.trim())) { // no header can carry it
    e.preventDefault();
    text($("token-note"), "A token has no spaces, and only characters of ASCII.");
    return;
  }
  setToken($("token").value.trim());
  $("token").value = "";
  stream.kick();
  top.ask();
});

top.run();
route();
draw();
