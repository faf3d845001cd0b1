// Elements. Text is always set as text: what comes from the bus never becomes markup.

const svgTags = new Set(["svg", "path", "polyline", "line", "rect", "title"]);

export const $ = (id) => document.getElementById(id);

// el makes an element. Of props, class, dataset and functions (listeners, "onclick")
// are known; everything else is an attribute, left out where it is null or false.
export function el(tag, props, ...children) {
  const e = svgTags.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (typeof value === "function") e.addEventListener(name.slice(2), value);
    else attr(e, name, value);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return e;
}

// attr, text and show change what differs only, so that nothing flickers and nothing
// is said twice to who listens to the page.
export function attr(e, name, value) {
  if (value === null || value === undefined || value === false) {
    if (e.hasAttribute(name)) e.removeAttribute(name);
    return;
  }
  const v = value === true ? "" : String(value);
  if (e.getAttribute(name) !== v) e.setAttribute(name, v);
}

export function text(e, value) {
  const v = String(value);
  if (e.textContent !== v) e.textContent = v;
}

export function show(e, on) {
  if (e.hidden === on) e.hidden = !on;
}

// keyed makes the children of parent those of items, in their order. An element
// lives as long as its key: make(item) makes it, update(element, item) brings it up to
// date. Who had the focus keeps it.
export function keyed(parent, items, key, make, update) {
  const had = document.activeElement;
  const known = parent.keyed ??= new Map();
  const gone = new Map(known);
  let at = parent.firstChild;
  for (const item of items) {
    const k = key(item);
    let e = known.get(k);
    if (e === undefined) {
      e = make(item);
      known.set(k, e);
    }
    gone.delete(k);
    update(e, item);
    if (e === at) at = at.nextSibling;
    else parent.insertBefore(e, at);
  }
  for (const [k, e] of gone) {
    known.delete(k);
    e.remove();
  }
  if (had !== document.activeElement && parent.contains(had)) had.focus({preventScroll: true});
}

// replace shows other children, unless they look the same.
export function replace(parent, ...children) {
  const next = el("div", null, ...children);
  if (parent.innerHTML !== next.innerHTML) parent.replaceChildren(...next.childNodes);
}

// badge is a word in a frame: kind is ok, warn, bad or nothing.
export const badge = (word, kind, why) => el("span", {class: kind ? `badge ${kind}` : "badge", title: why}, word);

// empty fills a place that has nothing to show with what to do next.
export function empty(place, ...children) {
  replace(place, ...children);
  show(place, true);
}

export const code = (...lines) => el("pre", null, el("code", null, lines.join("\n")));
