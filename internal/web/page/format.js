// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});
const clock = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"});
const day = new Intl.DateTimeFormat(undefined, {year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "short"});

export const number = (n) => whole.format(n);
export const compact = (n) => (n < 10 && n % 1 !== 0 ? n.toFixed(1) : short.format(n));
export const percent = (p) => (p > 0 && p < 10 ? p.toFixed(1) : p.toFixed(0)) + "\u202f%";
// A time that is none, whoever wrote it, must not stop what is drawn beside it.
const valid = (ms) => !Number.isNaN(new Date(ms).getTime());
export const time = (ms) => (valid(ms) ? clock.format(ms) : "–");
export const date = (ms) => (valid(ms) ? day.format(ms) : "–");
export const iso = (ms) => (valid(ms) ? new Date(ms).toISOString() : null);
export const plural = (n, one, many = one + "s") => `${number(n)} ${n === 1 ? one : many}`;

// span is a duration in seconds: "42 s", "3 min", "2.5 h".
export function span(s) {
  if (s < 90) return `${Math.round(s)}\u202fs`;
  if (s < 5400) return `${Math.round(s / 60)}\u202fmin`;
  if (s < 36 * 3600) return `${(s / 3600).toFixed(1)}\u202fh`;
  return `${Math.round(s / 86400)}\u202fd`;
}

// bytes is an amount of memory.
export function bytes(n) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (n < 1024) return `${n < 10 && unit !== "B" ? n.toFixed(1) : Math.round(n)}\u202f${unit}`;
    n /= 1024;
  }
  return `${n.toFixed(1)}\u202fGiB`;
}

// list names a few and counts the rest.
export function list(names, most = 3) {
  if (names.length <= most + 1) return names.join(", ");
  return `${names.slice(0, most).join(", ")} and ${number(names.length - most)} more`;
}
